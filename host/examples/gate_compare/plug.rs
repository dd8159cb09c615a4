//! `plug`: the kernel's queueing discipline that was made for Remus, driven as Remus drives it.
//!
//! What comes in on the guest's tap is redirected to an ifb, whose root discipline holds it; what the ifb
//! sends comes in on the tap again, behind the filter. Commands go by route netlink, under the kernel's
//! configuration lock.

use std::io;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::gate_lab::{run, try_run};
use crate::netlink;
use crate::way::Way;

/// Bytes that it holds before it drops.
const LIMIT_BYTES: u32 = 512 << 20;
/// Packets between two runs of the ifb's tasklet before it stops the discipline.
const IFB_QUEUE_PACKETS: u32 = 16_384;
const TCA_OPTIONS: u16 = 2;

/// `TCQ_PLUG_...` of include/uapi/linux/pkt_sched.h.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Action {
    Buffer = 0,
    ReleaseOne = 1,
}

pub struct Plug {
    socket: Socket,
    ifb: Ifb,
}

impl Plug {
    pub fn new() -> Result<Self, String> {
        let ifb = Ifb::new().map_err(|error| format!("no ifb here (CONFIG_IFB): {error}"))?;
        let missing = |error| format!("no plug on an ifb (CONFIG_NET_SCH_PLUG): {error}");
        let socket = netlink::open(NETLINK_ROUTE).map_err(missing)?;
        let plug = Self { socket, ifb };
        // A new one holds; the action counts for nothing then, only the limit.
        plug.command(Action::Buffer, NLM_F_CREATE | NLM_F_REPLACE).map_err(missing)?;
        // Without addresses: what it sent of its own would be held and counted like the guest's.
        run("ip", "link set ifb0 addrgenmode none up");
        run("tc", "qdisc add dev guest0 clsact");
        // tc cannot write a filter without a key; frames here are long enough for one.
        let all = "u32 match u32 0 0 action mirred egress redirect dev ifb0";
        try_run("tc", &format!("filter add dev guest0 ingress protocol all prio 1 {all}")).map(|_| plug)
    }

    fn command(&self, action: Action, flags: u16) -> io::Result<()> {
        let mut message = TcMessage::with_index(self.ifb.index as i32);
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind("plug".into()));
        // struct tc_plug_qopt { int action; __u32 limit; } of include/uapi/linux/pkt_sched.h, as it is:
        // net/sched/sch_plug.c reads it so, and not as attributes in the attribute.
        let options = [(action as i32).to_ne_bytes(), LIMIT_BYTES.to_ne_bytes()].concat();
        message.attributes.push(TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options)));
        netlink::change(&self.socket, RouteNetlinkMessage::NewQueueDiscipline(message), flags)
    }
}

impl Way for Plug {
    fn mark(&self, _mark: u64) {
        self.command(Action::Buffer, 0).expect("a mark");
    }

    fn release(&self, _mark: u64) {
        self.command(Action::ReleaseOne, 0).expect("a release");
    }
}

/// Gone when dropped, and all that it holds; what comes in on the tap is dropped then, until the tap goes too.
struct Ifb {
    index: u32,
}

impl Ifb {
    fn new() -> Result<Self, String> {
        try_run("ip", &format!("link add ifb0 numtxqueues 1 txqueuelen {IFB_QUEUE_PACKETS} type ifb"))?;
        // SAFETY: a string that ends with a zero byte.
        let index = unsafe { libc::if_nametoindex(c"ifb0".as_ptr()) };
        assert_ne!(index, 0, "the ifb has vanished");
        Ok(Self { index })
    }
}

impl Drop for Ifb {
    fn drop(&mut self) {
        run("ip", "link del ifb0");
    }
}
