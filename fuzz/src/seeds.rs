//! Valid encodings, from which fuzzing starts.

#[path = "../../checkpoint/tests/wire_samples/mod.rs"]
mod wire_samples;

use std::path::Path;

use romulus_checkpoint::arbiter::{Ownership, Record, record_file};
use romulus_checkpoint::wire::record::{Recorder, Role};
use romulus_checkpoint::wire::slot;
use romulus_checkpoint::{ConnectionNumber, FrameIndex, Generation, PageIndex, Transfer};
use romulus_transport::Memory;
use romulus_transport::rdma::wire as rdma;
use romulus_transport::tcp::wire::{
    self, Answer, ControlHeader, ControlKind, DataHeader, Descriptor, Offer, Preface,
};
use romulus_xen::machine::Machine;
use romulus_xen::records::{
    BesideContext, END, HEADER_BYTES, HvmParam, OPTIONAL, RecordError, Tsc, append, params_body,
    write_epoch_state,
};

use crate::slot_identity;

/// Where a target is to write its seeds, instead of fuzzing.
const DIRECTORY: &str = "ROMULUS_FUZZ_SEEDS";

/// Called by each target as it starts: if the environment asks for it, writes the target's seeds
/// and ends the process.
pub fn write_if_asked(seeds: fn(&Path) -> Vec<Vec<u8>>) {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let written = std::fs::create_dir_all(directory).and_then(|()| {
        let mut all = seeds(directory).into_iter().enumerate();
        all.try_for_each(|(index, seed)| std::fs::write(directory.join(format!("seed-{index}")), seed))
    });
    if let Err(error) = written {
        eprintln!("cannot write seeds to {}: {error}", directory.display());
        std::process::exit(2);
    }
    std::process::exit(0);
}

/// Every kind of message.
pub fn messages(_directory: &Path) -> Vec<Vec<u8>> {
    wire_samples::messages().iter().map(wire_samples::bytes_of).collect()
}

/// Slots from empty to several batches of extents.
pub fn slots(_directory: &Path) -> Vec<Vec<u8>> {
    [(0, 0), (1, 10), (40, 300), (300, 70)].map(|(transfers, state)| slot_of(transfers, state)).into()
}

fn slot_of(transfers: u64, state_bytes: usize) -> Vec<u8> {
    let (identity, epoch) = slot_identity();
    let transfers: Vec<Transfer> = (0..transfers)
        .map(|n| Transfer { first_page: PageIndex(4 * n), first_frame: FrameIndex(1000 + 4 * n), pages: 3 })
        .collect();
    let offset = slot::state_offset_bytes(transfers.len() as u64) as usize;
    let memory = Memory::anonymous(offset + state_bytes);
    let checksum = slot::checksum(&memory, offset, state_bytes);
    slot::encode(&identity, epoch, &transfers, state_bytes as u64, checksum, &memory)
        .expect("the memory is made to fit");
    let mut bytes = vec![0; offset + state_bytes];
    memory.read(0, &mut bytes);
    bytes
}

/// Records of every ownership.
pub fn record_files(_directory: &Path) -> Vec<Vec<u8>> {
    let (primary, backup) = (String::from("left"), String::from("right"));
    let all = [
        Ownership::Protected { primary: primary.clone(), backup: backup.clone() },
        Ownership::Solo { primary },
        Ownership::Owned { backup },
        Ownership::Ended,
    ];
    let record = |ownership| Record { ownership, generation: Generation(7), nonce: 0xc0ffee };
    all.map(|ownership| record_file::format("vm", &record(ownership)).expect("a valid record")).into()
}

/// A recording with a record of every kind; made in `directory` itself.
pub fn recordings(directory: &Path) -> Vec<Vec<u8>> {
    let path = directory.join("recording");
    let recorder = Recorder::create(&path, Role::Backup, 1 << 20).expect("a file in a fresh directory");
    recorder.connected(ConnectionNumber(1));
    for message in wire_samples::messages() {
        recorder.received(&wire_samples::bytes_of(&message));
    }
    recorder.marker(1);
    let slot = slot_of(2, 50);
    let memory = Memory::anonymous(slot.len());
    memory.write(0, &slot);
    recorder.slot(&memory);
    recorder.disconnected();
    drop(recorder);
    vec![std::fs::read(&path).expect("the recording just made")]
}

/// Every item of the tcp fabric, behind the byte that chooses its decoder.
pub fn tcp_items(_directory: &Path) -> Vec<Vec<u8>> {
    let token = [7; wire::TOKEN_BYTES];
    let message = ControlHeader { kind: ControlKind::Message, len_bytes: 72 };
    let heartbeat = ControlHeader { kind: ControlKind::Heartbeat, len_bytes: 0 };
    let answer = Answer { streams: 4, heartbeat_every_us: 5000, token, chunks_bytes: vec![1 << 30, 4096] };
    let items: [(u8, Vec<u8>); 9] = [
        (0, wire::encode_preface(&Preface::Control).into()),
        (0, wire::encode_preface(&Preface::Data { stream: 3, token }).into()),
        (1, wire::encode_control_header(&message).into()),
        (1, wire::encode_control_header(&heartbeat).into()),
        (2, wire::encode_data_header(&DataHeader::Writes { count: 2, payload_bytes: 8192 }).into()),
        (2, wire::encode_data_header(&DataHeader::Marker { marker: 9 }).into()),
        (3, wire::encode_descriptor(&Descriptor { offset: 4096, len_bytes: 8192 }).into()),
        (4, wire::encode_offer(&Offer { streams: 4, heartbeat_every_us: 5000 })),
        (5, wire::encode_answer(&answer)),
    ];
    items.into_iter().map(|(which, bytes)| [vec![which], bytes].concat()).collect()
}

/// Every item of the rdma fabric, behind the byte that chooses its decoder.
pub fn rdma_items(_directory: &Path) -> Vec<Vec<u8>> {
    let pair = |number| rdma::Pair { number, psn: 0xabcdef };
    let common = rdma::Common {
        heartbeat_every_us: 20_000,
        link: rdma::Link::Ethernet,
        lid: 0,
        mtu_bytes: 4096,
        gid: [7; 16],
        message_receives: 64,
        messages: pair(17),
        data: vec![pair(18), pair(19)],
    };
    let span = |address, begins_chunk| rdma::Span { len_bytes: 1 << 20, address, key: 0x1234, begins_chunk };
    let spans = vec![span(1 << 20, true), span(1 << 21, false), span(1 << 30, true)];
    let answer = rdma::Answer { common: common.clone(), markers: 128, spans };
    let items: [(u8, Vec<u8>); 4] = [
        (0, rdma::encode_preface(&Preface::Control).into()),
        (1, rdma::encode_offer(&common)),
        (2, rdma::encode_answer(&answer)),
        (3, rdma::encode_credits(&rdma::Credits { markers: 3, messages: 5 }).into()),
    ];
    items.into_iter().map(|(which, bytes)| [vec![which], bytes].concat()).collect()
}

/// A line of each kind.
pub fn qmp_lines(_directory: &Path) -> Vec<Vec<u8>> {
    let lines: [&[u8]; 7] = [
        br#"{"return": {}, "id": 7}"#,
        br#"{"return": [{"name": "pc.ram", "size": 536870912}], "id": 1}"#,
        br#"{"id": 3, "error": {"class": "GenericError", "desc": "a \"quoted\" text"}}"#,
        br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#,
        br#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
        br#"{"event": "MIGRATION", "data": {"status": "completed"}}"#,
        br#"{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}"#,
    ];
    lines.iter().map(|line| line.to_vec()).collect()
}

/// Streams as QEMU 7.2 writes them: a ROM block of two pages and a device; and a ROM record.
pub fn streams(_directory: &Path) -> Vec<Vec<u8>> {
    let mut stream = b"QEVM\0\0\0\x03\x07\0\0\0\x0apc-q35-7.2".to_vec();
    stream.extend(b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0fx-ignore-shared");
    stream.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    stream.extend((8192u64 | 4).to_be_bytes());
    stream.extend(b"\x07pc.bios");
    stream.extend(8192u64.to_be_bytes());
    stream.extend(0xfffc_0000u64.to_be_bytes());
    stream.extend(0x10u64.to_be_bytes());
    stream.extend(b"\x7e\0\0\0\x02\x02\0\0\0\x02");
    stream.extend(8u64.to_be_bytes());
    stream.extend(b"\x07pc.bios");
    stream.extend([6u8; 4096]);
    stream.extend((4096u64 | 0x22).to_be_bytes());
    stream.push(0);
    stream.extend(0x10u64.to_be_bytes());
    stream.extend(b"\x7e\0\0\0\x02\x03\0\0\0\x02");
    stream.extend(0x10u64.to_be_bytes());
    stream.extend(b"\x7e\0\0\0\x02");
    let mut record = romulus_qemu::stream::RomRecord::with_room_for(0);
    record.store(&stream).expect("a small prefix");
    let mut region = vec![0; 16 + stream.len()];
    record.memory().read(0, &mut region);
    stream.extend(b"\x04\0\0\0\0\x05timer\0\0\0\0\0\0\0\x02........\x06\0\0\0\x01\x7e\0\0\0\0\0");
    let plain = stream.clone();
    stream.extend(b"\x06\0\0\0\x0b{\"x\":[1,2]}");
    let mut sealed = romulus_qemu::stream::seal_state().to_vec();
    sealed.extend(b"\x04\0\0\0\0\x05timer");
    vec![plain, stream, region, sealed]
}

/// A state, a description and a configuration of a Xen domain, each behind the byte that chooses it.
pub fn xen_guests(_directory: &Path) -> Vec<Vec<u8>> {
    let params = [HvmParam { index: 1, value: 0xfeff_f000 }, HvmParam { index: 5, value: 7 }];
    let tsc = Tsc { mode: 1, khz: 2_400_000, elapsed_ns: 1 << 40, incarnation: 3 };
    let mut state = vec![0; 400];
    let written = write_epoch_state::<RecordError>(
        &mut state,
        BesideContext { tsc, params: &params, device_model: None },
        |into| {
            into[..100].fill(0x5a);
            Ok(100)
        },
    );
    state.truncate(written.expect("there is room for it"));
    let mut later = state.clone();
    later.truncate(state.len() - HEADER_BYTES);
    append(&mut later, OPTIONAL | 0x99, b"of a later version");
    append(&mut later, END, &[]);

    let config = r#"{"c_info":{"type":"pvh","name":"vm","domid":7},"b_info":{"max_vcpus":1,"extra":[],"type.pvh":{}},
        "nics":[{"script":"vif-bridge"}],"disks":[{"pdev_path":"/dev/vg/vm"}]}"#;
    let machine = Machine {
        xen: "4.17".into(),
        vcpus: 1,
        pages: 32_768,
        config: config.replace('\n', ""),
        cpuid: vec![1; 600],
        msrs: vec![2; 16],
        params: params_body(&params),
        device_model: Some(vec![3; 100]),
    };
    let identity = machine.identity().expect("a short description");
    let description = [vec![identity.hypervisor], identity.configuration].concat().join("\n");

    let items = [(0, state), (0, later), (1, description.into_bytes()), (3, config.as_bytes().to_vec())];
    items.map(|(which, bytes)| [vec![which], bytes].concat()).into()
}
