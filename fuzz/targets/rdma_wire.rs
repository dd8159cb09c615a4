//! The rdma fabric's bytes: preface, offer, answer and notes. What is taken can be said again in
//! the same bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use romulus_transport::rdma::wire::{
    decode_answer, decode_credits, decode_offer, decode_preface, encode_answer, encode_credits, encode_offer,
    encode_preface,
};

fuzz_target!(init: romulus_fuzz::seeds::write_if_asked(romulus_fuzz::seeds::rdma_items), |data: &[u8]| {
    // The first byte chooses the decoder, so that each has a corpus of its own.
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 4 {
        0 => {
            if let Ok(preface) = decode_preface(bytes) {
                assert_eq!(encode_preface(&preface), bytes);
            }
        }
        1 => {
            if let Ok(offer) = decode_offer(bytes) {
                assert_eq!(encode_offer(&offer), bytes);
            }
        }
        2 => {
            if let Ok(answer) = decode_answer(bytes) {
                assert_eq!(encode_answer(&answer), bytes);
            }
        }
        _ => {
            if let Ok(credits) = decode_credits(bytes) {
                assert_eq!(encode_credits(&credits), bytes);
            }
        }
    }
});
