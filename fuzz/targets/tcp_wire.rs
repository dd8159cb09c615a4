//! The tcp fabric's bytes: preface, frames, descriptors, offer and answer. What is taken can be
//! said again in the same bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use romulus_transport::tcp::wire::{
    decode_answer, decode_control_header, decode_data_header, decode_descriptor, decode_offer,
    decode_preface, encode_answer, encode_control_header, encode_data_header, encode_descriptor,
    encode_offer, encode_preface,
};

fuzz_target!(init: romulus_fuzz::seeds::write_if_asked(romulus_fuzz::seeds::tcp_items), |data: &[u8]| {
    // The first byte chooses the decoder, so that each has a corpus of its own.
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 6 {
        0 => {
            if let Ok(preface) = decode_preface(bytes) {
                assert_eq!(encode_preface(&preface), bytes);
            }
        }
        1 => {
            if let Ok(header) = decode_control_header(bytes, 4096) {
                assert!(header.len_bytes <= 4096);
                assert_eq!(encode_control_header(&header), bytes);
            }
        }
        2 => {
            if let Ok(header) = decode_data_header(bytes) {
                assert_eq!(encode_data_header(&header), bytes);
            }
        }
        3 => {
            if let Ok(descriptor) = decode_descriptor(bytes) {
                assert_eq!(encode_descriptor(&descriptor), bytes);
            }
        }
        4 => {
            if let Ok(offer) = decode_offer(bytes) {
                assert_eq!(encode_offer(&offer), bytes);
            }
        }
        _ => {
            if let Ok(answer) = decode_answer(bytes) {
                assert_eq!(encode_answer(&answer), bytes);
            }
        }
    }
});
