//! A real QEMU as a guest: what is refused, what happens to it, and that it is left as found.

mod support;

use std::time::Duration;

use romulus_checkpoint::guest::{Guest, GuestEvent};
use romulus_qemu::discover::refusal::Allowances;
use romulus_qemu::qmp::Client;
use romulus_qemu::{GuestOptions, QemuError, QemuGuest, QemuHandle};
use romulus_transport::Memory;
use serde_json::json;
use support::{LONG, Place, Vm, eventually, machine};

const STATE_BYTES: usize = 4 << 20;

fn attach(vm: &Vm) -> Result<QemuGuest, QemuError> {
    QemuGuest::attach(GuestOptions::new(&vm.qmp))
}

fn refused(vm: &Vm) -> String {
    match attach(vm) {
        Err(QemuError::Refused(text)) => text,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("attached"),
    }
}

/// A firmware-only machine with words of its command replaced.
fn changed(from: &str, to: &str) -> Vm {
    changed_by(|_, word| word.replace(from, to))
}

fn changed_by(change: impl Fn(&Place, &str) -> String) -> Vm {
    let place = Place::new(support::GUEST_MIB);
    let serial = format!("file:{}", place.path("serial").display());
    let command = machine(support::GUEST_MIB, &place.ram.display().to_string(), &serial, false);
    let command: Vec<String> = command.iter().map(|word| change(&place, word)).collect();
    Vm::spawn(place, &command)
}

fn next_event(guest: &mut QemuGuest) -> GuestEvent {
    eventually("an event", || guest.poll_event())
}

#[test]
fn refuses_what_it_cannot_protect() {
    assert!(refused(&changed("share=on", "share=off")).contains("share=off"));
    let file =
        |place: &Place| format!("memory-backend-file,id=ram0,size=192M,mem-path={}", place.ram.display());
    let memfd =
        changed_by(|place, word| word.replace(&file(place), "memory-backend-memfd,id=ram0,size=192M"));
    assert!(refused(&memfd).contains("memfd"));
    let devices = Vm::start(false, &["-device", "virtio-balloon-pci,id=b0", "-vga", "std"]);
    let text = refused(&devices);
    assert!(text.contains("/machine/peripheral/b0") && text.contains("-vga none"), "{text}");
}

#[test]
fn disks_and_cards_need_leave() {
    let vm = Vm::start(
        false,
        &[
            "-drive",
            "driver=null-co,if=none,id=d0,node-name=n0",
            "-device",
            "virtio-blk-pci,drive=d0",
            "-netdev",
            "hubport,id=h0,hubid=0",
            "-device",
            "virtio-net-pci,netdev=h0",
        ],
    );
    let text = refused(&vm);
    assert!(text.contains("--allow-unreplicated-disk") && text.contains("network card"), "{text}");
    let mut options = GuestOptions::new(&vm.qmp);
    options.allowances = Allowances { unreplicated_disk: true, network: true };
    let guest = QemuGuest::attach(options).expect("allowed");
    let device = guest.machine().configuration.iter().find(|line| line.contains("] virtio-net-pci "));
    assert!(device.expect("a card").contains("mac=\"52:54:00:12:34:56\""));
}

#[test]
fn private_ram_is_refused_with_the_words_that_mend_it() {
    let place = Place::new(1);
    let words = "qemu-system-x86_64 -nodefaults -machine q35 -accel tcg -display none -vga none -m 64";
    let command: Vec<String> = words.split(' ').map(str::to_owned).collect();
    let text = refused(&Vm::spawn(place, &command));
    assert!(text.contains("private memory") && text.contains("memory-backend-file"), "{text}");
}

#[test]
fn wrong_sockets() {
    let place = Place::new(1);
    let nobody = QemuGuest::attach(GuestOptions::new(place.path("absent"))).err().expect("no socket");
    assert!(nobody.to_string().contains("-qmp unix:PATH"), "{nobody}");

    let vm = Vm::start(false, &[]);
    let _owner = vm.connect();
    let mut options = GuestOptions::new(&vm.qmp);
    options.command_timeout = Duration::from_millis(200);
    let second = QemuGuest::attach(options).err().expect("the monitor is taken");
    assert!(second.to_string().contains("another program"), "{second}");
}

#[test]
fn another_monitor_in_use_is_refused() {
    let vm = Vm::start(false, &["-qmp", "unix:{dir}/other,server=on,wait=off"]);
    let other = Client::connect(&vm.place.path("other"), LONG).expect("the other monitor");
    assert!(refused(&vm).contains("another program is connected"));
    drop(other);
    eventually("QEMU notices that it is free", || attach(&vm).ok());
}

#[test]
fn a_detached_guest_is_as_it_was() {
    let vm = Vm::start(false, &[]);
    let before = {
        let mut client = vm.connect();
        client.execute("query-migrate-capabilities", json!({})).expect("capabilities")
    };
    let mut guest = eventually("the monitor is free", || attach(&vm).ok());
    guest.start_tracking().expect("tracking");
    let state = Memory::anonymous(STATE_BYTES);
    let mut dirty = Vec::new();
    guest.pause().expect("pause");
    assert!(guest.save_state(&state).expect("state") > 1000);
    guest.collect(&mut dirty).expect("collect");
    guest.resume().expect("resume");
    assert!(!dirty.is_empty(), "the ROM region at least");
    guest.stop_tracking().expect("detach");
    guest.stop_tracking().expect("twice");
    drop(guest);
    let mut client = vm.connect();
    assert_eq!(client.execute("query-migrate-capabilities", json!({})).expect("capabilities"), before);
    assert_eq!(client.execute("query-fdsets", json!({})).expect("sets"), json!([]));
    assert_eq!(client.execute("query-status", json!({})).expect("status")["status"], "running");
}

#[test]
fn dropped_while_paused_the_guest_goes_on() {
    let vm = Vm::start(false, &[]);
    let mut guest = attach(&vm).expect("attach");
    guest.start_tracking().expect("tracking");
    guest.pause().expect("pause");
    drop(guest);
    let mut client = vm.connect();
    assert_eq!(client.execute("query-status", json!({})).expect("status")["status"], "running");
}

#[test]
fn a_state_beyond_its_bound_is_refused_and_the_guest_goes_on() {
    let vm = Vm::start(false, &[]);
    let mut options = GuestOptions::new(&vm.qmp);
    options.state_max_bytes = 8192;
    let mut guest = QemuGuest::attach(options).expect("attach");
    let error = guest.start_tracking().expect_err("the state is longer");
    assert!(error.to_string().contains("--state-kib"), "{error}");
    drop(guest);
    let mut client = vm.connect();
    assert_eq!(client.execute("query-status", json!({})).expect("status")["status"], "running");
}

#[test]
fn events_of_others_and_of_the_guest() {
    let vm = Vm::start(false, &["-qmp", "unix:{dir}/other,server=on,wait=off"]);
    let mut guest = attach(&vm).expect("attach");
    guest.start_tracking().expect("tracking");
    let mut other = Client::connect(&vm.place.path("other"), LONG).expect("the other monitor");
    let state = Memory::anonymous(STATE_BYTES);

    other.execute("system_reset", json!({})).expect("reset");
    assert_eq!(next_event(&mut guest), GuestEvent::Reset);
    guest.pause().expect("pause");
    guest.save_state(&state).expect("state after a reset");
    guest.resume().expect("resume");
    assert_eq!(guest.poll_event(), None, "our own pause is no event");

    other.execute("stop", json!({})).expect("stop");
    assert_eq!(next_event(&mut guest), GuestEvent::PausedByOthers(true));
    guest.pause().expect("pause");
    guest.resume().expect("resume");
    let status = other.execute("query-status", json!({})).expect("status");
    assert_eq!(status["status"], "paused", "what others paused is theirs to resume");
    other.execute("cont", json!({})).expect("cont");
    assert_eq!(next_event(&mut guest), GuestEvent::PausedByOthers(false));
}

#[test]
fn death_is_told_from_power_off() {
    let mut vm = Vm::start(false, &[]);
    let mut guest = attach(&vm).expect("attach");
    guest.start_tracking().expect("tracking");
    vm.kill();
    assert!(matches!(next_event(&mut guest), GuestEvent::Died(_)));
    assert!(matches!(guest.pause(), Err(romulus_checkpoint::guest::GuestError::Gone(_))));
    drop(guest);

    let line = "console=ttyS0 quiet panic=-1 romulus.check_mib=8 romulus.halt_after_s=1";
    let vm = Vm::start(true, &["-append", line]);
    let mut guest = attach(&vm).expect("attach");
    guest.start_tracking().expect("tracking");
    // The guest resets nothing on its way up: its power-off is the first that happens.
    assert_eq!(next_event(&mut guest), GuestEvent::Ended);
    let state = Memory::anonymous(STATE_BYTES);
    guest.pause().expect("the final epoch");
    guest.save_state(&state).expect("its state");
    guest.resume().expect("nothing to resume");
    assert_eq!(guest.poll_event(), None, "an end is told once");
}

#[test]
fn a_guard_resumes_and_destroys() {
    let mut vm = Vm::start(false, &[]);
    let mut client = vm.connect();
    client.execute("stop", json!({})).expect("stop");
    let on = json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]});
    client.execute("migrate-set-capabilities", on).expect("capability");
    drop(client);
    let mut handle = QemuHandle::new(&vm.qmp, vm.pid()).expect("handle");
    assert!(handle.alive());
    handle.resume_if_paused().expect("resume");
    handle.resume_if_paused().expect("again");
    handle.tidy().expect("tidy");
    let mut client = vm.connect();
    assert_eq!(client.execute("query-status", json!({})).expect("status")["status"], "running");
    let capabilities = client.execute("query-migrate-capabilities", json!({})).expect("capabilities");
    assert!(capabilities.as_array().expect("a list").iter().all(|entry| entry["state"] == false));
    handle.destroy().expect("destroy");
    handle.destroy().expect("again");
    assert!(!handle.alive() && !vm.is_alive());
}
