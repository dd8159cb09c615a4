//! Figures over time.

use serde::{Deserialize, Serialize};

use super::labels::Labels;

/// One figure, again and again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// What it is: see [`super::names`].
    pub name: String,
    /// What tells it from others of the same name.
    #[serde(default)]
    pub labels: Labels,
    /// Of the values.
    pub unit: String,
    /// Seconds since the measurement (its case) began, and the value from the point before to
    /// here.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// Nothing yet.
    pub fn new(name: &str, labels: &Labels, unit: &str) -> Self {
        Self { name: name.to_owned(), labels: labels.clone(), unit: unit.to_owned(), points: Vec::new() }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Seconds since the measurement began.
    pub at_s: f64,
    /// `killed`, `suspected`, `fenced`, `active`, `reconnected`, ...
    pub name: String,
    /// For people.
    #[serde(default)]
    pub text: String,
    /// Of which case.
    #[serde(default)]
    pub labels: Labels,
}
