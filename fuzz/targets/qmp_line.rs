//! A line of QMP, which a QEMU that its guest has broken into may write at will.

#![no_main]

use libfuzzer_sys::fuzz_target;
use romulus_qemu::qmp::{Line, Reply, parse};

fuzz_target!(init: romulus_fuzz::seeds::write_if_asked(romulus_fuzz::seeds::qmp_lines), |data: &[u8]| {
    if let Ok(Line::Reply { reply: Reply::Returned(value), .. }) = parse(data) {
        // What is handed on is a part of the line, not made up.
        let (line, part) = (data.as_ptr_range(), value.as_bytes().as_ptr_range());
        assert!(line.start <= part.start && part.end <= line.end);
    }
});
