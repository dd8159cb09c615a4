//! The file that `xl restore` builds a domain from, before anything of the guest has arrived: its
//! configuration, its policies, that its frames exist, and no content.
//!
//! Three formats in one another: xl's header with the configuration (`tools/xl/xl.h` in Xen's sources),
//! libxl's stream (`docs/specs/libxl-migration-stream.pandoc`), and within it libxc's
//! (`docs/specs/libxc-migration-stream.pandoc`). The virtual processors come without a context: Xen
//! then leaves them down, until a guest's context brings them up.

use crate::layout::FrameMap;
use crate::machine::Machine;
use crate::records::{
    END, HVM_CONTEXT, HVM_PARAMS, MAX_BODY_BYTES, PAGE_DATA, STATIC_DATA_END, append, header,
};

/// First bytes of xl's files.
const XL_MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
/// Tells the byte order.
const XL_BYTE_ORDER: u32 = 0x0102_0304;
/// The configuration is JSON, and libxl's stream follows.
const XL_FLAGS: u32 = 1 | 2;
/// `LibxlFmt`.
const LIBXL_MAGIC: &[u8; 8] = b"LibxlFmt";
const LIBXL_VERSION: u32 = 2;
/// The record of libxl behind which libxc's stream comes.
const LIBXC_CONTEXT: u32 = 1;
/// The record of libxl with a device model's state.
const EMULATOR_CONTEXT: u32 = 3;
/// Kind and number of the device model: upstream's QEMU, the first.
const EMULATOR: [u8; 8] = [2, 0, 0, 0, 0, 0, 0, 0];
/// `XENF`.
const LIBXC_MAGIC: &[u8; 4] = b"XENF";
const LIBXC_VERSION: u32 = 3;
/// HVM and PVH domains.
const HVM: u32 = 2;
const PAGE_SHIFT: u16 = 12;
/// Frames in a record, as Xen's own writer has it.
const BATCH: u64 = 1024;
/// Kind of a frame that is to be allocated and has no content here (`XEN_DOMCTL_PFINFO_XALLOC`).
const ALLOCATE: u64 = 0xe << 60;
/// First bytes of a context (`HVM_FILE_MAGIC`).
const CONTEXT_MAGIC: u32 = 0x5438_1286;
const CONTEXT_VERSION: u32 = 1;
/// The entry of a context that comes first.
const CONTEXT_HEADER: u16 = 1;

/// Writes the file. `config` is the standby's own configuration in JSON.
pub fn empty_domain(config: &str, machine: &Machine, frames: &FrameMap) -> Vec<u8> {
    let mut file = Vec::new();
    let mut text = config.as_bytes().to_vec();
    text.push(0);
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    file.extend_from_slice(XL_MAGIC);
    for number in [XL_BYTE_ORDER, XL_FLAGS, 0, length.saturating_add(4), length] {
        file.extend_from_slice(&number.to_le_bytes());
    }
    file.extend_from_slice(&text);
    file.extend_from_slice(LIBXL_MAGIC);
    file.extend_from_slice(&LIBXL_VERSION.to_be_bytes());
    file.extend_from_slice(&0u32.to_be_bytes());
    file.extend_from_slice(&header(LIBXC_CONTEXT, 0));
    // Records are padded from the beginning of their stream, wherever that is in the file.
    let (mut libxc, mut libxl) = (Vec::new(), Vec::new());
    libxc_stream(&mut libxc, machine, frames);
    file.extend_from_slice(&libxc);
    if let Some(model) = &machine.device_model {
        append(&mut libxl, EMULATOR_CONTEXT, &[&EMULATOR, model.as_slice()].concat());
    }
    file.extend_from_slice(&libxl);
    file.extend_from_slice(&header(END, 0));
    file
}

fn libxc_stream(file: &mut Vec<u8>, machine: &Machine, frames: &FrameMap) {
    file.extend_from_slice(&u64::MAX.to_le_bytes());
    file.extend_from_slice(LIBXC_MAGIC);
    file.extend_from_slice(&LIBXC_VERSION.to_be_bytes());
    file.extend_from_slice(&[0; 8]);
    let (major, minor) = version(&machine.xen);
    file.extend_from_slice(&HVM.to_le_bytes());
    file.extend_from_slice(&PAGE_SHIFT.to_le_bytes());
    file.extend_from_slice(&[0; 2]);
    file.extend_from_slice(&major.to_le_bytes());
    file.extend_from_slice(&minor.to_le_bytes());
    file.extend_from_slice(&machine.static_records());
    append(file, STATIC_DATA_END, &[]);
    let mut body = Vec::new();
    for run in frames.runs() {
        let mut first = run.first;
        while first < run.end() {
            let end = run.end().min(first + BATCH);
            body.clear();
            body.extend_from_slice(&(end - first).to_le_bytes());
            (first..end).for_each(|frame| body.extend_from_slice(&(ALLOCATE | frame).to_le_bytes()));
            append(file, PAGE_DATA, &body);
            first = end;
        }
    }
    append(file, HVM_CONTEXT, &no_context());
    append(file, HVM_PARAMS, &machine.params);
    append(file, END, &[]);
    debug_assert!(machine.params.len() < MAX_BODY_BYTES);
}

/// A context of no processor and no device.
fn no_context() -> Vec<u8> {
    let mut context = Vec::new();
    let mut entry = |kind: u16, body: &[u8]| {
        context.extend_from_slice(&kind.to_le_bytes());
        context.extend_from_slice(&0u16.to_le_bytes());
        context.extend_from_slice(&(body.len() as u32).to_le_bytes());
        context.extend_from_slice(body);
    };
    let mut first = [0; 24];
    first[..4].copy_from_slice(&CONTEXT_MAGIC.to_le_bytes());
    first[4..8].copy_from_slice(&CONTEXT_VERSION.to_le_bytes());
    entry(CONTEXT_HEADER, &first);
    entry(0, &[]);
    context
}

/// `4.17` as two numbers.
fn version(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::FrameRun;
    use crate::records::{Reader, X86_CPUID_POLICY, X86_MSR_POLICY};

    fn machine() -> Machine {
        Machine {
            xen: "4.17".into(),
            vcpus: 1,
            pages: 3000,
            config: "{}".into(),
            cpuid: vec![1; 24 * 5],
            msrs: vec![2; 16],
            params: [1u32, 0].iter().flat_map(|n| n.to_le_bytes()).chain([7; 16]).collect(),
            device_model: None,
        }
    }

    #[test]
    fn the_file_reads_back_as_the_three_formats_say() {
        let frames = FrameMap::new(vec![
            FrameRun { first: 0, frames: 0xa0 },
            FrameRun { first: 0x100, frames: 2500 },
            FrameRun { first: 0xfeff8, frames: 8 },
        ]);
        let file = empty_domain("{\"c_info\":1}", &machine(), &frames);
        let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        assert_eq!(&file[..32], XL_MAGIC);
        assert_eq!([u32_at(32), u32_at(36), u32_at(40)], [0x0102_0304, 3, 0]);
        let (optional, config) = (u32_at(44) as usize, u32_at(48) as usize);
        assert_eq!((optional, config), (config + 4, 13));
        assert_eq!(&file[52..52 + config], b"{\"c_info\":1}\0");
        let libxl = &file[52 + config..];
        assert_eq!(&libxl[..16], b"LibxlFmt\0\0\0\x02\0\0\0\0");
        assert_eq!(&libxl[16..24], &[1, 0, 0, 0, 0, 0, 0, 0]);
        let libxc = &libxl[24..libxl.len() - 8];
        assert_eq!(&libxl[libxl.len() - 8..], &[0; 8]);
        assert_eq!(&libxc[..16], b"\xff\xff\xff\xff\xff\xff\xff\xffXENF\0\0\0\x03");
        assert_eq!(&libxc[16..24], &[0; 8]);
        assert_eq!(&libxc[24..40], &[2, 0, 0, 0, 12, 0, 0, 0, 4, 0, 0, 0, 17, 0, 0, 0]);
        let mut reader = Reader::new(&libxc[40..]);
        let (mut kinds, mut found) = (Vec::new(), Vec::new());
        while let Some(record) = reader.next().unwrap() {
            if record.kind != PAGE_DATA {
                kinds.push(record.kind);
                continue;
            }
            assert_eq!(kinds, [X86_CPUID_POLICY, X86_MSR_POLICY, STATIC_DATA_END]);
            let numbers: Vec<u64> = record
                .body
                .chunks_exact(8)
                .map(|eight| u64::from_le_bytes(eight.try_into().unwrap()))
                .collect();
            assert_eq!(numbers[0], numbers.len() as u64 - 1);
            assert!(numbers.len() <= 1025);
            assert!(numbers[1..].iter().all(|frame| frame >> 60 == 0xe));
            found.extend(numbers[1..].iter().map(|frame| frame & ((1 << 52) - 1)));
        }
        assert_eq!(kinds[3..], [HVM_CONTEXT, HVM_PARAMS]);
        let expected: Vec<u64> = frames.runs().iter().flat_map(|run| run.first..run.end()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_device_models_state_is_the_last_record_of_libxls_stream() {
        let frames = FrameMap::new(vec![FrameRun { first: 0, frames: 1 }]);
        let without = empty_domain("{}", &machine(), &frames);
        let with = Machine { device_model: Some(b"QEVM state".to_vec()), ..machine() };
        let with = empty_domain("{}", &with, &frames);
        let (same, rest) = with.split_at(without.len() - 8);
        assert_eq!(same, &without[..without.len() - 8]);
        assert_eq!(&rest[..16], &[3, 0, 0, 0, 18, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&rest[16..], b"QEVM state\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn a_context_of_nothing_has_its_header_and_its_end() {
        let context = no_context();
        assert_eq!(context.len(), 8 + 24 + 8);
        assert_eq!(&context[..12], &[1, 0, 0, 0, 24, 0, 0, 0, 0x86, 0x12, 0x38, 0x54]);
        assert_eq!(&context[32..], &[0; 8]);
    }
}
