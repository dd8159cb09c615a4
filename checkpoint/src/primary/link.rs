//! The connection to the backup: Hello, Welcome, heartbeats, its end.

use crate::ids::{ConnectionNumber, Epoch, Generation, Time};
use crate::wire::message::{ErrorCode, Hello, Message, VERSION, Welcome, decode};

use super::image::Phase as ImagePhase;
use super::{Actions, PeerFault, Primary, PrimaryAction, PrimaryReport};
use crate::arbiter::Ownership;

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Down,
    /// Hello was made.
    Greeting,
    /// The Welcome was taken; the endpoint is being established.
    Welcomed,
    Up,
}

/// The connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) phase: Phase,
    pub(super) connection: ConnectionNumber,
    /// The record's at the Hello, for the life of the connection.
    pub(super) generation: Generation,
    /// The last sign of life.
    pub(super) last_heard: Time,
    heartbeats: u64,
    heartbeat_due: Time,
}

impl Link {
    pub(super) fn new(now: Time) -> Self {
        Self {
            phase: Phase::Down,
            connection: ConnectionNumber(0),
            generation: Generation(0),
            last_heard: now,
            heartbeats: 0,
            heartbeat_due: now,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }
}

impl Primary {
    /// A channel to the backup is open: the Hello to send on it, with the fabric's offer.
    pub fn hello(&mut self, fabric_offer: Vec<u8>, now: Time) -> Hello {
        if self.link.phase != Phase::Down {
            // The driver gave the last attempt up without a word.
            self.drop_link(now);
        }
        self.link.phase = Phase::Greeting;
        self.link.connection = self.link.connection.next();
        self.link.generation = self.grant.record().generation;
        Hello {
            versions: (VERSION, VERSION),
            identity: self.identity(),
            primary: self.config.host.clone(),
            guest: self.config.guest.clone(),
            layout: self.layout.clone(),
            arena: self.shape,
            depth: self.config.depth,
            machine: self.machine.clone(),
            suspect_after_ms: u32::try_from(self.config.suspect_after.as_millis()).unwrap_or(u32::MAX),
            fabric_offer,
        }
    }

    /// The backup's answer (bytes of one message: Welcome or Error). On success the driver
    /// establishes the endpoint with the fabric's answer returned here, then calls
    /// [`handle_connected`](Self::handle_connected). After an error the driver closes the channel;
    /// the machine has given the connection up already.
    pub fn handle_answer(
        &mut self,
        bytes: &[u8],
        now: Time,
        actions: &mut Actions,
    ) -> Result<Vec<u8>, PeerFault> {
        let outcome = self.read_answer(bytes, actions).and_then(|welcome| {
            self.check_welcome(&welcome)?;
            self.take_welcome(&welcome, now, actions);
            Ok(welcome.fabric_answer)
        });
        if let Err(fault) = &outcome {
            self.drop_link(now);
            self.because(format_args!("{fault}"));
        }
        self.settle(now, actions);
        outcome
    }

    fn read_answer(&self, bytes: &[u8], actions: &mut Actions) -> Result<Welcome, PeerFault> {
        if self.link.phase != Phase::Greeting || self.over.is_some() {
            return Err(PeerFault::violation("no answer is awaited"));
        }
        let (identity, message) = decode(bytes)?;
        match message {
            Message::Welcome(welcome) if welcome.identity == identity => Ok(welcome),
            Message::Welcome(_) => Err(PeerFault::violation("a Welcome under another identity")),
            Message::Error { code, text } => {
                let fault =
                    PeerFault::said_by_peer(format!("the backup refuses the connection: {text} ({code:?})"));
                actions.push(PrimaryAction::Report(PrimaryReport::Refused { code, text }));
                Err(fault)
            }
            _ => Err(PeerFault::violation("the backup answered the Hello with neither Welcome nor Error")),
        }
    }

    fn check_welcome(&self, welcome: &Welcome) -> Result<(), PeerFault> {
        let expected = self.identity();
        let found = welcome.identity;
        if welcome.version != VERSION {
            return Err(PeerFault::violation(format!(
                "the backup chose protocol version {}",
                welcome.version
            )));
        }
        if (found.session, found.generation, found.connection)
            != (expected.session, expected.generation, expected.connection)
            || found.incarnation.0 == 0
        {
            return Err(PeerFault::new(ErrorCode::Stale, format!("Welcome of {found}; expected {expected}")));
        }
        if welcome.backup.is_empty() || welcome.backup == self.config.host {
            return Err(PeerFault::violation(format!(
                "the backup calls itself {:?}, which cannot be told from this host",
                welcome.backup
            )));
        }
        match &self.grant.record().ownership {
            Ownership::Protected { backup, .. } if *backup != welcome.backup => Err(PeerFault::violation(
                format!("the guest is protected by {backup:?}, but {:?} answers", welcome.backup),
            )),
            _ => Ok(()),
        }
    }

    /// Rule 9: goes on from what the backup has, or decides what it takes to begin anew.
    fn take_welcome(&mut self, welcome: &Welcome, now: Time, actions: &mut Actions) {
        self.link.phase = Phase::Welcomed;
        self.link.last_heard = now;
        self.suspected = false;
        self.backup.clone_from(&welcome.backup);
        let (committed, homed_through) = (welcome.committed, welcome.homed_through);
        if committed == Epoch(0) {
            self.at_large = false;
            self.image.restart(welcome.identity.incarnation);
            return;
        }
        let continues = welcome.identity.incarnation == self.image.incarnation
            && self.image.phase == ImagePhase::Epochs
            && self.image.planner.may_stand_at(committed, homed_through);
        if !continues {
            self.image.restart(welcome.identity.incarnation);
            self.image.phase = ImagePhase::Foreign;
            return;
        }
        let covered = self.image.flights.iter().rev().find(|flight| flight.epoch <= committed);
        if let Some(mark) = covered.and_then(|flight| flight.mark) {
            self.image.owed = Some((mark, welcome.proof));
        }
        let pages = self.image.resume(committed, homed_through);
        actions.push(PrimaryAction::Report(PrimaryReport::Resumed { at: committed, pages }));
    }

    /// The endpoint is established. False: the machine has given the connection up meanwhile, and the
    /// driver closes it.
    #[must_use]
    pub fn handle_connected(&mut self, now: Time, actions: &mut Actions) -> bool {
        if self.link.phase != Phase::Welcomed {
            return false;
        }
        self.link.phase = Phase::Up;
        self.link.last_heard = now;
        self.link.heartbeats = 0;
        self.link.heartbeat_due = now;
        self.because(format_args!("connected to {}", self.backup.clone()));
        self.heartbeat(now, actions);
        self.settle(now, actions);
        true
    }

    /// The connection is gone (the endpoint is closed for good).
    pub fn handle_disconnected(&mut self, why: &str, now: Time, actions: &mut Actions) {
        if self.link.phase != Phase::Down {
            self.drop_link(now);
            self.because(format_args!("{why}"));
        }
        self.settle(now, actions);
    }

    /// Closes the connection from this side.
    pub(super) fn close(&mut self, why: std::fmt::Arguments<'_>, now: Time, actions: &mut Actions) {
        if self.link.phase != Phase::Down {
            self.drop_link(now);
            actions.push(PrimaryAction::CloseConnection(why.to_string()));
            self.because(why);
        }
    }

    /// Treats the connection as gone.
    pub(super) fn drop_link(&mut self, now: Time) {
        self.link.phase = Phase::Down;
        self.image.disconnected();
        self.ending_disconnected(now);
    }

    pub(super) fn send(&self, message: Message, actions: &mut Actions) {
        actions.push(PrimaryAction::Send(self.identity(), message));
    }

    pub(super) fn heartbeat(&mut self, now: Time, actions: &mut Actions) {
        if self.link.is_up() && self.link.heartbeat_due <= now {
            self.link.heartbeats += 1;
            self.link.heartbeat_due = now.after(self.config.heartbeat_every);
            let (sequence, progress) = (self.link.heartbeats, self.image.placed.0);
            self.send(Message::Heartbeat { sequence, progress }, actions);
        }
    }

    /// When the link needs a tick.
    pub(super) fn link_tick(&self) -> Option<Time> {
        let suspect = (!self.suspected && (self.link.is_up() || self.grant.is_protected()))
            .then(|| self.link.last_heard.after(self.config.suspect_after));
        let heartbeat = self.link.is_up().then_some(self.link.heartbeat_due);
        suspect.into_iter().chain(heartbeat).min()
    }
}
