//! Commit slots: as for messages, over memory that the peer writes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use romulus_checkpoint::wire::slot;
use romulus_fuzz::{fit_slot, seal_slot, slot_identity};
use romulus_transport::Memory;

/// Reads a slot; one that is taken can be written again and is the same.
fn read(bytes: &[u8]) {
    let (identity, epoch) = slot_identity();
    let mut transfers = Vec::new();
    let memory = Memory::anonymous(bytes.len());
    memory.write(0, bytes);
    let Ok(header) = slot::decode(&memory, &identity, epoch, &mut transfers) else {
        assert!(transfers.is_empty());
        return;
    };
    assert_eq!(header.transfers, transfers.len() as u64);
    let state = slot::checksum(&memory, header.state_offset_bytes as usize, header.state_bytes as usize);
    let again = Memory::anonymous(bytes.len());
    slot::encode(&identity, epoch, &transfers, header.state_bytes, state, &again)
        .expect("what was taken can be written");
    let mut written = vec![0; header.state_offset_bytes as usize];
    again.read(0, &mut written);
    assert_eq!(bytes[..written.len()], written);
}

fuzz_target!(init: romulus_fuzz::seeds::write_if_asked(romulus_fuzz::seeds::slots), |data: &[u8]| {
    read(data);
    let mut changed = data.to_vec();
    seal_slot(&mut changed);
    read(&changed);
    fit_slot(&mut changed);
    read(&changed);
});
