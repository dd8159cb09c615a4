//! What a guest sends: held inside QEMU until its epoch is acked, and announced from the standby
//! only once it has become the guest. The back end is a UDP socket, so that each frame is a datagram.

mod support;

use std::net::UdpSocket;
use std::time::Duration;

use romulus_checkpoint::arbiter::{Ownership, Record, SoloGrant, solo_grant};
use romulus_checkpoint::gate::OutputGate;
use romulus_checkpoint::guest::Guest;
use romulus_checkpoint::release::ReleaseToken;
use romulus_checkpoint::standby::Standby;
use romulus_checkpoint::wire::AckProof;
use romulus_checkpoint::wire::message::{Message, decode, encode};
use romulus_checkpoint::{Epoch, GateMark, Generation, HomingSequence, Identity};
use romulus_host::gate::{NicSpec, RedirectGate, RedirectOptions};
use romulus_qemu::gates::{CardGate, GateChoices, objects_of};
use romulus_qemu::qmp::Client;
use romulus_qemu::{GuestOptions, QemuGuest, QemuHandle, QemuStandby, StandbyOptions};
use romulus_transport::Memory;
use serde_json::json;
use support::{GUEST_MIB, LONG, Shadow, Vm, eventually, machine};

/// Long enough that a frame which is not held would have come.
const MOMENT: Duration = Duration::from_millis(150);
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Reverse ARP: what QEMU announces with.
const RARP: [u8; 2] = [0x80, 0x35];

/// The other end of a card's cable.
struct Wire {
    socket: UdpSocket,
    arguments: Vec<String>,
}

impl Wire {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let theirs = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let port = |socket: &UdpSocket| socket.local_addr().expect("an address").port();
        let back =
            format!("socket,id=n0,udp=127.0.0.1:{},localaddr=127.0.0.1:{}", port(&socket), port(&theirs));
        // Without a boot ROM the firmware sends nothing.
        let card = "virtio-net-pci,netdev=n0,id=net0,mac=52:54:00:12:34:56,romfile=";
        let arguments = ["-netdev", &back, "-device", card].map(String::from).to_vec();
        Self { socket, arguments }
    }

    /// How many announcements come until there is silence for `patience`.
    fn announcements(&self, most: usize, patience: Duration) -> usize {
        self.socket.set_read_timeout(Some(patience)).expect("a timeout");
        let mut frame = [0; 2048];
        let mut count = 0;
        while count < most {
            let Ok(length) = self.socket.recv(&mut frame) else { break };
            if length >= 14 && frame[12..14] == RARP {
                assert_eq!(frame[6..12], MAC, "the guest's address");
                count += 1;
            }
        }
        count
    }

    fn expect(&self, count: usize) {
        assert_eq!(self.announcements(count, LONG), count);
    }

    fn expect_silence(&self) {
        assert_eq!(self.announcements(1, MOMENT), 0, "a frame was not held");
    }
}

fn grant() -> SoloGrant {
    let ownership = Ownership::Solo { primary: "here".into() };
    solo_grant(&Record { ownership, generation: Generation(1), nonce: 1 }, "here").expect("a grant")
}

fn acked(through: u64) -> ReleaseToken {
    let proof = AckProof::outgoing();
    let ack = Message::Ack { committed: Epoch(through), homed_through: HomingSequence(0), proof };
    let mut bytes = Vec::new();
    encode(&Identity::default(), &ack, &mut bytes);
    match decode(&bytes) {
        Ok((_, Message::Ack { proof, .. })) => {
            ReleaseToken::acked(GateMark(through), &proof).expect("decoded")
        }
        other => panic!("an Ack stays an Ack: {other:?}"),
    }
}

fn attach(vm: &Vm) -> QemuGuest {
    let mut options = GuestOptions::new(&vm.qmp);
    options.gates = Some(GateChoices::default());
    QemuGuest::attach(options).expect("attach")
}

/// One checkpoint as the driver makes it; gives the state.
fn checkpoint(guest: &mut QemuGuest, gate: &dyn OutputGate, mark: u64) -> Vec<u8> {
    let state = Memory::anonymous(4 << 20);
    guest.pause().expect("pause");
    gate.mark(GateMark(mark)).expect("a mark");
    let length = guest.save_state(&state).expect("state");
    guest.collect(&mut Vec::new()).expect("dirty pages");
    guest.resume().expect("resume");
    let mut bytes = vec![0; usize::try_from(length).expect("a length")];
    state.read(0, &mut bytes);
    bytes
}

/// The guest's card sends one frame.
fn send(monitor: &mut Client) {
    let once = json!({"initial": 1, "max": 1, "rounds": 1, "step": 1});
    monitor.execute("announce-self", once).expect("announce-self");
}

#[test]
fn i1_qemu_holds_a_cards_packets_until_their_epoch_is_acked() {
    let wire = Wire::new();
    let mut more = wire.arguments.clone();
    more.extend(["-qmp", "unix:{dir}/second,server=on,wait=off"].map(String::from));
    let vm = Vm::start(false, &more.iter().map(String::as_str).collect::<Vec<_>>());
    let mut guest = attach(&vm);
    assert!(matches!(guest.gates(), [CardGate::Buffer(card)] if card.netdev == "n0" && card.nic == "net0"));
    let gate = guest.buffers();
    let second = vm.place.path("second");
    let mut monitor = Client::connect(&second, LONG).expect("the second monitor");
    gate.claimed(&grant()).expect("claimed");
    guest.poll_event();
    guest.start_tracking().expect("tracking");
    gate.hold().expect("hold");

    send(&mut monitor);
    wire.expect(1); // before the first epoch's end: what it sends is covered by the first image
    checkpoint(&mut guest, &gate, 1);
    send(&mut monitor);
    wire.expect_silence();
    checkpoint(&mut guest, &gate, 2);
    send(&mut monitor);
    send(&mut monitor);
    gate.release(&acked(1));
    guest.poll_event();
    wire.expect_silence();
    gate.release(&acked(2));
    guest.poll_event();
    wire.expect(1);
    wire.expect_silence();
    // Two marks share the second buffer: the newer ack releases both.
    checkpoint(&mut guest, &gate, 3);
    send(&mut monitor);
    checkpoint(&mut guest, &gate, 4);
    gate.release(&acked(3));
    guest.poll_event();
    wire.expect_silence();
    gate.release(&acked(4));
    guest.poll_event();
    wire.expect(3);
    assert!(gate.status()[0].holding);

    // The grant to go on alone opens it, and what was held leaves.
    send(&mut monitor);
    wire.expect_silence();
    gate.release(&ReleaseToken::solo(&grant()));
    guest.poll_event();
    wire.expect(1);
    assert!(buffers(&mut monitor).is_empty());

    // A protector that is gone leaves it held; its guard lets it go.
    gate.hold().expect("hold");
    checkpoint(&mut guest, &gate, 5);
    send(&mut monitor);
    wire.expect_silence();
    assert_eq!(buffers(&mut monitor).len(), 2);
    drop(monitor);
    let mut handle = QemuHandle::new(&second, guest.pid()).expect("a handle");
    handle.open_buffers(&["n0".to_owned()]).expect("opening");
    wire.expect(1);
    let mut monitor = Client::connect(&second, LONG).expect("the second monitor");
    assert!(buffers(&mut monitor).is_empty());
}

#[test]
fn i1_a_cards_packets_are_held_over_a_hub_that_it_has_for_itself() {
    let wire = Wire::new();
    let back = wire.arguments[1].replace(",id=n0", "");
    let card = "nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56";
    let second = "unix:{dir}/second,server=on,wait=off";
    let vm = Vm::start(false, &["-net", &back, "-net", card, "-qmp", second]);
    let mut guest = attach(&vm);
    assert!(matches!(guest.gates(), [CardGate::Buffer(card)] if card.kind == "socket"));
    let gate = guest.buffers();
    guest.start_tracking().expect("tracking");
    gate.hold().expect("hold");
    checkpoint(&mut guest, &gate, 1);
    send(&mut Client::connect(&vm.place.path("second"), LONG).expect("the second monitor"));
    wire.expect_silence();
    checkpoint(&mut guest, &gate, 2);
    gate.release(&acked(2));
    guest.poll_event();
    wire.expect(1);
}

#[test]
fn i1_cards_that_share_a_hub_are_refused() {
    let wire = Wire::new();
    let back = wire.arguments[1].replace(",id=n0", "");
    let nic = "nic,model=virtio-net-pci";
    let vm = Vm::start(false, &["-net", &back, "-net", nic, "-net", nic]);
    let mut options = GuestOptions::new(&vm.qmp);
    options.gates = Some(GateChoices::default());
    let error = QemuGuest::attach(options).err().expect("nobody knows whose output comes out of the hub");
    assert!(error.to_string().contains("shares hub 0"), "{error}");
}

#[test]
fn i7_firmware_that_changed_is_not_lost_when_the_mark_behind_its_save_fails() {
    let wire = Wire::new();
    let mut more = wire.arguments.clone();
    more.extend(["-qmp", "unix:{dir}/second,server=on,wait=off"].map(String::from));
    let vm = Vm::start(false, &more.iter().map(String::as_str).collect::<Vec<_>>());
    let mut guest = attach(&vm);
    let gate = guest.buffers();
    let mut monitor = Client::connect(&vm.place.path("second"), LONG).expect("the second monitor");
    guest.start_tracking().expect("tracking");
    gate.hold().expect("hold");
    checkpoint(&mut guest, &gate, 1);
    // As after an update of the firmware's tables: the record holds another byte than QEMU.
    let rom = guest.memory().last().expect("the ROM region").clone();
    rom.write(4096, &[0x5a; 16]);
    monitor.execute("system_reset", json!({})).expect("reset");
    eventually("the reset is told", || guest.poll_event());
    let [first, _] = objects_of("n0");
    monitor.execute("object-del", json!({"id": first})).expect("the first buffer goes");
    let state = Memory::anonymous(4 << 20);
    guest.pause().expect("pause");
    gate.mark(GateMark(2)).expect("a mark");
    guest.save_state(&state).expect_err("the first buffer is gone");
    guest.resume().expect("resume");

    let buffer =
        json!({"qom-type": "filter-buffer", "id": first, "netdev": "n0", "interval": 4_000_000_000u32});
    monitor.execute("object-add", buffer).expect("a buffer");
    let mut dirty = Vec::new();
    guest.pause().expect("pause");
    gate.mark(GateMark(3)).expect("a mark");
    guest.save_state(&state).expect("state");
    guest.collect(&mut dirty).expect("dirty pages");
    guest.resume().expect("resume");
    let regions = &guest.layout().regions;
    let rom_first: u64 = regions[..regions.len() - 1].iter().map(|region| region.pages).sum();
    assert!(dirty.iter().any(|extent| extent.first.0 == rom_first), "{dirty:?}");
}

#[test]
fn i8_output_that_qemu_does_not_let_go_is_told() {
    let wire = Wire::new();
    let vm = Vm::start(false, &wire.arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let mut options = GuestOptions::new(&vm.qmp);
    options.gates = Some(GateChoices::default());
    options.command_timeout = Duration::from_secs(1);
    let mut guest = QemuGuest::attach(options).expect("attach");
    let gate = guest.buffers();
    guest.start_tracking().expect("tracking");
    gate.hold().expect("hold");
    checkpoint(&mut guest, &gate, 1);
    gate.release(&ReleaseToken::solo(&grant()));
    let qemu = rustix::process::Pid::from_raw(vm.pid()).expect("a process");
    rustix::process::kill_process(qemu, rustix::process::Signal::STOP).expect("stopped");
    let error = guest.stop_tracking().expect_err("it answers nothing");
    assert!(error.to_string().contains("the output that QEMU holds"), "{error}");
    rustix::process::kill_process(qemu, rustix::process::Signal::CONT).expect("it goes on");
    eventually("the output leaves", || guest.stop_tracking().ok());
    drop(guest);
    let mut monitor = eventually("the monitor is free", || Client::connect(&vm.qmp, LONG).ok());
    assert!(buffers(&mut monitor).is_empty());
}

fn buffers(monitor: &mut Client) -> Vec<String> {
    let objects = monitor.execute("qom-list", json!({"path": "/objects"})).expect("objects");
    let names = objects.as_array().into_iter().flatten().filter_map(|object| object["name"].as_str());
    names.filter(|name| name.starts_with("romulus-gate")).map(str::to_owned).collect()
}

#[test]
fn a_standby_announces_the_guest_once_it_has_become_it_and_not_before() {
    let (wire, standby_wire) = (Wire::new(), Wire::new());
    let more: Vec<&str> = wire.arguments.iter().map(String::as_str).collect();
    let vm = Vm::start(false, &more);
    let mut guest = attach(&vm);
    let gate = guest.buffers();
    guest.start_tracking().expect("tracking");
    let shadow = Shadow::of(guest.layout());
    let mut command = machine(GUEST_MIB, "{image}", "null", false);
    command.extend(standby_wire.arguments.iter().cloned());
    let mut standby = QemuStandby::new(StandbyOptions::new(command, shadow.place.path("run")));
    standby.prepare(guest.layout(), &shadow.regions).expect("prepare");
    shadow.copy_all(&guest);
    let state = checkpoint(&mut guest, &gate, 1);
    standby.trial(&state).expect("trial load");
    standby_wire.expect_silence();
    standby.check().expect("it stands ready");
    shadow.copy_all(&guest);
    guest.destroy().expect("destroy");
    standby.activate(&state).expect("activate");
    // QEMU's own five rounds, and ours, which go on for longer.
    standby_wire.expect(10);
    let active = standby.active().expect("an active guest").clone();
    let mut client = Client::connect(&active.qmp, LONG).expect("QMP of the new guest");
    client.execute("quit", json!({})).expect("quit");
}

/// Runs a command in this thread's network namespace.
fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let program = words.next().expect("a program");
    let output = std::process::Command::new(program).args(words).output().expect("Debian's iproute2");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_filter_that_a_former_gate_left_on_the_tap_goes_when_the_guest_comes() {
    // SAFETY: changes the network namespace of this thread alone, which nobody else runs on.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("root");
    run("ip link set lo up");
    run("ip link add br0 up type bridge");
    run("ip tuntap add dev rtap0 mode tap vnet_hdr");
    run("ip link set rtap0 master br0 up");
    // Dropped without being detached, as with its process.
    let spec = NicSpec { nic: "net0".into(), tap: "rtap0".into(), mac: MAC };
    let former = RedirectGate::new(&[spec], &RedirectOptions::default()).expect("a gate");
    former.hold().expect("holding");
    drop(former);
    let has_filter = || run("tc qdisc show dev rtap0").contains("clsact");

    let wire = Wire::new();
    let more: Vec<&str> = wire.arguments.iter().map(String::as_str).collect();
    let vm = Vm::start(false, &more);
    let mut guest = attach(&vm);
    let gate = guest.buffers();
    guest.start_tracking().expect("tracking");
    let shadow = Shadow::of(guest.layout());
    let mut command = machine(GUEST_MIB, "{image}", "null", false);
    let card = wire.arguments.last().expect("a card").clone();
    let tap = "tap,id=n0,ifname=rtap0,script=no,downscript=no".to_owned();
    command.extend(["-netdev".to_owned(), tap, "-device".to_owned(), card]);
    let mut standby = QemuStandby::new(StandbyOptions::new(command, shadow.place.path("run")));
    standby.prepare(guest.layout(), &shadow.regions).expect("prepare");
    shadow.copy_all(&guest);
    let state = checkpoint(&mut guest, &gate, 1);
    standby.trial(&state).expect("trial load");
    assert!(has_filter(), "nothing is touched before the guest is this host's");
    shadow.copy_all(&guest);
    guest.destroy().expect("destroy");
    standby.activate(&state).expect("activate");
    assert!(!has_filter());
    let active = standby.active().expect("an active guest").clone();
    let mut client = Client::connect(&active.qmp, LONG).expect("QMP of the new guest");
    client.execute("quit", json!({})).expect("quit");
}
