//! What a peer says of a Xen domain: an epoch's state, the description in the handshake, and the
//! configuration that its standby is built from. What is taken can be said again and is taken again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use romulus_checkpoint::wire::message::MachineIdentity;
use romulus_xen::machine::Machine;
use romulus_xen::records::{BesideContext, EpochState, RecordError, write_epoch_state};
use romulus_xen::standby::{SUFFIX, StandbyAllowances, StandbyConfig};

fuzz_target!(init: romulus_fuzz::seeds::write_if_asked(romulus_fuzz::seeds::xen_guests), |data: &[u8]| {
    // The first byte chooses the decoder, so that each has a corpus of its own.
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 4 {
        0 => state(bytes),
        1 => description(bytes),
        2 => configuration(bytes, StandbyAllowances { disks: false }),
        _ => configuration(bytes, StandbyAllowances { disks: true }),
    }
});

fn state(bytes: &[u8]) {
    let Ok(state) = EpochState::read(bytes) else { return };
    // Optional records are skipped, so that what is written is no longer than what was read; a
    // writer wants room for padding.
    let mut again = vec![0; bytes.len() + 8];
    let rest = BesideContext { tsc: state.tsc, params: &state.params, device_model: state.device_model };
    let length = write_epoch_state::<RecordError>(&mut again, rest, |into| {
        into[..state.context.len()].copy_from_slice(state.context);
        Ok(state.context.len())
    });
    let length = length.expect("there is room for it");
    assert_eq!(EpochState::read(&again[..length]), Ok(state));
}

fn description(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut lines = text.split('\n').map(str::to_owned);
    let hypervisor = lines.next().unwrap_or_default();
    let identity = MachineIdentity { hypervisor, configuration: lines.collect() };
    let Ok(machine) = Machine::of_identity(&identity) else { return };
    let again = machine.identity().expect("it is no longer than what was read");
    assert_eq!(Machine::of_identity(&again).expect("its own words"), machine);
}

fn configuration(bytes: &[u8], may_have: StandbyAllowances) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(standby) = StandbyConfig::of_guest(text, may_have) else { return };
    assert_eq!(standby.name, format!("{}{SUFFIX}", standby.guest));
    // What xl gets is as harmless as what was looked at.
    match StandbyConfig::of_guest(&standby.json, may_have) {
        Ok(again) => assert_eq!(again.guest, standby.name),
        Err(why) => assert!(why.contains("its name"), "{why}: {}", standby.json),
    }
}
