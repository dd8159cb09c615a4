//! A gate in a process of its own, which is killed or stopped.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use romulus_checkpoint::GateMark;
use romulus_checkpoint::gate::OutputGate;
use romulus_checkpoint::release::ReleaseToken;
use romulus_host::gate::{GuardedRedirect, INLET_QUEUE_PACKETS, NicSpec, RedirectGate, RedirectOptions};
use romulus_host::guard::GateHandle;
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{GUEST, LONG, World, acked, grant, listing};

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
        assert_eq!(word, "commit");
        gate.mark(GateMark(mark)).expect("a mark");
        gate.release(&acked(mark));
        println!("released");
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
        process.hear("held");
        process
    }

    fn hear(&mut self, expected: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), expected);
    }

    fn commit(&mut self) {
        writeln!(self.input, "commit").expect("it listens");
        self.hear("released");
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it lives");
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
    assert_eq!(listing(), before);
    // A guest that is gone for good takes its tap along.
    let mut process = GateProcess::start();
    process.kill();
    guarded.clear().unwrap();
    assert_eq!(listing(), before);
    drop(world);
    guarded.clear().unwrap();
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
    assert_eq!(listing(), before);
    // Also a protector that holds nothing this time.
    GateProcess::start().kill();
    let former = GuardedRedirect::new(vec![world.spec()]);
    OutputGate::claimed(&former, &grant()).unwrap();
    assert_eq!(listing(), before);
    world.send(5);
    world.expect([5]);
}

pub fn stopped() {
    let world = World::new();
    let mut process = GateProcess::start();
    world.send(0);
    process.commit();
    world.expect([0]);
    process.signal(Signal::STOP);
    // Each write to the tap returns at once, also when the gate's queue is full.
    let sent = 2 * u64::from(INLET_QUEUE_PACKETS);
    (1..sent).for_each(|number| world.send(number));
    process.signal(Signal::CONT);
    process.commit();
    // A queue's length (less what the kernel frees in batches) came through without a gap; what came
    // after it was dropped.
    for expected in 1..=u64::from(INLET_QUEUE_PACKETS) - 64 {
        assert_eq!(world.receive(LONG), Some(expected));
    }
    world.send(sent);
    process.commit();
    while world.receive(LONG).expect("the guest is heard again") != sent {}
    process.kill();
    GuardedRedirect::new(vec![world.spec()]).open(&grant()).unwrap();
}
