//! Control messages: no bytes make the decoder panic or allocate without limit, also behind a
//! header whose checksums are right; what is taken can be said again and means the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use romulus_checkpoint::wire::message::{decode, encode};
use romulus_fuzz::seal_message;

fuzz_target!(init: romulus_fuzz::seeds::write_if_asked(romulus_fuzz::seeds::messages), |data: &[u8]| {
    let _ = decode(data);
    let mut sealed = data.to_vec();
    if !seal_message(&mut sealed) {
        return;
    }
    if let Ok((identity, message)) = decode(&sealed) {
        let mut again = Vec::new();
        encode(&identity, &message, &mut again);
        let (identity_again, message_again) = decode(&again).expect("what was taken can be said");
        assert_eq!((identity, message), (identity_again, message_again));
    }
});
