//! The primary's protocol machine: sans-I/O. Methods take what happened and the time, and append
//! what to do to an [`Actions`] list that the caller reuses.
//!
//! Four things change independently, and each has its file: the *link* to the backup
//! (`link`), the *image* there and the epochs on their way to it (`image`, `work`, `acks`), the
//! *grant* that the arbiter's record gives (`grant`), and the output *gate* (`gate`). After every
//! event `settle` looks at all four and takes what step is due; the state reported is derived from
//! them and never set.
//!
//! **Generations.** A connection keeps the generation that the record had at its Hello, whatever
//! swaps follow. What a backup may take over from is named by the record's nonce
//! ([`crate::nonce`]).
//!
//! **Who calls.** The driver serializes all calls (a mutex) and carries actions out in the order
//! in which they were appended, across threads too. After [`PrimaryAction::CloseConnection`] the
//! machine treats the connection as gone already; [`Primary::handle_disconnected`] must have been
//! called for an old connection before [`Primary::hello`] for the next.

mod acks;
mod ending;
mod gate;
mod grant;
mod image;
mod link;
mod parts;
mod settle;
mod settling;
mod types;
mod work;

pub use types::*;

use std::fmt::Write as _;

use crate::arbiter::{Record, SwapOutcome};
use crate::ids::{Epoch, GateMark, Identity, Time};
use crate::layout::{ArenaShape, GuestLayout};
use crate::nonce::Nonces;
use crate::wire::message::MachineIdentity;

use ending::{Ending, PausedGuest};
use gate::Gate;
use grant::Grant;
use image::Image;
use link::Link;

/// The machine.
#[derive(Debug)]
pub struct Primary {
    config: PrimaryConfig,
    layout: GuestLayout,
    machine: MachineIdentity,
    shape: ArenaShape,
    link: Link,
    image: Image,
    grant: Grant,
    gate: Gate,
    ending: Option<Ending>,
    paused_guest: Option<PausedGuest>,
    /// Lost or Ended: nothing is done any more.
    over: Option<PrimaryState>,
    /// The backup's name in the record, learned from its Welcome.
    backup: String,
    /// The backup's own word that it will not take over from the present record: it has no image
    /// any more, or it leaves.
    promised: bool,
    /// Nobody arbitrates, the other side may move by itself, and it may hold an image: until it
    /// says that it does not, or the operator decides, output is released against acks alone.
    at_large: bool,
    /// The backup has been silent or away for too long.
    suspected: bool,
    /// The last mark given to the gate.
    last_mark: GateMark,
    state: PrimaryState,
    /// Why the state is what it is; written on rare events alone.
    why: String,
}

impl Primary {
    /// A primary that runs its guest alone under `record` (which says `Solo` of this host).
    pub fn new(
        config: PrimaryConfig,
        layout: GuestLayout,
        machine: MachineIdentity,
        shape: ArenaShape,
        record: Record,
        now: Time,
    ) -> Self {
        let nonces = Nonces::new(config.nonce_seed, config.session);
        let grant = Grant::new(record, nonces, config.heartbeat_every);
        let open = grant.solo(&config.host).is_some();
        Self {
            image: Image::new(shape, config.low_water_spares, config.depth),
            link: Link::new(now),
            gate: Gate::new(open),
            ending: None,
            paused_guest: None,
            over: None,
            backup: String::new(),
            promised: false,
            at_large: false,
            suspected: false,
            last_mark: GateMark(0),
            state: PrimaryState::Solo,
            why: String::new(),
            config,
            layout,
            machine,
            shape,
            grant,
        }
    }

    /// The identity to send under now.
    pub fn identity(&self) -> Identity {
        Identity {
            session: self.config.session,
            generation: self.link.generation,
            incarnation: self.image.incarnation,
            connection: self.link.connection,
        }
    }

    /// How a swap ended.
    pub fn handle_swap(&mut self, new: &Record, outcome: SwapOutcome, now: Time, actions: &mut Actions) {
        self.grant.swapped(new, outcome, now);
        self.record_changed(now, actions);
    }

    /// What a read of the record gave; `Err` when the arbiter could not be asked.
    pub fn handle_record(
        &mut self,
        record: Result<Option<Record>, String>,
        now: Time,
        actions: &mut Actions,
    ) {
        self.grant.read(record, now);
        self.record_changed(now, actions);
    }

    /// How [`PrimaryAction::HoldOutput`] ended; once for each.
    pub fn handle_held(&mut self, outcome: Result<(), String>, now: Time, actions: &mut Actions) {
        match outcome {
            Ok(()) => self.gate.hold_confirmed(),
            Err(error) => {
                self.gate.hold_failed();
                self.close(format_args!("output cannot be held: {error}"), now, actions);
            }
        }
        self.settle(now, actions);
    }

    /// Where it stands.
    pub fn state(&self) -> PrimaryState {
        self.state
    }

    /// Last acked epoch A.
    pub fn acked(&self) -> Epoch {
        self.image.acked
    }

    /// Captured and unacked epochs.
    pub fn unacked(&self) -> u64 {
        self.image.flights.len() as u64
    }

    /// The arbiter's record as this machine knows it.
    pub fn record(&self) -> &Record {
        self.grant.record()
    }

    /// Adds to the reason of the next state report.
    fn append_reason(&mut self, why: &str) {
        if !self.why.contains(why) {
            let separator = if self.why.is_empty() { "" } else { "; " };
            let _ = write!(self.why, "{separator}{why}");
        }
    }

    /// Sets the reason that the next state report gives. For rare events: formats into a kept
    /// string.
    fn because(&mut self, why: std::fmt::Arguments<'_>) {
        self.why.clear();
        // Writing to a string cannot fail.
        let _ = self.why.write_fmt(why);
    }
}
