//! The state of an epoch: the devices of a stream behind a short header of our own.

use super::{HEADER, SECTION_EOF, SECTION_FULL, StreamError};

/// Length of the header before the devices.
pub const STATE_HEADER_BYTES: usize = 8;

/// Magic and version of a state.
const MAGIC: [u8; STATE_HEADER_BYTES] = *b"RQSTATE\x01";

/// The header to put before the devices.
pub fn seal_state() -> [u8; STATE_HEADER_BYTES] {
    MAGIC
}

/// The devices of a state.
pub fn open_state(state: &[u8]) -> Result<&[u8], StreamError> {
    let Some(devices) = state.strip_prefix(&MAGIC) else {
        return Err(StreamError { at: 0, why: "not a state of a QEMU guest, version 1".into() });
    };
    check_devices(devices)?;
    Ok(devices)
}

/// The devices of a stream of `xen-save-devices-state`: all but its header.
pub fn devices_of_save(stream: &[u8]) -> Result<&[u8], StreamError> {
    let Some(devices) = stream.strip_prefix(&HEADER) else {
        return Err(StreamError { at: 0, why: "not a QEMU migration stream of version 3".into() });
    };
    check_devices(devices)?;
    Ok(devices)
}

fn check_devices(devices: &[u8]) -> Result<(), StreamError> {
    if devices.first() != Some(&SECTION_FULL) {
        return Err(StreamError { at: 8, why: "the section of a device expected".into() });
    }
    if devices.last() != Some(&SECTION_EOF) {
        return Err(StreamError { at: devices.len() + 8, why: "no end mark".into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_state_opens() {
        let mut state = seal_state().to_vec();
        state.extend(b"\x04device\0");
        assert_eq!(open_state(&state).unwrap(), b"\x04device\0");
    }

    #[test]
    fn refuses_what_is_no_state() {
        assert!(open_state(b"").is_err());
        assert!(open_state(b"RQSTATE\x01").is_err());
        assert!(open_state(b"RQSTATE\x01\x04cut off").is_err());
        assert!(open_state(b"RQSTATE\x02\x04device\0").is_err());
        assert!(devices_of_save(b"QEVM\0\0\0\x03\x04device\0").is_ok());
        assert!(devices_of_save(b"QEVM\0\0\0\x02\x04device\0").is_err());
    }
}
