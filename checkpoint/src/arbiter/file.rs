//! The arbiter on a file that both hosts reach: one machine, or a shared file system whose locks
//! work between hosts.
//!
//! A swap takes an exclusive advisory lock on a separate lock file (which is never replaced or
//! removed), compares, writes the new record to a second file, syncs it, renames it over the
//! record and syncs the directory. So a crash or a full disk at any step leaves the old record or
//! the new one. A read takes the same lock and syncs the directory first: a record that was read
//! does not vanish with the power.
//!
//! The lock is what makes the swap atomic. A file system that grants it to two hosts at once (or
//! takes it away from a host that goes on writing) gives no protection against two guests.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::record_file::{self, MAX_RECORD_BYTES};
use super::{Arbiter, ArbiterError, Record, SwapOutcome};

/// How long a read or swap waits for the lock.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(1);

/// Keeps one record in a file, or the records of many guests in a directory.
#[derive(Clone, Debug)]
pub struct FileArbiter {
    place: Place,
    lock_patience: Duration,
}

#[derive(Clone, Debug)]
enum Place {
    Directory(PathBuf),
    File(PathBuf),
}

impl FileArbiter {
    /// An arbiter at `path`: a directory (one that exists, or a path that ends in `/`, which is
    /// made if its parent exists) with a file `GUEST.json` for each guest; otherwise the record
    /// file of one guest, in a directory that exists.
    pub fn open(path: &Path) -> Result<Self, ArbiterError> {
        let names_directory = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        if names_directory && !path.exists() {
            match std::fs::create_dir(path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(failed("cannot make the directory", path, &error));
                }
                _ => {}
            }
        }
        let place = if path.is_dir() {
            Place::Directory(path.to_owned())
        } else {
            if path.file_name().is_none() {
                return Err(ArbiterError(format!("{} names no file", path.display())));
            }
            let parent = directory_of(path);
            if !parent.is_dir() {
                return Err(ArbiterError(format!("{} is no directory", parent.display())));
            }
            Place::File(path.to_owned())
        };
        Ok(Self { place, lock_patience: LOCK_PATIENCE })
    }

    /// As [`open`](Self::open), waiting this long for the lock.
    pub fn with_lock_patience(mut self, patience: Duration) -> Self {
        self.lock_patience = patience;
        self
    }

    /// The record file of a guest.
    pub fn record_path(&self, guest: &str) -> Result<PathBuf, ArbiterError> {
        record_file::check_name("guest", guest).map_err(|error| ArbiterError(error.to_string()))?;
        match &self.place {
            Place::File(path) => Ok(path.clone()),
            Place::Directory(directory) => {
                let name = file_name(guest);
                if name.len() > 240 {
                    return Err(ArbiterError(format!("guest name `{guest}` is too long for a file name")));
                }
                Ok(directory.join(name))
            }
        }
    }

    fn lock(&self, record: &Path) -> Result<Locked, ArbiterError> {
        let path = with_suffix(record, ".lock");
        // Opened for writing: NFS grants exclusive locks on such descriptors only.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| failed("cannot open the lock file", &path, &error))?;
        let deadline = Instant::now() + self.lock_patience;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Locked { _file: file }),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_POLL);
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    let waited = self.lock_patience;
                    return Err(ArbiterError(format!(
                        "{}: another process has held the lock for {waited:?}",
                        path.display()
                    )));
                }
                Err(errno) => return Err(failed("cannot lock", &path, &errno.into())),
            }
        }
    }

    fn try_swap(
        &self,
        guest: &str,
        expected: Option<&Record>,
        new: &Record,
    ) -> Result<SwapOutcome, ArbiterError> {
        let path = self.record_path(guest)?;
        let bytes = record_file::format(guest, new).map_err(|error| ArbiterError(error.to_string()))?;
        let _locked = self.lock(&path)?;
        let found = read_durable(&path, guest)?;
        if found.as_ref() == Some(new) {
            // This very swap was made before, by an attempt whose outcome stayed unknown.
            return Ok(SwapOutcome::Won);
        }
        if found.as_ref() != expected {
            return Ok(SwapOutcome::Lost(found));
        }
        replace(&path, &bytes)?;
        Ok(SwapOutcome::Won)
    }
}

impl Arbiter for FileArbiter {
    fn read(&self, guest: &str) -> Result<Option<Record>, ArbiterError> {
        let path = self.record_path(guest)?;
        let _locked = self.lock(&path)?;
        read_durable(&path, guest)
    }

    fn swap(&self, guest: &str, expected: Option<&Record>, new: &Record) -> SwapOutcome {
        self.try_swap(guest, expected, new).unwrap_or_else(|error| SwapOutcome::Unknown(error.0))
    }
}

/// Held until dropped; the kernel lets go of it when the process ends.
struct Locked {
    _file: File,
}

/// The record at `path`, which survives a loss of power from now on.
fn read_durable(path: &Path, guest: &str) -> Result<Option<Record>, ArbiterError> {
    // A process that died between rename and sync leaves a record that only memory knows.
    sync_directory(path)?;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("cannot open the record", path, &error)),
    };
    let mut bytes = Vec::with_capacity(MAX_RECORD_BYTES + 1);
    file.take(MAX_RECORD_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed("cannot read the record", path, &error))?;
    let (found_guest, record) =
        record_file::parse(&bytes).map_err(|error| ArbiterError(format!("{}: {error}", path.display())))?;
    if found_guest != guest {
        return Err(ArbiterError(format!(
            "{} is the record of guest `{found_guest}`, not of `{guest}`",
            path.display()
        )));
    }
    Ok(Some(record))
}

/// Puts `bytes` in the place of the record. After an error it is the old one or the new one.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), ArbiterError> {
    let fresh = with_suffix(path, ".new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(failed("cannot remove", &fresh, &error));
        }
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    if let Err(error) = written {
        let _ = std::fs::remove_file(&fresh);
        return Err(failed("cannot write", &fresh, &error));
    }
    std::fs::rename(&fresh, path).map_err(|error| failed("cannot rename onto", path, &error))?;
    sync_directory(path)
}

fn sync_directory(record: &Path) -> Result<(), ArbiterError> {
    let directory = directory_of(record);
    File::open(directory)
        .and_then(|opened| opened.sync_all())
        .map_err(|error| failed("cannot sync the directory", directory, &error))
}

fn directory_of(record: &Path) -> &Path {
    match record.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A guest's name as a file name: letters, digits, `-`, `_` and inner dots as they are, the rest
/// as `%` and two hexadecimal digits a byte.
fn file_name(guest: &str) -> String {
    use std::fmt::Write;
    let mut name = String::new();
    for (index, byte) in guest.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte.into()),
            b'.' if index > 0 => name.push('.'),
            _ => write!(name, "%{byte:02x}").expect("writing to a String succeeds"),
        }
    }
    name + ".json"
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> ArbiterError {
    ArbiterError(format!("{what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::Ownership;

    fn owned(record: &Record, nonce: u64) -> Record {
        record.successor(Ownership::Owned { backup: "b".into() }, nonce)
    }

    #[test]
    fn swaps_only_from_what_is_expected() {
        let directory = tempfile::tempdir().unwrap();
        for path in
            [directory.path().to_owned(), directory.path().join("one.json"), directory.path().join("d/")]
        {
            let arbiter = FileArbiter::open(&path).unwrap();
            assert_eq!(arbiter.read("vm/1").unwrap(), None);
            let first = Record::first_solo("a").unwrap();
            assert_eq!(arbiter.swap("vm/1", Some(&first), &first), SwapOutcome::Lost(None));
            assert_eq!(arbiter.swap("vm/1", None, &first), SwapOutcome::Won);
            assert_eq!(arbiter.swap("vm/1", None, &owned(&first, 1)), SwapOutcome::Lost(Some(first.clone())));
            assert_eq!(arbiter.swap("vm/1", Some(&first), &owned(&first, 2)), SwapOutcome::Won);
            assert_eq!(arbiter.read("vm/1").unwrap(), Some(owned(&first, 2)));
            // The same swap again is no second one.
            assert_eq!(arbiter.swap("vm/1", Some(&first), &owned(&first, 2)), SwapOutcome::Won);
        }
    }

    #[test]
    fn names_of_guests_stay_inside_the_directory_and_apart() {
        assert_eq!(file_name("vm-1.a_B"), "vm-1.a_B.json");
        assert_eq!(file_name("../x"), "%2e.%2fx.json");
        assert_eq!(file_name("a%2fb"), "a%252fb.json");
        let directory = tempfile::tempdir().unwrap();
        let arbiter = FileArbiter::open(directory.path()).unwrap();
        for bad in ["", "a\nb", &"x".repeat(250)] {
            assert!(arbiter.read(bad).is_err());
        }
    }

    #[test]
    fn i10_errors_name_the_path_and_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.json");
        let arbiter = FileArbiter::open(&path).unwrap();
        let first = Record::first_solo("a").unwrap();
        let endless = vec![b' '; MAX_RECORD_BYTES + 1];
        for garbage in [&b""[..], b"{", b"\xff\xfe", &endless] {
            std::fs::write(&path, garbage).unwrap();
            let error = arbiter.read("vm").unwrap_err().to_string();
            assert!(error.contains("r.json"), "{error}");
            assert!(matches!(arbiter.swap("vm", None, &first), SwapOutcome::Unknown(_)));
            assert_eq!(std::fs::read(&path).unwrap(), garbage);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(arbiter.swap("vm", None, &first), SwapOutcome::Won);
        assert!(arbiter.read("other").unwrap_err().to_string().contains("`vm`"));
        let missing = FileArbiter::open(&directory.path().join("no/where.json"));
        assert!(missing.unwrap_err().to_string().contains("/no"));
    }

    #[test]
    fn a_lock_that_is_held_gives_an_unknown_outcome_in_bounded_time() {
        let directory = tempfile::tempdir().unwrap();
        let arbiter =
            FileArbiter::open(directory.path()).unwrap().with_lock_patience(Duration::from_millis(5));
        let held = arbiter.lock(&arbiter.record_path("vm").unwrap()).unwrap();
        let first = Record::first_solo("a").unwrap();
        assert!(
            matches!(arbiter.swap("vm", None, &first), SwapOutcome::Unknown(why) if why.contains("lock"))
        );
        assert!(arbiter.read("vm").is_err());
        drop(held);
        assert_eq!(arbiter.read("vm").unwrap(), None);
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_record() {
        let directory = tempfile::tempdir().unwrap();
        let arbiter = FileArbiter::open(directory.path()).unwrap();
        let first = Record::first_solo("a").unwrap();
        assert_eq!(arbiter.swap("vm", None, &first), SwapOutcome::Won);
        let fresh = with_suffix(&arbiter.record_path("vm").unwrap(), ".new");
        let bytes = record_file::format("vm", &owned(&first, 1)).unwrap();
        for cut in 0..=bytes.len() {
            std::fs::write(&fresh, &bytes[..cut]).unwrap();
            assert_eq!(arbiter.read("vm").unwrap(), Some(first.clone()));
        }
        assert_eq!(arbiter.swap("vm", Some(&first), &owned(&first, 2)), SwapOutcome::Won);
        assert!(!fresh.exists());
    }

    #[test]
    fn what_cannot_be_written_is_unknown_and_the_old_record_stands() {
        let directory = tempfile::tempdir().unwrap();
        let arbiter = FileArbiter::open(directory.path()).unwrap();
        let first = Record::first_solo("a").unwrap();
        assert_eq!(arbiter.swap("vm", None, &first), SwapOutcome::Won);
        // A directory in the way of the new file stands for every failure to write it.
        let fresh = with_suffix(&arbiter.record_path("vm").unwrap(), ".new");
        std::fs::create_dir(&fresh).unwrap();
        let outcome = arbiter.swap("vm", Some(&first), &owned(&first, 1));
        assert!(matches!(outcome, SwapOutcome::Unknown(why) if why.contains(".new")));
        assert_eq!(arbiter.read("vm").unwrap(), Some(first));
    }
}
