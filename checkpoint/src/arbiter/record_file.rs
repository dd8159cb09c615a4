//! The record as the bytes of a file: one JSON object, versioned, read strictly.
//!
//! ```json
//! {"version":1,"guest":"vm1","generation":3,"nonce":"00c0ffee00c0ffee",
//!  "state":"protected","primary":"hosta","backup":"hostb"}
//! ```
//!
//! `state` is `protected` (with `primary` and `backup`), `solo` (with `primary`), `owned` (with
//! `backup`) or `ended`. Other or missing fields are refused.

use serde::{Deserialize, Serialize};

use super::{Ownership, Record};
use crate::ids::Generation;

/// The format written and read.
pub const RECORD_VERSION: u32 = 1;
/// Longest record file, in bytes.
pub const MAX_RECORD_BYTES: usize = 4096;
/// Longest name of a guest or host, in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// Highest generation taken from a file.
const MAX_GENERATION: u64 = 1 << 62;

/// Bytes that are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Longer than any record.
    #[error("{found_bytes} bytes, more than a record's {MAX_RECORD_BYTES}")]
    TooLong {
        /// Its length.
        found_bytes: u64,
    },
    /// Written by another version of the format.
    #[error("record format {found} is not known here (this is {RECORD_VERSION})")]
    Version {
        /// The version found.
        found: u32,
    },
    /// A value out of its limits, or no JSON of this form.
    #[error("no valid record: {0}")]
    Malformed(String),
}

#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordFile {
    version: u32,
    guest: String,
    generation: u64,
    nonce: String,
    state: State,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    primary: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backup: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Protected,
    Solo,
    Owned,
    Ended,
}

/// Reads the bytes of a record file: the guest's name and its record. Never panics.
pub fn parse(bytes: &[u8]) -> Result<(String, Record), RecordError> {
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(RecordError::TooLong { found_bytes: bytes.len() as u64 });
    }
    let malformed = |error: serde_json::Error| RecordError::Malformed(error.to_string());
    let AnyVersion { version } = serde_json::from_slice(bytes).map_err(malformed)?;
    if version != RECORD_VERSION {
        return Err(RecordError::Version { found: version });
    }
    let file: RecordFile = serde_json::from_slice(bytes).map_err(malformed)?;
    check_name("guest", &file.guest)?;
    for (what, name) in [("primary", &file.primary), ("backup", &file.backup)] {
        name.as_ref().map_or(Ok(()), |name| check_name(what, name))?;
    }
    if file.generation == 0 || file.generation > MAX_GENERATION {
        return Err(RecordError::Malformed(format!("generation {} is out of range", file.generation)));
    }
    let ownership = match (file.state, file.primary, file.backup) {
        (State::Protected, Some(primary), Some(backup)) => Ownership::Protected { primary, backup },
        (State::Solo, Some(primary), None) => Ownership::Solo { primary },
        (State::Owned, None, Some(backup)) => Ownership::Owned { backup },
        (State::Ended, None, None) => Ownership::Ended,
        _ => return Err(RecordError::Malformed("hosts that do not go with the state".to_owned())),
    };
    let record =
        Record { ownership, generation: Generation(file.generation), nonce: parse_nonce(&file.nonce)? };
    Ok((file.guest, record))
}

/// The bytes of a record file, ending in a newline. Refuses what [`parse`] would refuse.
pub fn format(guest: &str, record: &Record) -> Result<Vec<u8>, RecordError> {
    let (state, primary, backup) = match record.ownership.clone() {
        Ownership::Protected { primary, backup } => (State::Protected, Some(primary), Some(backup)),
        Ownership::Solo { primary } => (State::Solo, Some(primary), None),
        Ownership::Owned { backup } => (State::Owned, None, Some(backup)),
        Ownership::Ended => (State::Ended, None, None),
    };
    let file = RecordFile {
        version: RECORD_VERSION,
        guest: guest.to_owned(),
        generation: record.generation.0,
        nonce: format!("{:016x}", record.nonce),
        state,
        primary,
        backup,
    };
    let mut bytes = serde_json::to_vec(&file).map_err(|error| RecordError::Malformed(error.to_string()))?;
    bytes.push(b'\n');
    parse(&bytes)?;
    Ok(bytes)
}

/// Refuses a name that is empty, too long or holds control characters.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), RecordError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(RecordError::Malformed(format!(
            "the name of the {what} is empty, longer than {MAX_NAME_BYTES} bytes or not printable"
        )));
    }
    Ok(())
}

fn parse_nonce(text: &str) -> Result<u64, RecordError> {
    let hexadecimal = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let nonce = hexadecimal.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    nonce.ok_or_else(|| RecordError::Malformed("nonce is not 16 hexadecimal digits".to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"{"version":1,"guest":"vm","generation":3,"nonce":"00000000000000ff","state":"protected","primary":"a","backup":"b"}"#;

    #[test]
    fn reads_the_documented_form() {
        let (guest, record) = parse(GOOD.as_bytes()).unwrap();
        assert_eq!((guest.as_str(), record.generation, record.nonce), ("vm", Generation(3), 255));
        assert_eq!(record.ownership, Ownership::Protected { primary: "a".into(), backup: "b".into() });
        assert_eq!(format(&guest, &record).unwrap(), format!("{GOOD}\n").as_bytes());
    }

    #[test]
    fn i10_refuses_everything_else() {
        for (from, to) in [
            ("\"version\":1,", ""),
            ("}", ""),
            ("}", "}{}"),
            ("\"guest\":\"vm\"", "\"guest\":\"\""),
            ("\"guest\":\"vm\"", "\"guest\":\"v\\u0000m\""),
            ("\"generation\":3", "\"generation\":0"),
            ("\"generation\":3", "\"generation\":-1"),
            ("\"generation\":3", "\"generation\":18446744073709551615"),
            ("00000000000000ff", "ff"),
            ("00000000000000ff", "+0000000000000ff"),
            ("protected", "solo"),
            ("protected", "gone"),
            (",\"backup\":\"b\"", ""),
            ("\"backup\":", "\"extra\":1,\"backup\":"),
            ("\"backup\":\"b\"", "\"backup\":\"b\",\"backup\":\"c\""),
        ] {
            assert!(GOOD.contains(from));
            let bad = GOOD.replacen(from, to, 1);
            assert!(matches!(parse(bad.as_bytes()), Err(RecordError::Malformed(_))), "{bad}");
        }
        let newer = GOOD.replace("\"version\":1", "\"version\":2,\"more\":true");
        assert_eq!(parse(newer.as_bytes()), Err(RecordError::Version { found: 2 }));
        let long = format!("{GOOD}{}", " ".repeat(MAX_RECORD_BYTES));
        assert!(matches!(parse(long.as_bytes()), Err(RecordError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn i10_any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn every_record_survives_the_file(
            generation in 1..MAX_GENERATION, nonce: u64, guest in "[^\\p{C}]{1,40}", host in "[a-z.\" \\\\]{1,20}",
            kind in 0..4,
        ) {
            let ownership = match kind {
                0 => Ownership::Protected { primary: host.clone(), backup: host },
                1 => Ownership::Solo { primary: host },
                2 => Ownership::Owned { backup: host },
                _ => Ownership::Ended,
            };
            let record = Record { ownership, generation: Generation(generation), nonce };
            let bytes = format(&guest, &record).unwrap();
            prop_assert_eq!(parse(&bytes).unwrap(), (guest, record));
        }
    }
}
