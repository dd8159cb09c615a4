//! A gate in a process of its own, which is killed or stopped.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use romulus_checkpoint::GateMark;
use romulus_checkpoint::gate::OutputGate;
use romulus_checkpoint::release::ReleaseToken;
use romulus_host::gate::{
    GuardedRedirect, INLET_QUEUE_PACKETS, NicSpec, RedirectGate, RedirectOptions, VNET_HEADER_BYTES,
};
use romulus_host::guard::GateHandle;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::gate_lab::{GUEST, acked, run};
use crate::world::{LONG, World, expect_as_before, grant, listing, receive};

/// The first argument of the process.
pub const ROLE: &str = "be-the-gate";
const MOMENT: Duration = Duration::from_millis(100);

/// The process: holds the tap `guest0` and obeys single words.
pub fn be_the_gate() {
    let spec = NicSpec { nic: "net0".into(), tap: "guest0".into(), mac: GUEST };
    let gate = RedirectGate::new(&[spec], &RedirectOptions::default()).expect("a gate");
    gate.hold().expect("holding");
    println!("held");
    for (word, mark) in std::io::stdin().lines().map_while(Result::ok).zip(1..) {
        match word.as_str() {
            "commit" => {
                gate.mark(GateMark(mark)).expect("a mark");
                gate.release(&acked(mark));
                println!("released");
            }
            "status" => println!("{}", gate.status()[0].dropped_packets),
            other => panic!("no word of this process: {other}"),
        }
    }
}

struct GateProcess {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl GateProcess {
    /// Starts it in this thread's network namespace; it holds on return.
    fn start() -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .arg(ROLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs again");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut process = Self { child, input, output };
        assert_eq!(process.hear(), "held");
        process
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        line.trim().to_owned()
    }

    fn commit(&mut self) {
        writeln!(self.input, "commit").expect("it listens");
        assert_eq!(self.hear(), "released");
    }

    /// Packets that were dropped since it was stopped.
    fn dropped(&mut self) -> u64 {
        writeln!(self.input, "status").expect("it listens");
        self.hear().parse().expect("a number")
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// On return none of its threads runs.
    fn stop(&self) {
        kill_process(self.pid(), Signal::STOP).expect("it lives");
        let stopped = waitid(WaitId::Pid(self.pid()), WaitIdOptions::STOPPED).expect("it is a child");
        assert!(stopped.is_some_and(|status| status.stopped()), "it is stopped");
    }

    fn go_on(&self) {
        kill_process(self.pid(), Signal::CONT).expect("it lives");
    }

    /// Does something that must come to an end whatever this process does; if it does not, all tests end with
    /// an error, since a thread that the kernel holds cannot be ended.
    fn watched(&self, what: &'static str, body: impl FnOnce()) {
        let (ends, over) = channel::<()>();
        let pid = self.pid();
        let watchdog = std::thread::spawn(move || {
            if over.recv_timeout(LONG) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{what}: still not done after {LONG:?}");
                let _ = kill_process(pid, Signal::KILL);
                std::process::exit(101);
            }
        });
        body();
        drop(ends);
        watchdog.join().expect("the watchdog");
    }

    fn kill(&mut self) {
        self.child.kill().expect("it lives");
        self.child.wait().expect("it ends");
    }
}

impl Drop for GateProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn killed() {
    let world = World::new();
    let before = listing();
    let mut process = GateProcess::start();
    world.send(1);
    process.commit();
    world.expect([1]);
    world.send(2);
    process.kill();
    (3..100).for_each(|number| world.send(number));
    assert_eq!(world.receive(MOMENT), None, "what a dead gate held, and what comes after, goes nowhere");
    // The guard, with the grant, twice as it may.
    let mut guarded = GuardedRedirect::new(vec![world.spec()]);
    guarded.open(&grant()).unwrap();
    guarded.open(&grant()).unwrap();
    world.send(100);
    world.expect([100]);
    expect_as_before(&before);
    // A guest that is gone for good takes its tap along.
    let mut process = GateProcess::start();
    process.kill();
    guarded.clear().unwrap();
    expect_as_before(&before);
    // A guard that died at it has put back some of the settings, and the next one begins again.
    GateProcess::start().kill();
    run("bridge", "fdb del 52:54:00:12:34:56 dev guest0 master");
    guarded.clear().unwrap();
    expect_as_before(&before);
    // The tap takes with it all that the gate had set.
    GateProcess::start().kill();
    assert!(listing().contains("52:54:00:12:34:56"));
    drop(world);
    guarded.clear().unwrap();
    assert!(!listing().contains("52:54:00:12:34:56"));
}

pub fn second() {
    let world = World::new();
    let before = listing();
    GateProcess::start().kill();
    world.send(1);
    let gate = world.gate();
    world.send(2);
    assert_eq!(world.receive(MOMENT), None, "before the record is claimed it stays closed");
    gate.claimed(&grant()).unwrap();
    world.send(3);
    world.expect([3]);
    gate.hold().unwrap();
    world.send(4);
    assert_eq!(world.receive(MOMENT), None);
    gate.mark(GateMark(1)).unwrap();
    gate.release(&acked(1));
    world.expect([4]);
    gate.release(&ReleaseToken::solo(&grant()));
    gate.detach().unwrap();
    drop(gate);
    expect_as_before(&before);
    // Also a protector that holds nothing this time.
    GateProcess::start().kill();
    let former = GuardedRedirect::new(vec![world.spec()]);
    OutputGate::claimed(&former, &grant()).unwrap();
    expect_as_before(&before);
    world.send(5);
    world.expect([5]);
}

/// How long it is stopped makes no difference; that its queue is full does.
pub fn stopped() {
    let world = World::new();
    let mut process = GateProcess::start();
    world.send(0);
    process.commit();
    world.expect([0]);
    process.stop();
    // As a back end that waits where it has to: each write returns, also when the gate's queue is full.
    let queue = u64::from(INLET_QUEUE_PACKETS);
    let (full, sent) = (2 * queue, 3 * queue);
    fcntl_setfl(&world.guest, OFlags::RDWR).unwrap();
    process.watched("the guest's writes", || (1..full).for_each(|number| world.send(number)));
    // As one that does not wait: the kernel takes each frame.
    fcntl_setfl(&world.guest, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
    (full..=sent).for_each(|number| world.send(number));
    // What comes to the guest does so meanwhile, and nothing that it sent leaves.
    for number in 0..100 {
        assert!(world.client.write(&to_guest(number)).unwrap());
        assert_eq!(receive(&world.guest, VNET_HEADER_BYTES, LONG), Some(number));
    }
    assert_eq!(world.receive(MOMENT), None, "nothing leaves a stopped gate");
    process.go_on();
    let dropped = process.dropped();
    assert_eq!(world.receive(MOMENT), None, "nothing is acked");
    // A queue's length (less what the kernel frees in batches) is there without a gap; what came after it
    // was dropped, and counted.
    process.commit();
    let kept = sent - dropped;
    assert!(
        (queue - 64..=queue).contains(&kept),
        "{dropped} of {sent} were dropped, and the queue has {queue}"
    );
    for expected in 1..=kept {
        assert_eq!(world.receive(LONG), Some(expected));
    }
    world.expect([]);
    world.send(sent + 1);
    assert_eq!(world.receive(MOMENT), None, "it holds as before");
    process.commit();
    world.expect([sent + 1]);
    assert_eq!(process.dropped(), dropped);
    process.kill();
    GuardedRedirect::new(vec![world.spec()]).open(&grant()).unwrap();
}

/// A frame for the guest.
fn to_guest(number: u64) -> Vec<u8> {
    let mut frame = GUEST.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    frame.resize(60, 0);
    frame
}
