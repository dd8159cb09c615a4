//! A guest goes on in a second QEMU, on one machine and without a network: memory copied by what
//! dirty tracking reports, state loaded by the standby.

mod support;

use romulus_checkpoint::Extent;
use romulus_checkpoint::guest::Guest;
use romulus_checkpoint::standby::Standby;
use romulus_qemu::discover::refusal::Allowances;
use romulus_qemu::qmp::Client;
use romulus_qemu::{GuestOptions, QemuGuest, QemuStandby, SaveBy, StandbyOptions};
use romulus_transport::Memory;
use serde_json::json;
use support::{GUEST_MIB, LONG, Shadow, Vm, boots, eventually, machine, workload};

const STATE_BYTES: usize = 4 << 20;

/// One checkpoint into the shadow; the guest stays paused if it is the last.
fn checkpoint(guest: &mut QemuGuest, shadow: &Shadow, state: &Memory, last: bool) -> Vec<u8> {
    guest.pause().expect("pause");
    let length = usize::try_from(guest.save_state(state).expect("state")).expect("a length");
    let mut dirty: Vec<Extent> = Vec::new();
    guest.collect(&mut dirty).expect("dirty pages");
    shadow.copy(guest, &dirty);
    let mut bytes = vec![0; length];
    state.read(0, &mut bytes);
    if !last {
        guest.resume().expect("resume");
    }
    bytes
}

fn standby(shadow: &Shadow, more: &[&str]) -> QemuStandby {
    let mut command = machine(GUEST_MIB, "{image}", "file:{run}/../serial", true);
    command.extend(more.iter().map(|word| (*word).to_owned()));
    QemuStandby::new(StandbyOptions::new(command, shadow.place.path("run")))
}

fn takes_over(save_by: SaveBy, more: &[&str]) {
    let mut vm = Vm::start(true, more);
    eventually("the guest works", || workload(&vm.serial).filter(|(counter, _)| *counter > 3));
    let mut options = GuestOptions::new(&vm.qmp);
    options.save_by = save_by;
    options.allowances = Allowances { unreplicated_disk: true, network: true };
    let mut guest = QemuGuest::attach(options).expect("attach");
    let shadow = Shadow::of(guest.layout());
    let mut standby = standby(&shadow, more);
    let machine = standby.prepare(guest.layout(), &shadow.regions).expect("prepare");
    let theirs = &guest.machine().configuration;
    let differs: Vec<_> = machine.configuration.iter().filter(|line| !theirs.contains(line)).collect();
    assert!(differs.is_empty() && machine.configuration.len() == theirs.len(), "{differs:?}");

    guest.start_tracking().expect("tracking");
    shadow.copy_all(&guest);
    let state = Memory::anonymous(STATE_BYTES);
    for round in 0..30 {
        let bytes = checkpoint(&mut guest, &shadow, &state, false);
        if round == 10 {
            standby.trial(&bytes).expect("trial load");
            standby.check().expect("the prepared machine is untouched by the trial");
        }
    }
    let bytes = checkpoint(&mut guest, &shadow, &state, true);
    assert_eq!(shadow.difference(&guest), None, "dirty tracking missed a page");
    assert_eq!(guest.methods().0, if save_by == SaveBy::Auto { "devices" } else { "migration" });
    let (before, _) = workload(&vm.serial).expect("a counter");
    guest.destroy().expect("destroy");
    assert!(!vm.is_alive());

    standby.activate(&bytes).expect("activate");
    let serial = shadow.place.path("run/serial");
    let (after, corrupt) =
        eventually("the guest goes on", || workload(&serial).filter(|(counter, _)| *counter > before + 5));
    assert_eq!(corrupt, 0);
    assert!(after > before);

    // The firmware came along: a machine reset boots the guest anew.
    let active = standby.active().expect("an active guest").clone();
    println!("load {:?}, cont {:?}", active.load, active.resume);
    let mut client = Client::connect(&active.qmp, LONG).expect("QMP of the new guest");
    client.execute("system_reset", json!({})).expect("reset");
    eventually("the guest boots anew", || (boots(&serial) > 0).then_some(()));
    client.execute("quit", json!({})).expect("quit");
}

#[test]
fn by_devices_alone() {
    takes_over(SaveBy::Auto, &[]);
}

#[test]
fn by_migration() {
    takes_over(SaveBy::Migration, &[]);
}

#[test]
fn with_disk_network_and_two_vcpus() {
    let devices = "-smp 2 -device virtio-rng-pci,id=rng0 -drive driver=null-co,if=none,id=d0,size=1M -device \
                   virtio-blk-pci,drive=d0,id=disk0 -netdev user,id=u0,restrict=on -device \
                   virtio-net-pci,netdev=u0,id=nic0 -netdev hubport,id=h0,hubid=0 -device e1000,netdev=h0,id=nic1 \
                   -device virtio-serial-pci -chardev null,id=c0 -device virtserialport,chardev=c0";
    let words: Vec<&str> = devices.split_whitespace().collect();
    takes_over(SaveBy::Auto, &words);
}

#[test]
fn on_machine_pc() {
    takes_over(SaveBy::Auto, &["-machine", "pc"]);
}

#[test]
fn on_machine_microvm() {
    takes_over(SaveBy::Auto, &["-machine", "microvm,acpi=off"]);
}
