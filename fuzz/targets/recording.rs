//! Recordings of sessions: reading one ends, with records or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use romulus_checkpoint::wire::record::Reader;
use romulus_fuzz::seal_recording;

fn read(bytes: &[u8]) {
    let Ok(mut reader) = Reader::new(bytes) else { return };
    let mut payload_bytes = 0;
    while let Ok(Some(record)) = reader.next_record() {
        payload_bytes += record.payload.len();
    }
    assert!(payload_bytes <= bytes.len());
}

fuzz_target!(init: romulus_fuzz::seeds::write_if_asked(romulus_fuzz::seeds::recordings), |data: &[u8]| {
    read(data);
    let mut sealed = data.to_vec();
    seal_recording(&mut sealed);
    read(&sealed);
});
