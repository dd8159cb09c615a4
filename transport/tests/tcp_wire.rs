//! Decoders of the tcp fabric: what was encoded comes back, and no bytes make them panic.

use proptest::prelude::*;
use romulus_transport::tcp::wire::*;

fn control_kind() -> impl Strategy<Value = ControlKind> {
    prop_oneof![Just(ControlKind::Message), Just(ControlKind::Heartbeat), Just(ControlKind::Goodbye)]
}

fn answer() -> impl Strategy<Value = Answer> {
    let chunks = proptest::collection::vec(0..1u64 << 40, 0..=MAX_CHUNKS);
    (1..=MAX_STREAMS, any::<u32>(), any::<Token>(), chunks).prop_map(
        |(streams, heartbeat_every_us, token, chunks_bytes)| Answer {
            streams,
            heartbeat_every_us,
            token,
            chunks_bytes,
        },
    )
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), limit in 0..100_000usize) {
        let _ = decode_preface(&bytes);
        let _ = decode_control_header(&bytes, limit);
        let _ = decode_data_header(&bytes);
        let _ = decode_descriptor(&bytes);
        let _ = decode_offer(&bytes);
        let _ = decode_answer(&bytes);
    }

    #[test]
    fn one_changed_byte_makes_no_decoder_panic(answer in answer(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = encode_answer(&answer);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(decoded) = decode_answer(&bytes) {
            prop_assert_eq!(encode_answer(&decoded), bytes, "one encoding for each answer");
        }
    }

    #[test]
    fn prefaces_come_back(stream in 0..MAX_STREAMS as u8, token: Token) {
        for preface in [Preface::Control, Preface::Data { stream, token }] {
            prop_assert_eq!(decode_preface(&encode_preface(&preface)), Ok(preface));
        }
    }

    #[test]
    fn control_headers_come_back_within_the_limit(kind in control_kind(), len_bytes in 0..70_000usize) {
        let len_bytes = if kind == ControlKind::Message { len_bytes } else { 0 };
        let header = ControlHeader { kind, len_bytes };
        let bytes = encode_control_header(&header);
        prop_assert_eq!(decode_control_header(&bytes, len_bytes), Ok(header));
        if len_bytes > 0 {
            prop_assert!(decode_control_header(&bytes, len_bytes - 1).is_err());
        }
    }

    #[test]
    fn data_headers_come_back(count in 1..=MAX_DESCRIPTORS, value in 1..u64::MAX) {
        for header in [DataHeader::Writes { count, payload_bytes: value }, DataHeader::Marker { marker: value }] {
            prop_assert_eq!(decode_data_header(&encode_data_header(&header)), Ok(header));
        }
    }

    #[test]
    fn descriptors_come_back(offset: u64, len_bytes in 1..=u32::MAX) {
        let descriptor = Descriptor { offset, len_bytes };
        prop_assert_eq!(decode_descriptor(&encode_descriptor(&descriptor)), Ok(descriptor));
    }

    #[test]
    fn offers_and_answers_come_back(answer in answer()) {
        prop_assert_eq!(decode_answer(&encode_answer(&answer)), Ok(answer.clone()));
        let offer = Offer { streams: answer.streams, heartbeat_every_us: answer.heartbeat_every_us };
        prop_assert_eq!(decode_offer(&encode_offer(&offer)), Ok(offer));
    }
}

#[test]
fn reserved_bytes_and_impossible_values_are_refused() {
    let control = encode_preface(&Preface::Control);
    for at in 0..PREFACE_BYTES {
        let mut bytes = control;
        bytes[at] ^= 0x80;
        assert!(decode_preface(&bytes).is_err(), "byte {at} of a preface");
    }
    assert!(
        decode_preface(&encode_preface(&Preface::Data { stream: MAX_STREAMS as u8, token: [0; 16] }))
            .is_err()
    );

    let marker = encode_data_header(&DataHeader::Marker { marker: 7 });
    for at in 0..8 {
        let mut bytes = marker;
        bytes[at] ^= 0x80;
        assert!(decode_data_header(&bytes).is_err(), "byte {at} of a marker");
    }
    let refused = [
        DataHeader::Marker { marker: 0 },
        DataHeader::Marker { marker: u64::MAX },
        DataHeader::Writes { count: 0, payload_bytes: 1 },
        DataHeader::Writes { count: 1, payload_bytes: 0 },
        DataHeader::Writes { count: MAX_DESCRIPTORS + 1, payload_bytes: 1 },
    ];
    for header in refused {
        assert!(decode_data_header(&encode_data_header(&header)).is_err(), "{header:?}");
    }
    assert!(decode_descriptor(&encode_descriptor(&Descriptor { offset: 1, len_bytes: 0 })).is_err());
    assert!(decode_offer(&encode_offer(&Offer { streams: 0, heartbeat_every_us: 1 })).is_err());
    assert!(decode_offer(&encode_offer(&Offer { streams: MAX_STREAMS + 1, heartbeat_every_us: 1 })).is_err());
    let answer =
        Answer { streams: 1, heartbeat_every_us: 1, token: [0; 16], chunks_bytes: vec![u64::MAX, 1] };
    assert!(decode_answer(&encode_answer(&answer)).is_err(), "an arena whose length overflows");
    let answer = Answer { chunks_bytes: vec![1; MAX_CHUNKS + 1], ..answer };
    assert!(decode_answer(&encode_answer(&answer)).is_err(), "too many chunks");
}
