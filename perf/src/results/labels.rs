//! What tells one figure from another of the same name.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The value of a label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Label {
    /// On or off.
    Flag(bool),
    /// A size, a rate, a count: can be an axis of a plot.
    Number(f64),
    /// A name.
    Text(String),
}

impl From<bool> for Label {
    fn from(value: bool) -> Self {
        Label::Flag(value)
    }
}

impl From<f64> for Label {
    fn from(value: f64) -> Self {
        Label::Number(value)
    }
}

impl From<u64> for Label {
    fn from(value: u64) -> Self {
        Label::Number(value as f64)
    }
}

impl From<&str> for Label {
    fn from(value: &str) -> Self {
        Label::Text(value.to_owned())
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Label::Flag(value) => write!(f, "{value}"),
            Label::Number(value) => write!(f, "{value}"),
            Label::Text(value) => f.write_str(value),
        }
    }
}

/// Labels by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<String, Label>);

impl Labels {
    /// With one more.
    pub fn with(mut self, name: &str, value: impl Into<Label>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// The value of a label.
    pub fn get(&self, name: &str) -> Option<&Label> {
        self.0.get(name)
    }

    /// The value of a label that is a number.
    pub fn number(&self, name: &str) -> Option<f64> {
        match self.get(name) {
            Some(Label::Number(value)) => Some(*value),
            _ => None,
        }
    }

    /// Whether all of `others` are here with the same values.
    pub fn contains(&self, others: &Labels) -> bool {
        others.0.iter().all(|(name, value)| self.0.get(name) == Some(value))
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        f.write_str(&parts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_survive_json_with_their_kinds() {
        let labels = Labels::default().with("pinned", true).with("guest_mib", 512u64).with("fabric", "tcp");
        let json = serde_json::to_string(&labels).unwrap();
        assert_eq!(json, r#"{"fabric":"tcp","guest_mib":512.0,"pinned":true}"#);
        assert_eq!(serde_json::from_str::<Labels>(&json).unwrap(), labels);
        assert_eq!(serde_json::from_str::<Labels>(r#"{"n":3}"#).unwrap().number("n"), Some(3.0));
        assert!(labels.contains(&Labels::default().with("fabric", "tcp")));
        assert!(!labels.contains(&Labels::default().with("fabric", "rdma")));
        assert_eq!(labels.to_string(), "fabric=tcp guest_mib=512 pinned=true");
    }
}
