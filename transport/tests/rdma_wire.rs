//! Decoders of the rdma fabric: what was encoded comes back, and no bytes make them panic.

use proptest::prelude::*;
use romulus_transport::rdma::wire::*;

fn pair() -> impl Strategy<Value = Pair> {
    (0..=MAX_NUMBER, 0..=MAX_NUMBER).prop_map(|(number, psn)| Pair { number, psn })
}

fn common() -> impl Strategy<Value = Common> {
    let link = prop_oneof![Just(Link::InfiniBand), Just(Link::Ethernet)];
    let data = proptest::collection::vec(pair(), 1..=MAX_STREAMS);
    let head = (any::<u32>(), link, any::<u16>(), 8..=12u32);
    (head, any::<[u8; 16]>(), 1..=MAX_MESSAGE_RECEIVES, pair(), data).prop_map(
        |((heartbeat_every_us, link, lid, mtu), gid, message_receives, messages, data)| Common {
            heartbeat_every_us,
            link,
            lid,
            mtu_bytes: 1 << mtu,
            gid,
            message_receives,
            messages,
            data,
        },
    )
}

fn span() -> impl Strategy<Value = Span> {
    (1..1u64 << 40, 0..1u64 << 47, any::<u32>(), any::<bool>())
        .prop_map(|(len_bytes, address, key, begins_chunk)| Span { len_bytes, address, key, begins_chunk })
}

fn answer() -> impl Strategy<Value = Answer> {
    (common(), 1..=MAX_MARKERS, proptest::collection::vec(span(), 0..40)).prop_map(
        |(common, markers, mut spans)| {
            if let Some(first) = spans.first_mut() {
                first.begins_chunk = true;
            }
            Answer { common, markers, spans }
        },
    )
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_preface(&bytes);
        let _ = decode_offer(&bytes);
        let _ = decode_answer(&bytes);
        let _ = decode_credits(&bytes);
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
    fn what_is_cut_short_or_goes_on_is_refused(answer in answer(), cut in any::<prop::sample::Index>()) {
        let whole = encode_answer(&answer);
        prop_assert!(decode_answer(&whole[..cut.index(whole.len())]).is_err());
        prop_assert!(decode_answer(&[&whole[..], &[0]].concat()).is_err());
        let offer = encode_offer(&answer.common);
        prop_assert!(decode_offer(&offer[..cut.index(offer.len())]).is_err());
        prop_assert!(decode_offer(&[&offer[..], &[0]].concat()).is_err());
    }

    #[test]
    fn offers_answers_and_credits_come_back(answer in answer(), markers: u64, messages: u64) {
        prop_assert_eq!(decode_offer(&encode_offer(&answer.common)), Ok(answer.common.clone()));
        prop_assert_eq!(decode_answer(&encode_answer(&answer)), Ok(answer));
        let credits = Credits { markers, messages };
        prop_assert_eq!(decode_credits(&encode_credits(&credits)), Ok(credits));
    }
}

/// Makes an answer impossible.
type Spoil = Box<dyn Fn(&mut Answer)>;

fn sample() -> Answer {
    let pair = |number| Pair { number, psn: 0xabcdef };
    let common = Common {
        heartbeat_every_us: 20_000,
        link: Link::Ethernet,
        lid: 0,
        mtu_bytes: 1024,
        gid: [7; 16],
        message_receives: 64,
        messages: pair(17),
        data: vec![pair(18), pair(19)],
    };
    let span = |address, begins_chunk| Span { len_bytes: 4096, address, key: 9, begins_chunk };
    Answer { common, markers: 128, spans: vec![span(4096, true), span(8192, false)] }
}

#[test]
fn impossible_values_are_refused() {
    let refused: Vec<(&str, Spoil)> = vec![
        ("no data queue pairs", Box::new(|answer| answer.common.data.clear())),
        (
            "too many data queue pairs",
            Box::new(|answer| {
                answer.common.data = vec![answer.common.messages; MAX_STREAMS + 1];
            }),
        ),
        ("a queue pair of 25 bits", Box::new(|answer| answer.common.messages.number = MAX_NUMBER + 1)),
        ("a packet number of 25 bits", Box::new(|answer| answer.common.data[1].psn = MAX_NUMBER + 1)),
        ("an MTU of 128 bytes", Box::new(|answer| answer.common.mtu_bytes = 128)),
        ("an MTU of 8192 bytes", Box::new(|answer| answer.common.mtu_bytes = 8192)),
        ("no message receives", Box::new(|answer| answer.common.message_receives = 0)),
        (
            "too many message receives",
            Box::new(|answer| {
                answer.common.message_receives = MAX_MESSAGE_RECEIVES + 1;
            }),
        ),
        ("no markers", Box::new(|answer| answer.markers = 0)),
        ("too many markers", Box::new(|answer| answer.markers = MAX_MARKERS + 1)),
        ("an empty span", Box::new(|answer| answer.spans[1].len_bytes = 0)),
        ("a span that wraps around", Box::new(|answer| answer.spans[0].address = u64::MAX - 5)),
        (
            "an arena whose length overflows",
            Box::new(|answer| {
                answer.spans[0] = Span { len_bytes: u64::MAX, address: 0, ..answer.spans[0] };
            }),
        ),
        ("a first span that begins no chunk", Box::new(|answer| answer.spans[0].begins_chunk = false)),
        ("too many spans", Box::new(|answer| answer.spans = vec![answer.spans[0]; MAX_SPANS + 1])),
    ];
    assert!(decode_answer(&encode_answer(&sample())).is_ok());
    for (what, spoil) in refused {
        let mut answer = sample();
        spoil(&mut answer);
        assert!(decode_answer(&encode_answer(&answer)).is_err(), "{what}");
    }
}

#[test]
fn reserved_bytes_are_zero() {
    let answer = encode_answer(&sample());
    // Version, link layer, and the reserved bytes of the common part, the header and the spans.
    for at in [0, 1, 3, 11, 14, 15, 58, 59, 85, 86, 87] {
        let mut bytes = answer.clone();
        bytes[at] ^= 0x40;
        assert!(decode_answer(&bytes).is_err(), "byte {at}");
    }
    let note = encode_credits(&Credits { markers: 1, messages: 2 });
    for at in 0..8 {
        let mut bytes = note;
        bytes[at] ^= 0x40;
        assert!(decode_credits(&bytes).is_err(), "byte {at} of a note");
    }
    assert!(decode_preface(b"ROM-TCP\0\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").is_err());
}
