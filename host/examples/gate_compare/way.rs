//! The ways to hold a guest's output, seen alike.

use romulus_checkpoint::GateMark;
use romulus_checkpoint::gate::OutputGate;
use romulus_host::gate::{NicSpec, RedirectGate, RedirectOptions};

use crate::gate_lab::{GUEST, acked};
use crate::nfqueue::Nfqueue;
use crate::plug::Plug;

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ungated,
    Redirect,
    Plug,
    Nfqueue,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Ungated, Self::Redirect, Self::Plug, Self::Nfqueue];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ungated => "ungated",
            Self::Redirect => "redirect",
            Self::Plug => "plug",
            Self::Nfqueue => "nfqueue",
        }
    }

    pub fn holds(self) -> bool {
        self != Self::Ungated
    }

    /// Holds the output of the tap `guest0` from now on; else why it cannot.
    pub fn set_up(self) -> Result<Box<dyn Way>, String> {
        Ok(match self {
            Self::Ungated => Box::new(Ungated),
            Self::Redirect => Box::new(Redirect::new()?),
            Self::Plug => Box::new(Plug::new()?),
            Self::Nfqueue => Box::new(Nfqueue::new()?),
        })
    }
}

/// A way that holds. Taken away when dropped.
pub trait Way: Send + Sync {
    /// How many of the packets that were sent it has taken: fewer where a program reads them and lags
    /// behind, and packets may be dropped if that becomes too many.
    fn taken(&self, sent: u64) -> u64 {
        sent
    }

    /// Everything that the guest, which stands still, has sent so far belongs to this mark.
    fn mark(&self, mark: u64);

    /// Everything up to this mark may leave.
    fn release(&self, mark: u64);
}

struct Ungated;

impl Way for Ungated {
    fn mark(&self, _mark: u64) {}

    fn release(&self, _mark: u64) {}
}

struct Redirect(RedirectGate);

impl Redirect {
    fn new() -> Result<Self, String> {
        let spec = NicSpec { nic: "net0".into(), tap: "guest0".into(), mac: GUEST };
        let gate =
            RedirectGate::new(&[spec], &RedirectOptions::default()).map_err(|error| error.to_string())?;
        gate.hold().map_err(|error| error.to_string())?;
        Ok(Self(gate))
    }
}

impl Way for Redirect {
    fn taken(&self, _sent: u64) -> u64 {
        self.0.passed().0
    }

    fn mark(&self, mark: u64) {
        self.0.mark(GateMark(mark)).expect("a mark");
    }

    fn release(&self, mark: u64) {
        self.0.release(&acked(mark));
    }
}

impl Drop for Redirect {
    fn drop(&mut self) {
        if let Err(error) = self.0.detach() {
            eprintln!("{error}");
        }
    }
}
