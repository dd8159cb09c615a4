//! An artificial delay in one step of the pause, to show that the harness finds it where it is.

use std::str::FromStr;
use std::time::Duration;

use romulus_checkpoint::metrics::Phase;
use serde::Serialize;

/// The steps that can be delayed: those that the engine calls the guest and the gate for.
const PHASES: [Phase; 5] = [Phase::Stop, Phase::Gate, Phase::State, Phase::Collect, Phase::Resume];
/// Longest delay.
const MOST: Duration = Duration::from_secs(10);

/// `collect=1ms`, or `collect=300ms@50`: only in the 50th pause that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// Where.
    pub phase: Phase,
    /// How long.
    pub time: Duration,
    /// Only in this pause, counted from 1 when measuring begins.
    pub only_pause: Option<u64>,
}

impl Serialize for Delay {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let only = self.only_pause.map(|pause| format!("@{pause}")).unwrap_or_default();
        serializer.serialize_str(&format!("{}={}us{only}", self.phase.name(), self.time.as_micros()))
    }
}

impl FromStr for Delay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not PHASE=TIME or PHASE=TIME@PAUSE, as in collect=1ms");
        let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
        let (time, only) = match rest.split_once('@') {
            Some((time, pause)) => (time, Some(pause.parse().map_err(|_| wrong())?)),
            None => (rest, None),
        };
        let phase = PHASES.into_iter().find(|phase| phase.name() == name).ok_or_else(|| {
            let names: Vec<_> = PHASES.iter().map(|phase| phase.name()).collect();
            format!("`{name}` cannot be delayed; {} can", names.join(", "))
        })?;
        let time = humantime::parse_duration(time).map_err(|error| format!("`{time}`: {error}"))?;
        if time > MOST {
            return Err(format!("`{text}`: at most {MOST:?}"));
        }
        Ok(Self { phase, time, only_pause: only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_read_and_nonsense_is_refused() {
        let delay: Delay = "collect=1ms".parse().unwrap();
        assert_eq!(delay, Delay { phase: Phase::Collect, time: Duration::from_millis(1), only_pause: None });
        let delay: Delay = "stop=300ms@50".parse().unwrap();
        assert_eq!((delay.phase, delay.only_pause), (Phase::Stop, Some(50)));
        for (bad, word) in [
            ("collect", "PHASE=TIME"),
            ("copy=1ms", "can"),
            ("stop=x", "x"),
            ("stop=1h", "at most"),
            ("stop=1ms@x", "PAUSE"),
        ] {
            let error = bad.parse::<Delay>().unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
