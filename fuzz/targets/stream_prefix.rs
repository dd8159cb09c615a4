//! The migration stream of a guest, and the ROM record that a peer hands on: where a prefix is
//! found it lies inside, is found again alone, and goes through a record unchanged.

#![no_main]

use libfuzzer_sys::fuzz_target;
use romulus_qemu::stream::{RomRecord, devices_of_save, open_state, split, take_prefix};
use romulus_transport::Memory;

fuzz_target!(init: romulus_fuzz::seeds::write_if_asked(romulus_fuzz::seeds::streams), |data: &[u8]| {
    let _ = open_state(data);
    if let Ok(devices) = devices_of_save(data) {
        assert!(devices.len() <= data.len());
    }
    if let Ok((prefix, devices)) = split(data) {
        assert!(prefix.start == 0 && prefix.end == devices.start && devices.end <= data.len());
    }
    if let Ok((length, blocks)) = take_prefix(data) {
        let prefix = &data[..length];
        assert_eq!(take_prefix(prefix), Ok((length, blocks)));
        let mut record = RomRecord::with_room_for(length as u64);
        record.store(prefix).expect("there is room for it");
        assert_eq!(RomRecord::load(record.memory()).as_deref(), Ok(prefix));
    }
    let region = Memory::anonymous(data.len());
    region.write(0, data);
    let _ = RomRecord::load(&region);
});
