//! What a standby needs to become the domain, as it travels in the handshake.
//!
//! The configuration's lines of a [`MachineIdentity`] are at most 1,024 bytes long, so what is longer
//! comes in numbered pieces: `config 0003 ...` (JSON as libxl writes it, without line breaks),
//! `cpuid 0000 ...` `msr 0000 ...` and `params 0000 ...` (bodies of the records `X86_CPUID_POLICY`,
//! `X86_MSR_POLICY` and `HVM_PARAMS`, in hexadecimal), and of a domain with a device model `model 0000 ...`
//! (the device model's state, in hexadecimal). `vcpus N` and `pages N` are for people, who read them in a difference first.

use std::fmt::Write;

use romulus_checkpoint::wire::message::MachineIdentity;

use crate::error::XenError;
use crate::records;

/// Bytes of text in one piece.
const PIECE_BYTES: usize = 960;
/// Longest configuration, and longest policy, that is accepted.
const MAX_TEXT_BYTES: usize = 400 * PIECE_BYTES;
/// In front of the version.
const HYPERVISOR: &str = "Xen ";
/// In front of the pieces of a device model's state.
const MODEL: &str = "model";

/// A domain, as its standby must know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Version of Xen: `4.17`.
    pub xen: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Pages of memory.
    pub pages: u64,
    /// The domain's configuration in JSON, as `xl list -l` shows it and libxl reads it.
    pub config: String,
    /// CPUID leaves.
    pub cpuid: Vec<u8>,
    /// Model-specific registers.
    pub msrs: Vec<u8>,
    /// HVM parameters when protection began: the body of the record `HVM_PARAMS`, see
    /// [`crate::records::read_params`].
    pub params: Vec<u8>,
    /// The device model's state when protection began: the standby's own is started with it, as any
    /// that is to take another one's state. `None`: the domain has no device model.
    pub device_model: Option<Vec<u8>>,
}

impl Machine {
    /// As the handshake carries it.
    pub fn identity(&self) -> Result<MachineIdentity, XenError> {
        let mut lines = Vec::new();
        pieces("config", &self.config, &mut lines)?;
        pieces("cpuid", &hex(&self.cpuid), &mut lines)?;
        pieces("msr", &hex(&self.msrs), &mut lines)?;
        pieces("params", &hex(&self.params), &mut lines)?;
        if let Some(model) = &self.device_model {
            pieces(MODEL, &hex(model), &mut lines)?;
        }
        lines.push(format!("pages {}", self.pages));
        lines.push(format!("vcpus {}", self.vcpus));
        lines.sort();
        Ok(MachineIdentity { hypervisor: format!("{HYPERVISOR}{}", self.xen), configuration: lines })
    }

    /// Reads what came in a handshake.
    pub fn of_identity(identity: &MachineIdentity) -> Result<Self, XenError> {
        let wrong = |why: String| XenError::Refused(format!("the guest's description: {why}"));
        let Some(xen) = identity.hypervisor.strip_prefix(HYPERVISOR) else {
            return Err(wrong(format!(
                "{} is not Xen; this standby is for Xen domains",
                identity.hypervisor
            )));
        };
        let mut lines: Vec<&str> = identity.configuration.iter().map(String::as_str).collect();
        lines.sort_unstable();
        let text = |kind: &str| join(kind, &lines).map_err(&wrong);
        let has_model =
            lines.iter().any(|line| line.strip_prefix(MODEL).is_some_and(|rest| rest.starts_with(' ')));
        let bytes =
            |kind: &str| unhex(&text(kind)?).ok_or_else(|| wrong(format!("its {kind} is no hexadecimal")));
        let number = |kind: &str| -> Result<u64, XenError> {
            let found =
                lines.iter().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' ')?.parse().ok());
            found.ok_or_else(|| wrong(format!("the line of its {kind} is missing")))
        };
        Ok(Self {
            xen: xen.to_owned(),
            vcpus: u32::try_from(number("vcpus")?).map_err(|error| wrong(format!("vcpus: {error}")))?,
            pages: number("pages")?,
            config: text("config")?,
            cpuid: bytes("cpuid")?,
            msrs: bytes("msr")?,
            params: bytes("params")?,
            device_model: has_model.then(|| bytes(MODEL)).transpose()?,
        })
    }

    /// The records that do not change, as they stand in Xen's stream before `STATIC_DATA_END`.
    pub fn static_records(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        records::append(&mut bytes, records::X86_CPUID_POLICY, &self.cpuid);
        records::append(&mut bytes, records::X86_MSR_POLICY, &self.msrs);
        bytes
    }
}

fn pieces(kind: &str, text: &str, lines: &mut Vec<String>) -> Result<(), XenError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(XenError::Refused(format!(
            "the domain's {kind} is {} bytes long; {MAX_TEXT_BYTES} are possible",
            text.len()
        )));
    }
    let mut rest = text;
    let mut number = 0;
    // At least one piece, so that an empty text is told from a missing one.
    loop {
        let end =
            (0..=PIECE_BYTES.min(rest.len())).rev().find(|end| rest.is_char_boundary(*end)).unwrap_or(0);
        lines.push(format!("{kind} {number:04} {}", &rest[..end]));
        rest = &rest[end..];
        number += 1;
        if rest.is_empty() {
            return Ok(());
        }
    }
}

/// Puts the pieces of one kind together; `lines` are sorted.
fn join(kind: &str, lines: &[&str]) -> Result<String, String> {
    let mut text = String::new();
    let mut next = 0;
    for line in lines {
        let Some(rest) = line.strip_prefix(kind).and_then(|rest| rest.strip_prefix(' ')) else { continue };
        let Some((number, piece)) = rest.split_once(' ') else {
            return Err(format!("a piece of its {kind} is cut"));
        };
        if number.parse() != Ok(next) {
            return Err(format!("piece {next} of its {kind} is missing"));
        }
        next += 1;
        text.push_str(piece);
    }
    if next == 0 { Err(format!("its {kind} is missing")) } else { Ok(text) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use romulus_checkpoint::wire::limits::{MAX_CONFIGURATION_LINES, MAX_LINE_BYTES};

    use super::*;

    fn machine(config: &str, cpuid: &[u8], msrs: &[u8]) -> Machine {
        Machine {
            xen: "4.17".into(),
            vcpus: 2,
            pages: 32_768,
            config: config.into(),
            cpuid: cpuid.into(),
            msrs: msrs.into(),
            params: vec![5; 24],
            device_model: None,
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_comes(
            config in "\\PC{0,2000}",
            cpuid in prop::collection::vec(any::<u8>(), 0..3000),
            msrs in prop::collection::vec(any::<u8>(), 0..50),
            model in prop::option::of(prop::collection::vec(any::<u8>(), 0..2000)),
        ) {
            let machine = Machine { device_model: model, ..machine(&config, &cpuid, &msrs) };
            let identity = machine.identity().unwrap();
            prop_assert!(identity.configuration.iter().all(|line| line.len() <= MAX_LINE_BYTES));
            prop_assert_eq!(Machine::of_identity(&identity).unwrap(), machine);
        }

        #[test]
        fn a_line_less_is_an_error(at in any::<prop::sample::Index>()) {
            let mut identity = machine(&"x".repeat(5000), &[7; 2000], &[1; 8]).identity().unwrap();
            identity.configuration.remove(at.index(identity.configuration.len()));
            let read = Machine::of_identity(&identity);
            // The last piece of a text is not missed here; the difference to the standby's tells.
            prop_assert!(read.is_err() || read.unwrap() != machine(&"x".repeat(5000), &[7; 2000], &[1; 8]));
        }
    }

    #[test]
    fn the_largest_fits_a_handshake() {
        let identity = machine(&"x".repeat(MAX_TEXT_BYTES), &[1; 100_000], &[1; 10]).identity().unwrap();
        assert!(identity.configuration.len() <= MAX_CONFIGURATION_LINES);
        assert!(machine(&"x".repeat(MAX_TEXT_BYTES + 1), &[], &[]).identity().is_err());
    }

    #[test]
    fn another_hypervisors_guest_is_refused() {
        let mut identity = machine("{}", &[], &[]).identity().unwrap();
        identity.hypervisor = "QEMU 7.2.17".into();
        assert!(Machine::of_identity(&identity).unwrap_err().to_string().contains("QEMU 7.2.17"));
    }
}
