//! What the operator wants to become of each card's output.

/// What is to become of a card's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateChoice {
    /// Held until its epoch is committed.
    Commit,
    /// Free: after a takeover others can have seen what the guest does not know of.
    None,
}

/// Choices by the name of a card or of its back end, or `all`; the later one wins. What is not
/// named is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GateChoices(Vec<(String, GateChoice)>);

/// Stands for every card.
const ALL: &str = "all";

impl GateChoices {
    /// Reads `NIC=commit` and `NIC=none`.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let parse = |text: &str| match text.rsplit_once('=') {
            Some((nic, "commit")) if !nic.is_empty() => Ok((nic.to_owned(), GateChoice::Commit)),
            Some((nic, "none")) if !nic.is_empty() => Ok((nic.to_owned(), GateChoice::None)),
            _ => Err(format!(
                "{text}: NIC=commit or NIC=none is possible, where NIC is the id of a card or of its -netdev, or `all`"
            )),
        };
        texts.into_iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// For a card with these names.
    pub fn of(&self, names: &[&str]) -> GateChoice {
        let meant = |name: &str| name == ALL || names.contains(&name);
        let found = self.0.iter().rev().find(|(name, _)| meant(name));
        found.map_or(GateChoice::Commit, |(_, choice)| *choice)
    }

    /// A name that no card has.
    pub fn stranger(&self, known: impl Fn(&str) -> bool) -> Option<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).find(|name| *name != ALL && !known(name))
    }
}
