//! Who may connect, and what the Welcome says.

use crate::PAGE_BYTES;
use crate::arbiter::{Ownership, Record};
use crate::ids::{Identity, Incarnation, Time};
use crate::layout::ArenaShape;
use crate::nonce::Nonces;
use crate::placement::MAX_FRAMES;
use crate::wire::AckProof;
use crate::wire::limits::MAX_NUMBER;
use crate::wire::message::{ErrorCode, Hello, Message, VERSION, Welcome};

use super::image::Image;
use super::{Actions, Admission, Backup, Link, LinkPhase, Refusal, Session, Standing};

impl Backup {
    /// A Hello arrived on a new channel. Does not disturb the present connection if refused.
    pub fn admit(&mut self, identity: &Identity, hello: &Hello, now: Time) -> Result<Admission, Refusal> {
        check_hello(identity, hello, &self.config)?;
        self.check_standing()?;
        let Some(session) = self.session.as_ref().filter(|session| session.id == hello.identity.session)
        else {
            self.check_busy(hello)?;
            return Ok(Admission::NeedsRecord);
        };
        let (found, known) = (&hello.identity, session);
        if found.connection <= known.connection || found.generation < known.generation {
            return Err(Refusal::new(
                ErrorCode::Stale,
                format!(
                    "connection {} of generation {} is older than connection {} of generation {}",
                    found.connection, found.generation, known.connection, known.generation
                ),
            ));
        }
        if session.ended {
            return Err(Refusal::new(ErrorCode::NotGranted, "the guest of this session has ended"));
        }
        if hello.arena != session.shape
            || hello.depth != session.depth
            || hello.primary != session.primary
            || hello.guest != session.guest
        {
            return Err(Refusal::new(
                ErrorCode::Violation,
                "a session keeps its guest, primary, arena and depth; begin a new one",
            ));
        }
        // A Hello is a sign of life.
        self.link.last_heard = now;
        Ok(Admission::Resume)
    }

    /// As [`admit`](Self::admit), with the record read for it (`Err`: could not be asked). From
    /// `Prepare` on the image of an earlier session is forgotten: the record allows no takeover
    /// from it.
    pub fn admit_with_record(
        &mut self,
        identity: &Identity,
        hello: &Hello,
        record: Result<Option<Record>, String>,
        now: Time,
    ) -> Result<Admission, Refusal> {
        if self.admit(identity, hello, now)? == Admission::Resume {
            return Ok(Admission::Resume);
        }
        if self.config.shared_arbiter {
            check_record(hello, record, &self.config.host)?;
        }
        self.forget();
        self.admitted = Some((hello.identity.session, hello.identity.connection));
        Ok(Admission::Prepare(hello.arena))
    }

    /// Whether this host is a backup at all, and at leisure to talk.
    fn check_standing(&self) -> Result<(), Refusal> {
        let busy = |text: &str| Err(Refusal::new(ErrorCode::Busy, text));
        match self.standing {
            Standing::Active => {
                return Err(Refusal::new(
                    ErrorCode::NotGranted,
                    "this host has taken the guest over: it runs here",
                ));
            }
            Standing::OwnedNotActive => {
                return Err(Refusal::new(
                    ErrorCode::NotGranted,
                    "the guest is this host's by the record, though it could not be started here",
                ));
            }
            Standing::Leaving(_) | Standing::Left => return busy("this backup is shutting down"),
            Standing::Backup => {}
        }
        if self.takeover.is_some() {
            return busy("a takeover is under way");
        }
        if self.trial_running() {
            return busy("a trial load of the guest's state is under way; try again in a moment");
        }
        Ok(())
    }

    /// Whether another session keeps this backup from a new one.
    fn check_busy(&self, hello: &Hello) -> Result<(), Refusal> {
        let Some(session) = &self.session else { return Ok(()) };
        if self.link.phase != LinkPhase::Down {
            return Err(Refusal::new(
                ErrorCode::Busy,
                format!("this backup serves guest {} of {} at the moment", session.guest, session.primary),
            ));
        }
        if self.is_ready() && session.guest != hello.guest {
            return Err(Refusal::new(
                ErrorCode::Busy,
                format!("this backup holds an image of guest {} of {}", session.guest, session.primary),
            ));
        }
        Ok(())
    }

    /// The old connection is destroyed, homing quiescent, arena and standby ready. Returns the
    /// Welcome to send (identity and message), or an `Error` to send instead when things have
    /// changed since the admission; the channel is closed after that.
    pub fn welcome(
        &mut self,
        hello: &Hello,
        fabric_answer: Vec<u8>,
        now: Time,
        actions: &mut Actions,
    ) -> (Identity, Message) {
        if let Err(refusal) = self.take_hello(hello) {
            let Refusal { code, text } = refusal;
            return (hello.identity, Message::Error { code, text });
        }
        self.link = Link { phase: LinkPhase::Welcomed, last_heard: now, heartbeats: 0, heartbeat_due: now };
        self.suspected = false;
        // From here on the primary may have the record say `Protected` again, without a commit.
        self.known_solo = false;
        self.reread_at = None;
        self.because(format_args!("{} connects", hello.primary));
        self.refresh_state(actions);
        let identity = self.identity();
        let (committed, homed_through) = self
            .image
            .as_ref()
            .map_or_else(Default::default, |image| (image.committed, image.map.homed_through()));
        let welcome = Welcome {
            version: VERSION,
            identity,
            backup: self.config.host.clone(),
            committed,
            homed_through,
            fabric_answer,
            proof: AckProof::outgoing(),
        };
        (identity, Message::Welcome(welcome))
    }

    fn take_hello(&mut self, hello: &Hello) -> Result<(), Refusal> {
        self.check_standing()?;
        if self.copying > 0 {
            return Err(Refusal::new(ErrorCode::Busy, "copies of the image before still run"));
        }
        let stale = || Refusal::new(ErrorCode::Stale, "another connection came first");
        let found = hello.identity;
        match (&mut self.session, &mut self.image) {
            (Some(session), Some(image)) if session.id == found.session => {
                if found.connection <= session.connection || session.ended {
                    return Err(stale());
                }
                if found.generation != session.protected_generation {
                    session.protected_generation = found.generation.next();
                }
                session.connection = found.connection;
                session.generation = found.generation;
                if image.is_resumable() {
                    image.resume();
                } else {
                    // Nothing was promised: never acked, or given up.
                    image.restart(Incarnation::of_new_arena(found.connection).next());
                }
                Ok(())
            }
            _ if self.admitted == Some((found.session, found.connection)) => {
                self.admitted = None;
                self.known_solo = false;
                self.nonces = Nonces::new(self.config.nonce_seed, found.session);
                self.image = Some(Image::new(hello.arena, found.connection));
                self.session = Some(Session {
                    id: found.session,
                    primary: hello.primary.clone(),
                    guest: hello.guest.clone(),
                    shape: hello.arena,
                    depth: hello.depth,
                    generation: found.generation,
                    connection: found.connection,
                    protected_generation: found.generation.next(),
                    ended: false,
                });
                Ok(())
            }
            _ => Err(stale()),
        }
    }

    /// Forgets session and image.
    pub(super) fn forget(&mut self) {
        self.session = None;
        self.image = None;
        self.admitted = None;
        self.known_solo = false;
        self.reread_at = None;
    }
}

/// What can be told from the Hello alone.
fn check_hello(identity: &Identity, hello: &Hello, config: &super::BackupConfig) -> Result<(), Refusal> {
    let violation = |text: String| Err(Refusal::new(ErrorCode::Violation, text));
    let (lowest, highest) = hello.versions;
    if !(lowest..=highest).contains(&VERSION) {
        let text = format!("protocol versions {lowest} to {highest} are spoken there, {VERSION} here");
        return Err(Refusal::new(ErrorCode::Version, text));
    }
    if *identity != hello.identity {
        return Err(Refusal::new(ErrorCode::Malformed, "a Hello under another identity"));
    }
    let Identity { generation, connection, .. } = *identity;
    if connection.0 == 0 || connection.0 >= MAX_NUMBER / 1024 || generation.0 >= MAX_NUMBER {
        return violation(format!("connection {connection} of generation {generation} is out of range"));
    }
    if hello.primary.is_empty() || hello.guest.is_empty() {
        return violation("primary and guest need names".to_owned());
    }
    if hello.primary == config.host {
        return violation(format!("primary and backup are both called {:?}", config.host));
    }
    let theirs_ms = u128::from(hello.suspect_after_ms);
    let ours_ms = config.suspect_after.as_millis();
    if config.takeover_automatic && ours_ms <= theirs_ms {
        return violation(format!(
            "the backup suspects after {ours_ms} ms, which must be longer than the primary's {theirs_ms} ms"
        ));
    }
    check_shape(&hello.arena, hello.layout.regions.iter().map(|region| region.pages), hello.depth)?;
    let ArenaShape { pages, spares, slots, slot_bytes, copy_only_homes } = hello.arena;
    let homes = if copy_only_homes { 0 } else { pages };
    let len_bytes =
        u128::from(homes + spares) * u128::from(PAGE_BYTES) + u128::from(slots) * u128::from(slot_bytes);
    if len_bytes > u128::from(config.max_arena_bytes) {
        let text = format!(
            "the guest's image needs {} MiB of memory, and this backup lends {} MiB: it has to lend more, or \
             the primary to ask for fewer spare frames",
            len_bytes >> 20,
            config.max_arena_bytes >> 20
        );
        return Err(Refusal::new(ErrorCode::NoRoom, text));
    }
    Ok(())
}

fn check_shape(
    shape: &ArenaShape,
    mut regions: impl Iterator<Item = u64>,
    depth: u64,
) -> Result<(), Refusal> {
    let violation = |text: String| Err(Refusal::new(ErrorCode::Violation, text));
    let pages = regions.try_fold(0u64, u64::checked_add);
    if pages != Some(shape.pages) || shape.pages == 0 {
        return violation(format!("an arena for {} pages does not fit the guest's {pages:?}", shape.pages));
    }
    if shape.pages.checked_add(shape.spares).is_none_or(|frames| frames > MAX_FRAMES) {
        return violation(format!("{} home and {} spare frames are too many", shape.pages, shape.spares));
    }
    if depth == 0 || shape.slots <= depth {
        return violation(format!("{} commit slots do not allow {depth} epochs in flight", shape.slots));
    }
    if shape.slot_bytes == 0 || !shape.slot_bytes.is_multiple_of(PAGE_BYTES) {
        return violation(format!("commit slots of {} bytes are no pages", shape.slot_bytes));
    }
    Ok(())
}

/// A new session begins only under a record that says that its primary runs the guest alone.
fn check_record(hello: &Hello, record: Result<Option<Record>, String>, host: &str) -> Result<(), Refusal> {
    let refused = |text: String| Err(Refusal::new(ErrorCode::NotGranted, text));
    match record {
        Err(why) => refused(format!("the arbiter of {host} could not be asked: {why}")),
        Ok(None) => refused(format!(
            "the arbiter of {host} has no record of guest {}: both sides must ask the same one",
            hello.guest
        )),
        Ok(Some(record)) => match &record.ownership {
            Ownership::Solo { primary }
                if *primary == hello.primary && record.generation == hello.identity.generation =>
            {
                Ok(())
            }
            _ => refused(format!(
                "{} says that it runs the guest alone in generation {}, but {}",
                hello.primary,
                hello.identity.generation,
                record.describe()
            )),
        },
    }
}
