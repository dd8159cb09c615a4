//! Recordings, read back here and by the independent reader `scripts/verify_protocol.py`.

mod synthetic_session;
mod verifier;

use std::path::Path;

use romulus_checkpoint::wire::message::{self, Message};
use romulus_checkpoint::wire::record::{Reader, Record, RecordKind, Recorder, Role};
use romulus_checkpoint::{ConnectionNumber, Epoch, HomingSequence, Incarnation, PageIndex};
use romulus_transport::Memory;
use synthetic_session::Session;
use verifier::verify;

fn read_all(path: &Path) -> (Role, Vec<Record>) {
    let file = std::fs::File::open(path).unwrap();
    let mut reader = Reader::new(std::io::BufReader::new(file)).unwrap();
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        records.push(record);
    }
    (reader.role(), records)
}

/// Writes records as a recorder would, whatever they say.
fn write_all(path: &Path, role: Role, records: &[Record]) {
    let mut bytes = b"RMLR\x01\x00".to_vec();
    bytes.extend([if role == Role::Primary { 1u8 } else { 2 }, 0, 0, 0, 0, 0]);
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    for record in records {
        let start = bytes.len();
        bytes.extend((record.kind as u16 + 1).to_le_bytes());
        bytes.extend([0, 0]);
        bytes.extend((record.payload.len() as u32).to_le_bytes());
        bytes.extend(record.time_ns.to_le_bytes());
        bytes.extend(crc32fast::hash(&record.payload).to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes[start..start + 20]).to_le_bytes());
        bytes.extend(&record.payload);
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn recorded_sessions_obey_the_protocol_on_both_hosts() {
    let mut homings = 0;
    let mut stalls = 0;
    for seed in 0..6 {
        let directory = tempfile::tempdir().unwrap();
        let session = Session::new(directory.path(), seed).play(120);
        homings += session.homings;
        stalls += session.stalls;
        drop(session);
        let recordings = ["primary.rec", "backup.rec"].map(|name| directory.path().join(name));
        for (good, report) in verify(&recordings) {
            assert!(good, "seed {seed}: {report}");
        }
    }
    // The sessions went through what they are to check.
    assert!(homings > 100 && stalls > 10, "{homings} homings, {stalls} stalls");
}

#[test]
fn a_recording_reads_back_as_it_was_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("primary.rec");
    let recorder = Recorder::create(&path, Role::Primary, 1 << 20).unwrap();
    recorder.connected(ConnectionNumber(3));
    recorder.sent(b"one");
    recorder.received(b"");
    recorder.marker(9);
    recorder.slot(&Memory::anonymous(64));
    recorder.disconnected();
    drop(recorder);
    let (role, records) = read_all(&path);
    assert_eq!(role, Role::Primary);
    let kinds: Vec<RecordKind> = records.iter().map(|record| record.kind).collect();
    use RecordKind::{Connected, Disconnected, Marker, Received, Sent, Slot};
    assert_eq!(kinds, [Connected, Sent, Received, Marker, Slot, Disconnected]);
    assert_eq!(records[1].payload, b"one");
    assert_eq!(records[3].payload, 9u64.to_le_bytes());
    let again = directory.path().join("again.rec");
    write_all(&again, role, &records);
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
}

#[test]
fn a_recording_ends_at_its_length_limit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limited.rec");
    let recorder = Recorder::create(&path, Role::Backup, 1000).unwrap();
    for _ in 0..100 {
        recorder.received(&[1; 100]);
    }
    drop(recorder);
    assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
    let (_, records) = read_all(&path);
    assert_eq!(records.last().unwrap().kind, RecordKind::LimitReached);
}

#[test]
fn i10_every_truncation_and_bit_flip_of_a_recording_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    Session::new(directory.path(), 1).play(10);
    let whole = std::fs::read(directory.path().join("primary.rec")).unwrap();
    let mut reader = Reader::new(&whole[..]).unwrap();
    while reader.next_record().unwrap().is_some() {}
    let refused = |bytes: &[u8]| match Reader::new(bytes) {
        Err(_) => true,
        Ok(mut reader) => loop {
            match reader.next_record() {
                Ok(Some(_)) => {}
                Ok(None) => break false,
                Err(_) => break true,
            }
        },
    };
    let mut mutants = Vec::new();
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(refused(&flipped), "bit flip at {at}");
        let path = directory.path().join(format!("flip-{at}"));
        std::fs::write(&path, flipped).unwrap();
        mutants.push(path);
    }
    let cut = directory.path().join("cut");
    std::fs::write(&cut, &whole[..whole.len() - 1]).unwrap();
    assert!(refused(&whole[..whole.len() - 1]));
    mutants.push(cut);
    for ((good, report), path) in verify(&mutants).into_iter().zip(&mutants) {
        assert!(!good, "{}: {report}", path.display());
    }
}

/// A change of what a session says that breaks one rule, and a part of the verifier's words.
type Mutation = (Role, &'static str, fn(&mut Vec<Record>) -> &'static str);

fn decoded(record: &Record) -> Option<Message> {
    if !matches!(record.kind, RecordKind::Sent | RecordKind::Received) {
        return None;
    }
    message::decode(&record.payload).ok().map(|(_, message)| message)
}

fn find(records: &[Record], wanted: impl Fn(&Message) -> bool) -> usize {
    records
        .iter()
        .position(|record| decoded(record).is_some_and(|message| wanted(&message)))
        .expect("the session has such a message")
}

fn find_kind(records: &[Record], kind: RecordKind, skip: usize) -> usize {
    let mut found = records.iter().enumerate().filter(|(_, record)| record.kind == kind);
    found.nth(skip).expect("the session has such a record").0
}

/// Replaces the message at `at`, under the identity it travelled under.
fn replace(records: &mut [Record], at: usize, change: impl Fn(&mut Message)) {
    let (identity, mut message) = message::decode(&records[at].payload).unwrap();
    change(&mut message);
    records[at].payload.clear();
    message::encode(&identity, &message, &mut records[at].payload);
}

/// Changes a recorded slot's bytes (8 of the record in front) and mends its checksums.
fn change_slot(records: &mut [Record], skip: usize, change: impl Fn(&mut [u8])) {
    let at = find_kind(records, RecordKind::Slot, skip);
    let slot = &mut records[at].payload[8..];
    change(slot);
    let extents = crc32fast::hash(&slot[128..]);
    slot[96..100].copy_from_slice(&extents.to_le_bytes());
    let header = crc32fast::hash(&slot[..124]);
    slot[124..128].copy_from_slice(&header.to_le_bytes());
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

const MUTATIONS: &[Mutation] = &[
    (Role::Primary, "commit-skips", |records| {
        let at = find(records, |message| matches!(message, Message::Commit { epoch: Epoch(3) }));
        replace(records, at, |message| *message = Message::Commit { epoch: Epoch(4) });
        "Commit 4 after 2"
    }),
    (Role::Primary, "commit-without-marker", |records| {
        let marker = |record: &Record| record.kind == RecordKind::Marker && record.payload[0] == 2;
        let at = records.iter().position(|record| marker(record) && record.payload[7] == 0).unwrap();
        records.remove(at);
        "before its marker"
    }),
    (Role::Primary, "commit-before-slot", |records| {
        let at = find_kind(records, RecordKind::Slot, 1);
        records.remove(at);
        "before its slot"
    }),
    (Role::Primary, "ack-of-the-future", |records| {
        let at = find(records, |message| matches!(message, Message::Ack { .. }));
        replace(records, at, |message| {
            let Message::Ack { committed, .. } = message else { unreachable!() };
            committed.0 += 10;
        });
        "committed"
    }),
    (Role::Primary, "ack-falls-back", |records| {
        let at = find(records, |message| matches!(message, Message::Ack { committed: Epoch(3), .. }));
        replace(records, at, |message| {
            let Message::Ack { committed, .. } = message else { unreachable!() };
            committed.0 = 1;
        });
        "committed 1 after"
    }),
    (Role::Primary, "homed-beyond-what-was-asked", |records| {
        let at = find(records, |message| matches!(message, Message::Ack { .. }));
        replace(records, at, |message| {
            let Message::Ack { homed_through, .. } = message else { unreachable!() };
            *homed_through = HomingSequence(homed_through.0 + 1000);
        });
        "homed through"
    }),
    (Role::Primary, "homing-skips", |records| {
        let at = find(records, |message| matches!(message, Message::Home { .. }));
        replace(records, at, |message| {
            let Message::Home { first_sequence, .. } = message else { unreachable!() };
            first_sequence.0 += 1;
        });
        "homing"
    }),
    (Role::Primary, "homing-of-another-page", |records| {
        let at = find(records, |message| matches!(message, Message::Home { .. }));
        replace(records, at, |message| {
            let Message::Home { homings, .. } = message else { unreachable!() };
            homings[0].page = PageIndex((homings[0].page.0 + 1) % 256);
        });
        "it is in"
    }),
    (Role::Primary, "homing-from-a-home", |records| {
        let at = find(records, |message| matches!(message, Message::Home { .. }));
        replace(records, at, |message| {
            let Message::Home { homings, .. } = message else { unreachable!() };
            homings[0].source.0 = 3;
        });
        "no spare"
    }),
    (Role::Primary, "homing-while-synchronizing", |records| {
        let at = find(records, |message| matches!(message, Message::Home { .. }));
        let mut home = records.remove(at);
        let first = find(records, |message| matches!(message, Message::Commit { .. }));
        home.time_ns = records[first].time_ns;
        records.insert(first, home);
        "Home before the first Commit"
    }),
    (Role::Primary, "invalidate-while-synchronizing", |records| {
        let at = find(records, |message| matches!(message, Message::Invalidate));
        let (_, invalidate) = message::decode(&records[at].payload).unwrap();
        let round = find(records, |message| matches!(message, Message::RoundAck { .. }));
        let (identity, _) = message::decode(&records[round].payload).unwrap();
        let mut payload = Vec::new();
        message::encode(&identity, &invalidate, &mut payload);
        let time_ns = records[round].time_ns;
        records.insert(round + 1, Record { kind: RecordKind::Sent, time_ns, payload });
        "Invalidate before the first Commit"
    }),
    (Role::Primary, "round-skips", |records| {
        let at = find(records, |message| matches!(message, Message::RoundEnd { round: 2 }));
        replace(records, at, |message| *message = Message::RoundEnd { round: 3 });
        "round 3 after 1"
    }),
    (Role::Primary, "round-not-acked", |records| {
        let at = find(records, |message| matches!(message, Message::RoundAck { round: 3 }));
        records.remove(at);
        "before all rounds are acked"
    }),
    (Role::Primary, "heartbeat-skips", |records| {
        let at = find(records, |message| matches!(message, Message::Heartbeat { sequence: 2, .. }));
        records.remove(at);
        "heartbeat 3"
    }),
    (Role::Primary, "bye-of-the-other-side", |records| {
        let at = find(records, |message| matches!(message, Message::Bye { .. }));
        let reason = romulus_checkpoint::wire::message::ByeReason::BackupLeaves;
        replace(records, at, |message| *message = Message::Bye { reason });
        "Bye BackupLeaves from the primary"
    }),
    (Role::Primary, "stale-identity", |records| {
        let at = find(records, |message| matches!(message, Message::Commit { epoch: Epoch(4) }));
        let (mut identity, message) = message::decode(&records[at].payload).unwrap();
        identity.connection = identity.connection.next();
        records[at].payload.clear();
        message::encode(&identity, &message, &mut records[at].payload);
        "the connection is"
    }),
    (Role::Primary, "overwrites-a-live-home", |records| {
        // The second epoch writes its first page home, where the map at the first epoch has it.
        change_slot(records, 1, |slot| {
            put_u64(slot, 136, u64::from_le_bytes(slot[128..136].try_into().unwrap()));
        });
        "uses"
    }),
    (Role::Primary, "leaves-the-arena", |records| {
        change_slot(records, 1, |slot| put_u64(slot, 136, 256 + 64));
        "leaves the arena"
    }),
    (Role::Primary, "another-page's-home", |records| {
        change_slot(records, 1, |slot| {
            let page = u64::from_le_bytes(slot[128..136].try_into().unwrap());
            put_u64(slot, 136, page ^ 1);
        });
        "in the home of page"
    }),
    (Role::Primary, "state-changed", |records| {
        let at = find_kind(records, RecordKind::Slot, 0);
        records[at].payload[0] ^= 1;
        "state checksum"
    }),
    (Role::Primary, "slot-of-another-epoch", |records| {
        change_slot(records, 2, |slot| put_u64(slot, 56, 9));
        "slot of epoch 9"
    }),
    (Role::Backup, "slot-before-commit", |records| {
        let at = find(records, |message| matches!(message, Message::Commit { epoch: Epoch(2) }));
        records.remove(at);
        "before its Commit"
    }),
    (Role::Backup, "slot-before-marker", |records| {
        let at = find_kind(records, RecordKind::Marker, 3);
        records.remove(at);
        "before its marker"
    }),
    (Role::Backup, "ack-before-slot", |records| {
        let at = find_kind(records, RecordKind::Slot, 0);
        records.remove(at);
        "before its slot"
    }),
    (Role::Backup, "round-ack-before-marker", |records| {
        let at = find_kind(records, RecordKind::Marker, 0);
        records.remove(at);
        "without its marker"
    }),
    (Role::Backup, "welcome-from-the-future", |records| {
        let at = find(
            records,
            |message| matches!(message, Message::Welcome(welcome) if welcome.committed > Epoch(0)),
        );
        replace(records, at, |message| {
            let Message::Welcome(welcome) = message else { unreachable!() };
            welcome.committed.0 += 1;
        });
        "committed"
    }),
    (Role::Backup, "an-epoch-after-invalidate", |records| {
        let at = find(records, |message| matches!(message, Message::Invalidated { .. }));
        records.remove(at);
        "the connection is"
    }),
    (Role::Backup, "message-without-handshake", |records| {
        let at = find(records, |message| matches!(message, Message::Hello(_)));
        records.remove(at);
        "Welcome without a Hello"
    }),
];

#[test]
fn the_verifier_refuses_each_broken_rule_by_name() {
    let directory = tempfile::tempdir().unwrap();
    Session::new(directory.path(), 3).play(40);
    let mut mutants = Vec::new();
    let mut words = Vec::new();
    for (role, name, mutate) in MUTATIONS {
        let source = if *role == Role::Primary { "primary.rec" } else { "backup.rec" };
        let (role, mut records) = read_all(&directory.path().join(source));
        words.push(mutate(&mut records));
        let path = directory.path().join(name);
        write_all(&path, role, &records);
        mutants.push(path);
    }
    for (((good, report), path), words) in verify(&mutants).into_iter().zip(&mutants).zip(words) {
        assert!(!good, "{}: {report}", path.display());
        assert!(report.contains(words), "{}: no {words:?} in {report}", path.display());
    }
}

/// A connection that broke before the first epoch leaves nothing to resume: the next one begins in a
/// new arena, or anew in one that was written, and the incarnation tells which.
#[test]
fn the_verifier_knows_both_incarnations_of_a_content_that_begins_with_a_connection() {
    let directory = tempfile::tempdir().unwrap();
    Session::new(directory.path(), 1).play(1);
    let (role, records) = read_all(&directory.path().join("primary.rec"));
    let hello = find(&records, |message| matches!(message, Message::Hello(_)));
    let begins = |connection: u64, incarnation: u64| {
        let mut begun = vec![Record {
            kind: RecordKind::Connected,
            time_ns: 0,
            payload: connection.to_le_bytes().to_vec(),
        }];
        for record in &records[hello..hello + 2] {
            let (mut identity, mut message) = message::decode(&record.payload).unwrap();
            identity.connection = ConnectionNumber(connection);
            match &mut message {
                Message::Hello(hello) => hello.identity = identity,
                Message::Welcome(welcome) => {
                    identity.incarnation = Incarnation(incarnation);
                    welcome.identity = identity;
                }
                other => panic!("{other:?} in a handshake"),
            }
            let mut payload = Vec::new();
            message::encode(&identity, &message, &mut payload);
            begun.push(Record { kind: record.kind, time_ns: 0, payload });
        }
        begun.push(Record { kind: RecordKind::Disconnected, time_ns: 0, payload: Vec::new() });
        begun
    };
    let cases = [(512, true), (513, true), (514, false), (256, false), (511, false)];
    let paths = cases.map(|(incarnation, _)| {
        let path = directory.path().join(format!("begun-{incarnation}"));
        write_all(&path, role, &[begins(1, 256), begins(2, incarnation)].concat());
        path
    });
    for ((good, report), (incarnation, wanted)) in verify(&paths).into_iter().zip(cases) {
        assert_eq!(good, wanted, "incarnation {incarnation}: {report}");
    }
}
