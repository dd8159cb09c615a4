//! Reads and writes the fields of message bodies: a bounded cursor that never panics.

use super::limits::MAX_NUMBER;
use super::message::DecodeError;

/// Shorthand for a refusal.
pub(super) fn malformed(why: impl Into<String>) -> DecodeError {
    DecodeError::Malformed(why.into())
}

/// A peer's text for logs and terminals: control characters are spaces.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// Reads a body from front to back.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    pub(super) fn take(&mut self, what: &str, len_bytes: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.rest.split_at_checked(len_bytes) else {
            return Err(malformed(format!("{what} needs {len_bytes} bytes, {} are left", self.rest.len())));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(what, N)?);
        Ok(array)
    }

    pub(super) fn u16(&mut self, what: &str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number within inclusive limits.
    pub(super) fn within(&mut self, what: &str, low: u64, high: u64) -> Result<u64, DecodeError> {
        let value = self.u64(what)?;
        if (low..=high).contains(&value) {
            return Ok(value);
        }
        Err(malformed(format!("{what} {value} is not within {low}..={high}")))
    }

    /// A number that counts on: at most [`MAX_NUMBER`].
    pub(super) fn number(&mut self, what: &str, low: u64) -> Result<u64, DecodeError> {
        self.within(what, low, MAX_NUMBER)
    }

    /// A count within inclusive limits.
    pub(super) fn count(&mut self, what: &str, low: usize, high: usize) -> Result<usize, DecodeError> {
        let count = usize::from(self.u16(what)?);
        if (low..=high).contains(&count) {
            return Ok(count);
        }
        Err(malformed(format!("{count} {what}s are not within {low}..={high}")))
    }

    /// Bytes that must be zero.
    pub(super) fn reserved(&mut self, len_bytes: usize) -> Result<(), DecodeError> {
        if self.take("reserved bytes", len_bytes)?.iter().any(|byte| *byte != 0) {
            return Err(malformed("reserved bytes are not zero"));
        }
        Ok(())
    }

    /// UTF-8 behind a 16-bit length.
    pub(super) fn text(&mut self, what: &str, max_bytes: usize) -> Result<&'a str, DecodeError> {
        let len_bytes = usize::from(self.u16(what)?);
        if len_bytes > max_bytes {
            return Err(malformed(format!("{what} of {len_bytes} bytes exceeds {max_bytes}")));
        }
        std::str::from_utf8(self.take(what, len_bytes)?)
            .map_err(|_| malformed(format!("{what} is not UTF-8")))
    }

    /// Text without control characters, not empty.
    pub(super) fn name(&mut self, what: &str, max_bytes: usize) -> Result<String, DecodeError> {
        let name = self.text(what, max_bytes)?;
        if name.is_empty() {
            return Err(malformed(format!("{what} is empty")));
        }
        if name.chars().any(char::is_control) {
            return Err(malformed(format!("{what} has control characters")));
        }
        Ok(name.to_owned())
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(malformed(format!("{left} bytes too many"))),
        }
    }
}

/// Appends text behind its 16-bit length. A text too long for its length field gets a length
/// that every decoder refuses.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// Appends a 16-bit count; one that does not fit becomes a count that every decoder refuses.
pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    put_u16(out, u16::try_from(count).unwrap_or(u16::MAX));
}

pub(super) fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_zeros(out: &mut Vec<u8>, len_bytes: usize) {
    out.resize(out.len() + len_bytes, 0);
}
