//! Which arbiter to use, as written on a command line: `file:PATH` or `none`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::file::FileArbiter;
use super::none::{AutomaticMoves, NoArbiter};
use super::{Arbiter, ArbiterError};

/// An arbiter by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArbiterSpec {
    /// A file or a directory that both hosts reach, with working locks.
    File(PathBuf),
    /// Nobody arbitrates; see [`super::none`] for the danger.
    None,
}

impl ArbiterSpec {
    /// Opens it. `moves` matters only where nobody arbitrates.
    pub fn open(&self, moves: AutomaticMoves) -> Result<Arc<dyn Arbiter>, ArbiterError> {
        Ok(match self {
            ArbiterSpec::File(path) => Arc::new(FileArbiter::open(path)?),
            ArbiterSpec::None => Arc::new(NoArbiter::new(moves)),
        })
    }

    /// The moves that may be automatic: (going solo, taking over). A real arbiter allows both.
    pub fn automatic_moves(&self, moves: AutomaticMoves) -> (bool, bool) {
        match self {
            ArbiterSpec::File(_) => (true, true),
            ArbiterSpec::None => {
                let none = NoArbiter::new(moves);
                (none.solo_automatic(), none.takeover_automatic())
            }
        }
    }
}

impl fmt::Display for ArbiterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArbiterSpec::File(path) => write!(f, "file:{}", path.display()),
            ArbiterSpec::None => f.write_str("none"),
        }
    }
}

impl FromStr for ArbiterSpec {
    type Err = ArbiterError;

    fn from_str(text: &str) -> Result<Self, ArbiterError> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(ArbiterSpec::File(PathBuf::from(path))),
            Some(("file", _)) => {
                Err(ArbiterError("`file:` needs a path, as in `file:/srv/romulus/`".to_owned()))
            }
            None if text == "none" => Ok(ArbiterSpec::None),
            _ => Err(ArbiterError(format!("`{text}` is no arbiter; there are `file:PATH` and `none`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in ["none", "file:/srv/vm.json", "file:relative/dir/", "file:/odd:name"] {
            assert_eq!(text.parse::<ArbiterSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_the_rest_by_name() {
        for text in ["", "file", "file:", "None", "none:", "etcd:http://x", "/srv/vm.json"] {
            let error = text.parse::<ArbiterSpec>().unwrap_err().to_string();
            assert!(error.contains("file:"), "{text}: {error}");
        }
    }
}
