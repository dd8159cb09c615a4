//! What the simulated network promises beyond the contract of every fabric.

use std::sync::Arc;
use std::time::Duration;

use super::{ConnectionId, Side, SimConfig, SimNetwork, Step};
use crate::error::CloseReason;
use crate::fabric::{Endpoint, Event, Fabric, MessageBuffer, RegionId, Write};
use crate::{Arena, Memory};

const NOW: Duration = Duration::ZERO;
const ID: ConnectionId = ConnectionId(1);

struct Pair {
    network: SimNetwork,
    primary: Arc<dyn Endpoint>,
    backup: Arc<dyn Endpoint>,
    source: Memory,
    target: Memory,
    region: RegionId,
}

fn pair(seed: u64, config: SimConfig) -> Pair {
    let network = SimNetwork::new(seed, config);
    let fabric = network.fabric();
    let mut listener = fabric.listen(([10, 0, 0, 1], 0).into()).unwrap();
    let mut initiator = fabric.connect(listener.local_address(), NOW).unwrap();
    let mut responder = listener.accept(NOW).unwrap().unwrap();
    let (source, target) = (Memory::anonymous(1 << 16), Memory::anonymous(1 << 16));
    let answer = responder.answer(&initiator.offer().unwrap(), Arena::new([target.clone()])).unwrap();
    let primary = initiator.establish(Some(&answer), NOW).unwrap();
    let backup = responder.establish(None, NOW).unwrap();
    let region = primary.register(source.clone()).unwrap();
    Pair { network, primary, backup, source, target, region }
}

impl Pair {
    fn write(&self, offset: u64, len_bytes: u64) {
        let write = Write { region: self.region, local_offset: offset, remote_offset: offset, len_bytes };
        self.primary.write(&[write]).unwrap();
    }

    fn bytes(memory: &Memory) -> Vec<u8> {
        let mut bytes = vec![0; memory.len_bytes()];
        memory.read(0, &mut bytes);
        bytes
    }
}

fn trace(seed: u64) -> Vec<Step> {
    let pair = pair(seed, SimConfig::default());
    for index in 0..16 {
        pair.write(index * 4096, 4096);
        pair.primary.mark(index + 1).unwrap();
        pair.backup.send(&[index as u8]).unwrap();
    }
    std::iter::repeat_with(|| pair.network.step()).take_while(|step| *step != Step::Idle).collect()
}

#[test]
fn a_seed_repeats_the_run_and_another_seed_does_not() {
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}

#[test]
fn memory_reused_before_completion_shows_as_corruption_and_after_it_does_not() {
    let mut corrupted = 0;
    for seed in 0..50 {
        let pair = pair(seed, SimConfig::default());
        pair.source.write(0, &[1; 4096]);
        pair.write(0, 4096);
        pair.primary.mark(1).unwrap();
        pair.network.step();
        let too_early = pair.primary.completed(1, NOW).unwrap() < 1;
        pair.source.write(0, &[2; 4096]);
        while pair.network.step() != Step::Idle {}
        assert_eq!(pair.primary.completed(1, NOW).unwrap(), 1);
        let intact = Pair::bytes(&pair.target)[..4096].iter().all(|byte| *byte == 1);
        assert!(intact || too_early, "seed {seed}: completed, yet the memory was read later");
        corrupted += usize::from(!intact);
    }
    assert!(corrupted > 0);
}

#[test]
fn a_marker_still_on_its_way_is_refused_and_free_again_after() {
    let pair = pair(4, SimConfig::default());
    pair.write(0, 4096);
    pair.primary.mark(7).unwrap();
    assert!(pair.primary.mark(7).is_err());
    assert_eq!(pair.primary.completed(7, NOW).unwrap(), 0);
    while pair.network.step() != Step::Idle {}
    assert_eq!(pair.primary.completed(7, NOW).unwrap(), 7);
    pair.primary.mark(7).unwrap();
}

#[test]
fn after_close_nothing_lands_whatever_is_on_its_way() {
    for seed in 0..50 {
        let pair = pair(seed, SimConfig::default());
        pair.source.write(0, &[7; 1 << 16]);
        for index in 0..16 {
            pair.write(index * 4096, 4096);
        }
        pair.primary.mark(1).unwrap();
        for _ in 0..seed {
            pair.network.step();
        }
        pair.backup.close();
        let frozen = Pair::bytes(&pair.target);
        while pair.network.step() != Step::Idle {}
        assert_eq!(Pair::bytes(&pair.target), frozen, "seed {seed}");
        let event = pair.backup.next_event(&mut MessageBuffer::default(), NOW).unwrap();
        assert_eq!(event, Event::Closed(CloseReason::Local));
    }
}

#[test]
fn a_fence_never_comes_before_its_writes_whatever_breaks() {
    let config = SimConfig { cut_per_million: 10_000, silence_per_million: 10_000, ..SimConfig::default() };
    let (mut fenced, mut broken) = (0, 0);
    for seed in 0..300 {
        let pair = pair(seed, config.clone());
        let mut message = MessageBuffer::default();
        for epoch in 1..=4u64 {
            let byte = epoch as u8;
            pair.source.write(epoch as usize * 4096, &[byte; 4096]);
            let offset = epoch * 4096;
            let write =
                Write { region: pair.region, local_offset: offset, remote_offset: offset, len_bytes: 4096 };
            if pair.primary.write(&[write]).is_err() || pair.primary.mark(epoch).is_err() {
                break;
            }
            if seed % 7 == 0 && epoch == 3 {
                pair.primary.close();
            }
        }
        let mut last = 0;
        loop {
            match pair.backup.next_event(&mut message, NOW).unwrap() {
                Event::Fenced { marker } => {
                    assert_eq!(marker, last + 1, "seed {seed}: markers come in order, none skipped");
                    last = marker;
                    let bytes = Pair::bytes(&pair.target);
                    let at = marker as usize * 4096;
                    assert!(bytes[at..at + 4096].iter().all(|byte| *byte == marker as u8), "seed {seed}");
                    fenced += 1;
                }
                Event::Closed(_) => {
                    broken += 1;
                    break;
                }
                Event::Idle if pair.network.step() == Step::Idle => {
                    assert_eq!(last, 4, "seed {seed}: an end without notice");
                    break;
                }
                _ => {}
            }
        }
    }
    assert!(fenced > 100 && broken > 20, "{fenced} fences, {broken} ends");
}

#[test]
fn a_frozen_side_is_silent_until_it_thaws() {
    let pair = pair(3, SimConfig::default());
    let mut message = MessageBuffer::default();
    pair.network.freeze(ID, Side::Initiator);
    pair.primary.send(b"late").unwrap();
    pair.backup.send(b"other way").unwrap();
    while pair.network.step() != Step::Idle {}
    assert_eq!(pair.backup.next_event(&mut message, NOW).unwrap(), Event::Idle);
    assert_eq!(pair.primary.next_event(&mut message, NOW).unwrap(), Event::Message);
    pair.network.thaw(ID, Side::Initiator);
    while pair.network.step() != Step::Idle {}
    assert_eq!(pair.backup.next_event(&mut message, NOW).unwrap(), Event::Message);
    assert_eq!(message.message(), b"late");
}

#[test]
fn each_side_notices_a_cut_at_its_own_time() {
    let (mut apart, mut lost) = (0, 0);
    for seed in 0..50 {
        let pair = pair(seed, SimConfig::default());
        pair.primary.send(b"on its way").unwrap();
        pair.network.cut(ID);
        let mut message = MessageBuffer::default();
        let mut noticed = Vec::new();
        let mut received = false;
        loop {
            match pair.network.step() {
                Step::Noticed { side, .. } => noticed.push(side),
                Step::Message { .. } => received = true,
                Step::Idle => break,
                _ => {}
            }
            if noticed.len() == 1 {
                apart += 1;
            }
        }
        noticed.sort_by_key(|side| *side as u8);
        assert_eq!(noticed, Side::BOTH);
        lost += usize::from(!received);
        let mut event = pair.backup.next_event(&mut message, NOW).unwrap();
        if received {
            assert_eq!(event, Event::Message, "what was received before the end comes before it");
            event = pair.backup.next_event(&mut message, NOW).unwrap();
        }
        assert!(matches!(event, Event::Closed(CloseReason::Failed(_))), "{event:?}");
        assert!(pair.primary.write(&[]).is_err());
    }
    assert!(apart > 0 && lost > 5 && lost < 45);
}
