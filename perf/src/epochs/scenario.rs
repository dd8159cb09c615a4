//! Scenarios as data: what is measured under which name.
//!
//! A scenario is a table of a TOML file. A field with a list stands for each of its values, and
//! fields with lists for all combinations of them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::exit::{Failure, OrFail};
use crate::fabrics::Kind;

/// The scenarios that ship with the program.
const SHIPPED: &str = include_str!("../../scenarios.toml");
/// Most cases of one scenario.
pub const MOST_CASES: usize = 1000;

/// A value, or several to be tried one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// One.
    One(T),
    /// Each of them.
    Many(Vec<T>),
}

impl<T: Clone> OneOrMany<T> {
    /// All of them.
    pub fn values(&self) -> Vec<T> {
        match self {
            OneOrMany::One(value) => vec![value.clone()],
            OneOrMany::Many(values) => values.clone(),
        }
    }
}

macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// As in scenarios and labels.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }
    };
}

choices! {
    /// Which pages the guest writes.
    Pattern {
        /// Exactly so many different pages, none beside another.
        Strided = "strided",
        /// At random.
        Uniform = "uniform",
        /// Most in the first `hot_pages`, the rest at random.
        HotSet = "hot_set",
        /// One after another.
        Sequential = "sequential",
        /// By popularity.
        Zipf = "zipf",
    }
}

choices! {
    /// How pages leave the guest.
    Capture {
        /// Copied in the pause, sent meanwhile and after it; epochs too large for that as `sent_now`.
        Staged = "staged",
        /// In the pause straight from the guest as far as the fabric takes them at once, and staged
        /// beyond that.
        SentNow = "sent_now",
        /// Sent from the guest's memory while it is paused.
        Direct = "direct",
    }
}

choices! {
    /// How dirty pages are found.
    Tracking {
        /// The writers say what they wrote.
        Reported = "reported",
        /// The kernel says: userfaultfd and PAGEMAP_SCAN.
        WriteProtect = "write_protect",
    }
}

choices! {
    /// How much of a page a write changes.
    Fill {
        /// A few words.
        Touch = "touch",
        /// All of it.
        Whole = "whole",
    }
}

/// A scenario. Absent fields are as in [`Scenario::default`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// For people.
    pub about: String,
    /// Memory of the guest.
    pub guest_mib: OneOrMany<u64>,
    /// Of a guest that has written only some of its memory: how much. Absent: all of it.
    pub filled_mib: Option<u64>,
    /// Pages written in each epoch, as soon as the guest runs.
    pub dirty_pages: Option<OneOrMany<u64>>,
    /// Pages written a second, instead; 0: as many as the guest can.
    pub pages_per_second: Option<OneOrMany<u64>>,
    /// Length of an epoch.
    pub interval_ms: OneOrMany<f64>,
    /// Which pages.
    pub pattern: OneOrMany<Pattern>,
    /// Size of the hot set.
    pub hot_pages: u64,
    /// Writes that go there.
    pub hot_percent: u8,
    /// How much of a page a write changes.
    pub fill: OneOrMany<Fill>,
    /// Threads of the guest.
    pub writers: OneOrMany<u64>,
    /// How pages leave the guest.
    pub capture: OneOrMany<Capture>,
    /// Threads that copy beside the capturing one.
    pub copy_workers: OneOrMany<u64>,
    /// Threads and their cores, as `--pin`. Absent: the option's.
    pub pin: Option<OneOrMany<String>>,
    /// How dirty pages are found.
    pub tracking: OneOrMany<Tracking>,
    /// What moves the bytes. Absent: the option's.
    pub fabric: Option<OneOrMany<Kind>>,
    /// Data streams. Absent: the option's.
    pub streams: Option<OneOrMany<u64>>,
    /// Epochs that are captured and not yet committed at the most.
    pub depth: OneOrMany<u64>,
    /// Device state.
    pub state_kib: OneOrMany<u64>,
    /// The measured part of each case.
    pub seconds: f64,
    /// Protected for so long before it.
    pub settle_seconds: f64,
    /// The guest alone for so long, for the slow-down (loads in pages a second).
    pub alone_seconds: f64,
    /// Search for the highest rate first and measure at it.
    pub find_max: bool,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            about: String::new(),
            guest_mib: OneOrMany::One(1024),
            filled_mib: None,
            dirty_pages: None,
            pages_per_second: None,
            interval_ms: OneOrMany::One(25.0),
            pattern: OneOrMany::One(Pattern::Strided),
            hot_pages: 8192,
            hot_percent: 90,
            fill: OneOrMany::One(Fill::Touch),
            writers: OneOrMany::One(1),
            capture: OneOrMany::One(Capture::Staged),
            copy_workers: OneOrMany::One(0),
            pin: None,
            tracking: OneOrMany::One(Tracking::Reported),
            fabric: None,
            streams: None,
            depth: OneOrMany::One(2),
            state_kib: OneOrMany::One(64),
            seconds: 5.0,
            settle_seconds: 1.0,
            alone_seconds: 2.0,
            find_max: false,
        }
    }
}

/// Scenarios by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scenarios(BTreeMap<String, toml::Table>);

impl Scenarios {
    /// Those of a file, or those that ship with the program.
    pub fn load(path: Option<&Path>) -> Result<Self, Failure> {
        let text = match path {
            Some(path) => std::fs::read_to_string(path).or_fail(format!("--scenarios {}", path.display()))?,
            None => SHIPPED.to_owned(),
        };
        let what = path.map_or("the shipped scenarios".to_owned(), |path| path.display().to_string());
        Self::parse(&text).map_err(|error| Failure::usage(format!("{what}: {error}")))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let tables: BTreeMap<String, toml::Table> =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let scenarios = Self(tables);
        for name in scenarios.0.keys() {
            scenarios.get(name, &[])?;
        }
        Ok(scenarios)
    }

    /// Names and what they are about.
    pub fn list(&self) -> Vec<(String, Scenario)> {
        let get = |name: &String| self.get(name, &[]).ok().map(|scenario| (name.clone(), scenario));
        self.0.keys().filter_map(get).collect()
    }

    /// A scenario by name, with some of its fields set otherwise (`guest_mib=512`,
    /// `dirty_pages=[100,1000]`).
    pub fn get(&self, name: &str, set: &[String]) -> Result<Scenario, String> {
        let Some(table) = self.0.get(name) else {
            let known: Vec<_> = self.0.keys().map(String::as_str).collect();
            return Err(format!("there is no scenario `{name}`; there are: {}", known.join(", ")));
        };
        let mut table = table.clone();
        for item in set {
            let (field, value) = item
                .split_once('=')
                .ok_or_else(|| format!("--set {item}: FIELD=VALUE is expected, as in guest_mib=512"))?;
            // A bare word is a name.
            let parse = |value: &str| toml::from_str::<toml::Table>(&format!("value = {value}"));
            let parsed = parse(value).or_else(|_| parse(&format!("{value:?}")));
            let mut parsed = parsed.map_err(|error| format!("--set {item}: {}", error.message()))?;
            table.extend(parsed.remove("value").map(|value| (field.trim().to_owned(), value)));
        }
        let scenario: Result<Scenario, _> = toml::Value::Table(table).try_into();
        scenario.map_err(|error| format!("scenario `{name}`: {}", error.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_scenarios_are_sound_and_say_what_they_are_about() {
        let scenarios = Scenarios::load(None).unwrap();
        let list = scenarios.list();
        assert!(list.len() >= 5);
        assert!(list.iter().all(|(_, scenario)| !scenario.about.is_empty()));
    }

    #[test]
    fn fields_are_set_from_the_command_line() {
        let scenarios = Scenarios::parse("[a]\nabout = \"x\"\ndirty_pages = 5\n").unwrap();
        let set = ["guest_mib=[1,2]", "pattern=zipf", "seconds=0.5", "find_max=true"].map(str::to_owned);
        let scenario = scenarios.get("a", &set).unwrap();
        assert_eq!(scenario.guest_mib.values(), [1, 2]);
        assert_eq!(scenario.pattern.values(), [Pattern::Zipf]);
        assert_eq!(scenario.dirty_pages.as_ref().map(OneOrMany::values), Some(vec![5]));
        assert!(scenario.find_max && scenario.seconds == 0.5);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let scenarios = Scenarios::parse("[a]\nabout = \"x\"\n").unwrap();
        for (name, set, word) in [
            ("b", "", "there are: a"),
            ("a", "guest_mib", "FIELD=VALUE"),
            ("a", "color=1", "color"),
            ("a", "pattern=plaid", "pattern"),
            ("a", "guest_mib=-1", "guest_mib"),
        ] {
            let set: Vec<_> = (!set.is_empty()).then(|| set.to_owned()).into_iter().collect();
            let error = scenarios.get(name, &set).unwrap_err();
            assert!(error.contains(word) || error.contains("scenario `a`"), "{name} {set:?}: {error}");
        }
        assert!(Scenarios::parse("[a]\ncolour = 1\n").unwrap_err().contains("colour"));
    }
}
