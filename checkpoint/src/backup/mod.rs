//! The backup's protocol machine: sans-I/O, in the manner of [`crate::primary`].
//!
//! It holds a *session* with one primary over at most one *link*, an *image* with its last
//! committed epoch, and while it is taking over a *takeover*. Its files: `admission` decides about
//! a Hello, `messages` and `commits` take what arrives, `homing` carries out homings, `takeover`
//! gets the grant and activates, `leaving` treats good-byes.
//!
//! **What it may take over from** is an image that was resumed once for trial, with a record that
//! names it ([`crate::nonce::pairing`]). Everything before that is a promise to nobody: a first
//! Ack is given only after the trial load.
//!
//! **Who calls.** The driver serializes all calls and carries actions out in order. After
//! [`BackupAction::CloseConnection`] and after a method returned a [`Refusal`] the machine treats
//! the connection as gone already; events of it are ignored. [`Backup::handle_disconnected`] must
//! have been called for an old connection before [`Backup::welcome`] for the next, or not at all.

mod admission;
mod commits;
mod homing;
mod image;
mod leaving;
mod messages;
mod takeover;
mod types;

pub use types::*;

use std::fmt::Write as _;
use std::time::Duration;

use crate::ids::{
    ConnectionNumber, Epoch, FrameIndex, Generation, Identity, Incarnation, PageIndex, SessionId, Time,
};
use crate::layout::ArenaShape;
use crate::nonce::Nonces;
use crate::wire::message::{ErrorCode, Message};

use image::{Image, Trial};
use takeover::Takeover;

/// The primary that this backup serves.
#[derive(Debug)]
struct Session {
    id: SessionId,
    primary: String,
    guest: String,
    shape: ArenaShape,
    depth: u64,
    /// The record's at the last Hello.
    generation: Generation,
    connection: ConnectionNumber,
    /// The generation that a `Protected` record of this pairing is expected to have.
    protected_generation: Generation,
    /// The guest has ended: never to be resumed.
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkPhase {
    Down,
    Welcomed,
    Up,
}

#[derive(Debug)]
struct Link {
    phase: LinkPhase,
    last_heard: Time,
    heartbeats: u64,
    heartbeat_due: Time,
}

/// Whether this host still is a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Backup,
    /// The guest runs here.
    Active,
    /// The record says that the guest is this host's, but it could not be started.
    OwnedNotActive,
    /// The operator ended this backup; the Bye was sent, an answer is awaited until then.
    Leaving(Time),
    /// The operator ended this backup.
    Left,
}

/// The machine.
#[derive(Debug)]
pub struct Backup {
    config: BackupConfig,
    session: Option<Session>,
    /// A Hello of a new session that was admitted and not yet welcomed.
    admitted: Option<(SessionId, ConnectionNumber)>,
    link: Link,
    image: Option<Image>,
    /// Copies handed out and not finished, also of an image that is forgotten: they touch its memory.
    copying: u64,
    takeover: Option<Takeover>,
    standing: Standing,
    /// The record was seen to say that the primary goes on alone.
    known_solo: bool,
    /// The primary has been silent or away for too long; reported once.
    suspected: bool,
    /// When an idle backup looks at the record again; `None` while it is being read.
    reread_at: Option<Time>,
    rereading: bool,
    nonces: Nonces,
    state: BackupState,
    why: String,
}

impl Backup {
    /// A backup that has nothing yet.
    pub fn new(config: BackupConfig, now: Time) -> Self {
        let nonces = Nonces::new(config.nonce_seed, SessionId(0));
        Self {
            config,
            session: None,
            admitted: None,
            link: Link { phase: LinkPhase::Down, last_heard: now, heartbeats: 0, heartbeat_due: now },
            image: None,
            copying: 0,
            takeover: None,
            standing: Standing::Backup,
            known_solo: false,
            suspected: false,
            reread_at: None,
            rereading: false,
            nonces,
            state: BackupState::Solo,
            why: String::new(),
        }
    }

    /// The endpoint is established. False: the machine has given the connection up meanwhile, and the
    /// driver closes it.
    #[must_use]
    pub fn handle_connected(&mut self, now: Time, actions: &mut Actions) -> bool {
        if self.link.phase != LinkPhase::Welcomed {
            return false;
        }
        self.link = Link { phase: LinkPhase::Up, last_heard: now, heartbeats: 0, heartbeat_due: now };
        self.because(format_args!("connected"));
        self.heartbeat(now, actions);
        self.refresh_state(actions);
        true
    }

    /// The connection is gone (the endpoint is closed for good).
    pub fn handle_disconnected(&mut self, why: &str, now: Time, actions: &mut Actions) {
        if self.link.phase != LinkPhase::Down {
            self.because(format_args!("{why}"));
            self.drop_link(now, actions);
        }
        self.refresh_state(actions);
    }

    /// Time passed: heartbeats, suspicion.
    pub fn handle_tick(&mut self, now: Time, actions: &mut Actions) {
        if matches!(self.standing, Standing::Active | Standing::Left) {
            return;
        }
        if matches!(self.standing, Standing::Leaving(until) if until <= now) {
            self.leave(now, actions);
            return;
        }
        self.heartbeat(now, actions);
        self.suspect(now, actions);
        self.takeover_tick(now, actions);
        self.refresh_state(actions);
    }

    /// When [`handle_tick`](Self::handle_tick) is due next.
    pub fn next_tick(&self) -> Option<Time> {
        if let Standing::Leaving(until) = self.standing {
            return Some(until);
        }
        if matches!(self.standing, Standing::Active | Standing::Left) {
            return None;
        }
        let heartbeat = self.is_up().then_some(self.link.heartbeat_due);
        let suspect = (!self.suspected && self.takeover.is_none() && self.may_suspect())
            .then(|| self.link.last_heard.after(self.config.suspect_after));
        [heartbeat, suspect, self.takeover_due()].into_iter().flatten().min()
    }

    /// Where it stands.
    pub fn state(&self) -> BackupState {
        self.state
    }

    /// Last committed epoch C.
    pub fn committed(&self) -> Epoch {
        self.image.as_ref().map_or(Epoch(0), |image| image.committed)
    }

    /// The frame that holds a page of the committed epoch; its home where there is no image.
    pub fn frame_of(&self, page: PageIndex) -> FrameIndex {
        self.image.as_ref().map_or(FrameIndex(page.0), |image| image.map.frame_of(page))
    }

    /// Whether a connection is there.
    fn is_up(&self) -> bool {
        self.link.phase == LinkPhase::Up
    }

    /// The identity to send under now.
    fn identity(&self) -> Identity {
        let Some(session) = &self.session else { return Identity::default() };
        Identity {
            session: session.id,
            generation: session.generation,
            incarnation: self.image.as_ref().map_or(Incarnation(0), |image| image.incarnation),
            connection: session.connection,
        }
    }

    fn send(&self, message: Message, actions: &mut Actions) {
        actions.push(BackupAction::Send(self.identity(), message));
    }

    fn heartbeat(&mut self, now: Time, actions: &mut Actions) {
        if !self.is_up() || self.link.heartbeat_due > now {
            return;
        }
        self.link.heartbeats += 1;
        self.link.heartbeat_due = now.after(self.config.heartbeat_every);
        let (sequence, progress) = (self.link.heartbeats, self.committed().0);
        self.send(Message::Heartbeat { sequence, progress }, actions);
        // What homing has done meanwhile, in case it was not worth a message of its own.
        self.acknowledge_homings(1, actions);
    }

    /// How long a primary that was told Welcome may take to finish the handshake: where there is an
    /// image to take over from no longer than one that is silent, since a takeover waits for it.
    pub fn handshake_patience(&self, usual: Duration) -> Duration {
        if self.has_image() { usual.min(self.config.suspect_after) } else { usual }
    }

    /// A handshake without an image to take over from has its own patience: nobody waits for it.
    fn may_suspect(&self) -> bool {
        self.is_up() || self.is_ready()
    }

    /// Whether there is an image that the backup may take over from, as far as it knows.
    fn is_ready(&self) -> bool {
        !self.known_solo && self.has_image() && self.standing == Standing::Backup
    }

    /// Whether there is an image that a record could name.
    fn has_image(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.ended)
            && self.image.as_ref().is_some_and(Image::is_resumable)
    }

    fn suspect(&mut self, now: Time, actions: &mut Actions) {
        let silent = now.since(self.link.last_heard) >= self.config.suspect_after;
        if !silent || self.suspected || self.takeover.is_some() || !self.may_suspect() {
            return;
        }
        self.suspected = true;
        let silence = self.config.suspect_after;
        let ready = self.is_ready();
        if ready && self.config.takeover_automatic {
            self.because(format_args!("nothing heard from the primary for {silence:?}"));
            self.begin_takeover(actions);
        } else {
            self.close(format_args!("nothing heard from the primary for {silence:?}"), now, actions);
        }
    }

    /// Treats the connection as gone. Homings already received may still be carried out.
    fn drop_link(&mut self, now: Time, actions: &mut Actions) {
        self.link.phase = LinkPhase::Down;
        if let Some(image) = &mut self.image {
            image.disconnected();
        }
        self.link_lost_in_takeover(actions);
        self.forget_abandoned();
        if matches!(self.standing, Standing::Leaving(_)) {
            self.leave(now, actions);
        }
    }

    /// Closes the connection from this side.
    fn close(&mut self, why: std::fmt::Arguments<'_>, now: Time, actions: &mut Actions) {
        if self.link.phase != LinkPhase::Down {
            actions.push(BackupAction::CloseConnection(why.to_string()));
            self.because(why);
            self.drop_link(now, actions);
        }
    }

    /// Refuses what the peer did: says so, and closes.
    fn refuse(&mut self, refusal: Refusal, now: Time, actions: &mut Actions) {
        if self.is_up() {
            self.send(Message::Error { code: refusal.code, text: refusal.text.clone() }, actions);
        }
        actions.push(BackupAction::Report(BackupReport::Refused(refusal.code, refusal.text.clone())));
        self.close(format_args!("{}", refusal.text), now, actions);
    }

    fn because(&mut self, why: std::fmt::Arguments<'_>) {
        self.why.clear();
        // Writing to a string cannot fail.
        let _ = self.why.write_fmt(why);
    }

    /// Derives the state and reports a change.
    fn refresh_state(&mut self, actions: &mut Actions) {
        let state = self.derive_state();
        if state != self.state {
            self.state = state;
            actions.push(BackupAction::Report(BackupReport::State(state, self.why.clone())));
        }
    }

    fn derive_state(&self) -> BackupState {
        match self.standing {
            Standing::Active => return BackupState::Active,
            Standing::Left | Standing::Leaving(_) => return BackupState::Ended,
            Standing::OwnedNotActive if self.takeover.is_none() => return BackupState::Solo,
            Standing::Backup | Standing::OwnedNotActive => {}
        }
        if self.takeover.is_some() {
            return BackupState::TakingOver;
        }
        if self.session.as_ref().is_some_and(|session| session.ended) {
            return BackupState::Ended;
        }
        let up = self.link.phase != LinkPhase::Down;
        match &self.image {
            Some(image) if image.invalidating => BackupState::Invalid,
            Some(image) if image.is_resumable() && !self.known_solo => BackupState::Protected,
            Some(_) if up => BackupState::Syncing,
            _ => BackupState::Solo,
        }
    }

    /// Whether a trial load is under way.
    fn trial_running(&self) -> bool {
        self.image.as_ref().is_some_and(|image| image.trial == Trial::Running)
    }
}

impl Refusal {
    fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}
