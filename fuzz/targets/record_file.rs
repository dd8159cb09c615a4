//! The file arbiter's record: what is read can be written, and reads the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use romulus_checkpoint::arbiter::record_file::{format, parse};

fuzz_target!(init: romulus_fuzz::seeds::write_if_asked(romulus_fuzz::seeds::record_files), |data: &[u8]| {
    if let Ok((guest, record)) = parse(data) {
        let bytes = format(&guest, &record).expect("what was read can be written");
        assert_eq!(parse(&bytes), Ok((guest, record)));
    }
});
