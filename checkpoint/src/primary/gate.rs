//! What the machine knows of the output gate.

/// Open, asked to hold, or holding.
#[derive(Debug)]
pub(super) struct Gate {
    open: bool,
    asked: u64,
    confirmed: u64,
}

impl Gate {
    pub(super) fn new(open: bool) -> Self {
        Self { open, asked: 0, confirmed: 0 }
    }

    /// Whether output may leave at once.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether all output is surely held.
    pub(super) fn is_held(&self) -> bool {
        !self.open && self.asked == self.confirmed
    }

    /// Notes that holding was asked for.
    pub(super) fn ask_hold(&mut self) {
        self.open = false;
        self.asked += 1;
    }

    /// Each confirmation answers one request in order, so one of an earlier hold, since released,
    /// does not confirm a later one.
    pub(super) fn hold_confirmed(&mut self) {
        self.confirmed = (self.confirmed + 1).min(self.asked);
    }

    pub(super) fn hold_failed(&mut self) {
        self.hold_confirmed();
        self.open = true;
    }

    pub(super) fn opened(&mut self) {
        self.open = true;
    }
}
