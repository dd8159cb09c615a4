//! The control socket of a running instance: one JSON line a request, one JSON line an answer.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exit::{Code, Failure};

/// Longest request and answer in bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// A client that says nothing for so long is dropped.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// What can be asked of an instance.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How it stands.
    Status,
    /// Move the guest to the backup; at a backup: take over.
    Failover {
        /// At a backup: although the primary is still connected.
        force: bool,
    },
    /// End protection; the guest runs on where it is.
    Stop,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done, or begun, with what was asked for.
    Ok(serde_json::Value),
    /// Refused or failed, and why.
    Error(String),
}

/// Where the control socket of a role is when not said otherwise.
pub fn default_path(role: &str) -> PathBuf {
    runtime_dir().join(format!("{role}.sock"))
}

/// The folder for sockets of this user.
pub fn runtime_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/run/romulus");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) => PathBuf::from(dir).join("romulus"),
        None => std::env::temp_dir().join(format!("romulus-{}", rustix::process::geteuid().as_raw())),
    }
}

/// A bound control socket; removed when dropped.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    _lock: Lock,
}

impl ControlSocket {
    /// Binds it. A socket left by an instance that is gone is replaced; a live one, and anything that is
    /// no socket, is an error and stays as it is.
    pub fn bind(path: &Path) -> Result<Self, Failure> {
        let failed = |what: &str, e: std::io::Error| {
            Failure::system(
                format_args!("control socket {} (--control names another place): {what}", path.display()),
                &e,
            )
        };
        let refused =
            |why: &str| Failure::new(Code::Refused, format!("control socket {}: {why}", path.display()));
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
            std::fs::create_dir_all(dir).map_err(|e| failed("creating its folder", e))?;
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
                .map_err(|e| failed("protecting its folder", e))?;
        }
        let there = std::fs::symlink_metadata(path);
        if there.is_ok_and(|there| !there.file_type().is_socket()) {
            return Err(refused("what is there is no socket; give it another place with --control"));
        }
        let Some(lock) = Lock::take(path).map_err(|e| failed("creating its lock", e))? else {
            return Err(refused(
                "another instance of romulus uses it; end that one (romulus stop), or give this one its own with \
                 --control",
            ));
        };
        // The lock is ours, so whoever made an old socket is gone.
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).map_err(|e| failed("binding", e))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(|e| failed("protecting", e))?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }

    /// Answers clients on a thread of its own for the life of the process.
    pub fn serve(&self, answer: impl Fn(Request) -> Answer + Send + Sync + 'static) -> Result<(), Failure> {
        let listener = self
            .listener
            .try_clone()
            .map_err(|e| Failure::failed(format!("control socket {}: {e}", self.path.display())))?;
        let serve = move || {
            for client in listener.incoming() {
                let Ok(client) = client else {
                    // Out of descriptors, most likely: others have to close theirs first.
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                };
                if let Err(e) = answer_one(&client, &answer) {
                    tracing::debug!("control client: {e}");
                }
            }
        };
        std::thread::Builder::new()
            .name("rom-admin".into())
            .spawn(serve)
            .map(drop)
            .map_err(|e| Failure::failed(format!("starting the control thread: {e}")))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The lock beside a control socket: an empty file of its whole name and `.lock`, removed when dropped.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes it, or `None` if somebody else has it. A lock on a file that its last owner has unlinked
    /// meanwhile would exclude nobody, hence the second look.
    fn take(socket: &Path) -> std::io::Result<Option<Self>> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
                return Ok(None);
            }
            let ours = file.metadata()?;
            if ours.len() > 0 {
                let why = format!("{} is there, and no lock: it is not empty", path.display());
                return Err(std::io::Error::new(ErrorKind::AlreadyExists, why));
            }
            if std::fs::metadata(&path).is_ok_and(|there| there.ino() == ours.ino()) {
                return Ok(Some(Self { path, _file: file }));
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn answer_one(client: &UnixStream, answer: &dyn Fn(Request) -> Answer) -> std::io::Result<()> {
    client.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    client.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(client.take(MAX_LINE_BYTES)).read_line(&mut line)?;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => answer(request),
        Err(e) => Answer::Error(format!("not a request: {e}")),
    };
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    (&*client).write_all(&bytes)
}

/// Whether an instance listens at a control socket: a file that is there may be what one left that was killed.
pub fn listens(path: &Path) -> Result<bool, Failure> {
    match UnixStream::connect(path) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(false),
        Err(e) => Err(Failure::system(format_args!("control socket {}", path.display()), &e)),
    }
}

/// Asks the instance behind a control socket.
pub fn ask(path: &Path, request: &Request) -> Result<serde_json::Value, Failure> {
    let failed = |what: &str, e: &dyn std::fmt::Display| {
        Failure::failed(format!("control socket {}: {what}: {e}", path.display()))
    };
    let stream = UnixStream::connect(path).map_err(|e| {
        Failure::failed(format!(
            "control socket {}: {e}; is romulus running there? (--control names another)",
            path.display()
        ))
    })?;
    stream.set_read_timeout(Some(CLIENT_TIMEOUT)).map_err(|e| failed("setting a timeout", &e))?;
    let mut bytes = serde_json::to_vec(request).map_err(|e| failed("writing the request", &e))?;
    bytes.push(b'\n');
    (&stream).write_all(&bytes).map_err(|e| failed("sending", &e))?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_LINE_BYTES))
        .read_line(&mut line)
        .map_err(|e| failed("waiting for the answer", &e))?;
    match serde_json::from_str(&line).map_err(|e| failed("reading the answer", &e))? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(text) => Err(Failure::new(Code::Refused, text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_garbage_is_refused_and_a_second_instance_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        socket
            .serve(|request| match request {
                Request::Status => Answer::Ok(serde_json::json!({"state": "solo"})),
                _ => Answer::Error("not now".into()),
            })
            .unwrap();
        assert_eq!(ask(&path, &Request::Status).unwrap()["state"], "solo");
        assert_eq!(ask(&path, &Request::Stop).unwrap_err().code, Code::Refused);

        let mut garbage = UnixStream::connect(&path).unwrap();
        garbage.write_all(b"\xff\xfe{]\n").unwrap();
        drop(garbage);
        assert_eq!(ask(&path, &Request::Status).unwrap()["state"], "solo");

        assert_eq!(ControlSocket::bind(&path).err().unwrap().code, Code::Refused);
        drop(socket);
        assert!(!path.exists());
    }
    #[test]
    fn nothing_but_an_abandoned_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let [stale, file, locked] = ["stale", "notes.txt", "c.sock"].map(|name| dir.path().join(name));
        drop(UnixListener::bind(&stale).unwrap());
        assert!(!listens(&stale).unwrap());
        let socket = ControlSocket::bind(&stale).unwrap();
        assert!(listens(&stale).unwrap());
        drop(socket);

        std::fs::write(&file, "mine").unwrap();
        let failure = ControlSocket::bind(&file).err().unwrap();
        assert_eq!(failure.code, Code::Refused);
        assert!(failure.message.contains("no socket"), "{failure}");
        let foreign_lock = dir.path().join("c.sock.lock");
        std::fs::write(&foreign_lock, "mine").unwrap();
        assert!(ControlSocket::bind(&locked).is_err());
        for kept in [&file, &foreign_lock] {
            assert_eq!(std::fs::read_to_string(kept).unwrap(), "mine", "{}", kept.display());
        }
    }

    #[test]
    fn sockets_whose_names_differ_in_the_last_part_have_locks_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let beside = dir.path().join("vm1.lock");
        std::fs::write(&beside, "mine").unwrap();
        let both =
            ["vm1.protect", "vm1.backup"].map(|name| ControlSocket::bind(&dir.path().join(name)).unwrap());
        drop(both);
        assert_eq!(std::fs::read_to_string(&beside).unwrap(), "mine");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
