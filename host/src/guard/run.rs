//! The guard's own process: waits for its protector's death, then carries out what the machine
//! says.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::time::{Duration, Instant};

use romulus_checkpoint::arbiter::none::AutomaticMoves;
use romulus_checkpoint::arbiter::spec::ArbiterSpec;
use romulus_checkpoint::arbiter::{Arbiter, random_nonce};
use rustix::event::{PollFd, PollFlags};

use super::machine::{Action, Authority, Guard, GuardPolicy, Input, LastWords, Outcome};
use super::page::Page;
use super::process::GuestProcess;
use super::{GateHandle, GuardError, GuardParts, GuardSpec, GuestHandle, link};

/// The guard, from start to end. Its standard input is the socket that [`super::spawn`] made.
/// Returns when there is nothing left to guard.
pub fn run(parts: &dyn GuardParts) -> Result<Outcome, GuardError> {
    stand_apart();
    let mut link = take_stdin().map_err(|error| GuardError::new("take its socket", error))?;
    let (spec, page, protector, guest) = greet(&mut link)?;
    let arbiter = ArbiterSpec::from_str(&spec.arbiter)
        .and_then(|arbiter| Ok((arbiter.open(AutomaticMoves::default())?, authority(&arbiter, &spec))));
    let (arbiter, authority) =
        arbiter.map_err(|error| GuardError::new("open the arbiter", io::Error::other(error)))?;
    let nonce = random_nonce().map_err(|error| GuardError::new("a nonce", io::Error::other(error)))?;
    let policy = GuardPolicy { host: spec.host.clone(), authority, nonce };
    link.write_all(&[link::READY]).map_err(|error| GuardError::new("say that it is ready", error))?;
    let words = watch(&mut link, &protector, &page)?;
    drop((link, protector));
    let mut hands = Hands { spec: &spec, parts, arbiter: &*arbiter, process: guest, guest: None, gate: None };
    let outcome = act(Guard::new(policy), &mut hands, words);
    report(&spec, &outcome);
    Ok(outcome)
}

/// Leaves the protector's session and ignores what asks a process to end.
fn stand_apart() {
    // Fails only for the leader of a group, which a child that was just started is not.
    let _ = rustix::process::setsid();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: ignoring a signal installs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let _ = rustix::thread::set_name(c"romulus-guard");
}

/// Takes the socket from standard input, so that its end of file is not kept away from the
/// protector by a second copy.
fn take_stdin() -> io::Result<UnixStream> {
    let link = std::io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(UnixStream::from(link))
}

type Greeted = (GuardSpec, Page, GuestProcess, Option<GuestProcess>);

fn greet(link: &mut UnixStream) -> Result<Greeted, GuardError> {
    let (greeting, descriptors) = link::receive_greeting(link).map_err(|error| {
        GuardError::new("receive its settings (is it started by romulus protect?)", error)
    })?;
    let spec: GuardSpec = serde_json::from_slice(&greeting)
        .map_err(|error| GuardError::new("read its settings", io::Error::from(error)))?;
    let mut descriptors = descriptors.into_iter();
    let (Some(page), Some(protector)) = (descriptors.next(), descriptors.next()) else {
        return Err(GuardError::new("receive its settings", io::Error::other("descriptors are missing")));
    };
    let page = Page::open(page).map_err(|error| GuardError::new("open its page", error))?;
    let guest = match (spec.guest_pid, descriptors.next()) {
        (Some(pid), Some(pidfd)) => Some(GuestProcess::from_pidfd(pid, pidfd)),
        (None, None) => None,
        _ => return Err(GuardError::new("receive its settings", io::Error::other("no pidfd of the guest"))),
    };
    // The parent's id is only for people; what counts is the descriptor.
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get() as u32);
    Ok((spec, page, GuestProcess::from_pidfd(parent, protector), guest))
}

fn authority(arbiter: &ArbiterSpec, spec: &GuardSpec) -> Authority {
    match arbiter {
        ArbiterSpec::None if spec.solo_automatic => Authority::NobodyAndSoloIsAutomatic,
        ArbiterSpec::None => Authority::NobodyAndSoloIsManual,
        _ => Authority::Arbiter,
    }
}

/// Waits for the protector's end or its word that it has let go.
fn watch(link: &mut UnixStream, protector: &GuestProcess, page: &Page) -> Result<LastWords, GuardError> {
    let mut link_open = true;
    loop {
        let (ended, spoke) = {
            let link_events = if link_open { PollFlags::IN } else { PollFlags::empty() };
            let protector = protector.pidfd();
            let mut polled = [PollFd::new(&protector, PollFlags::IN), PollFd::new(&*link, link_events)];
            // A link that is closed would report its hang-up without end.
            let count = if link_open { 2 } else { 1 };
            match rustix::event::poll(&mut polled[..count], None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(GuardError::new("watch its protector", io::Error::from(error))),
                Ok(_) => (!polled[0].revents().is_empty(), !polled[1].revents().is_empty()),
            }
        };
        if ended {
            return Ok(page.last_words());
        }
        if spoke {
            let mut word = [0];
            link_open = matches!(link.read(&mut word), Ok(1));
            if link_open && word == [link::DETACHED] {
                return Ok(page.last_words());
            }
        }
    }
}

/// What the guard acts with. Handles are made when first needed: as long as the protector lives,
/// it alone speaks with the guest.
struct Hands<'a> {
    spec: &'a GuardSpec,
    parts: &'a dyn GuardParts,
    arbiter: &'a dyn Arbiter,
    process: Option<GuestProcess>,
    guest: Option<Box<dyn GuestHandle>>,
    gate: Option<Box<dyn GateHandle>>,
}

impl Hands<'_> {
    fn guest(&mut self) -> Result<&mut dyn GuestHandle, String> {
        if self.guest.is_none() {
            let process = match &self.process {
                Some(process) => {
                    let pidfd = process.pidfd().try_clone_to_owned().map_err(|error| error.to_string())?;
                    Some(GuestProcess::from_pidfd(process.pid(), pidfd))
                }
                None => None,
            };
            self.guest = Some(self.parts.guest(self.spec, process)?);
        }
        self.guest.as_deref_mut().map(|guest| guest as &mut dyn GuestHandle).ok_or_else(String::new)
    }

    fn alive(&mut self) -> bool {
        if self.process.as_ref().is_some_and(|process| !process.is_alive()) {
            return false;
        }
        if self.process.is_some() && self.guest.is_none() {
            // Reaching the guest costs time; its process says enough.
            return true;
        }
        // A guest that cannot be reached yet is not known to be dead.
        self.guest().map_or(true, |guest| guest.alive())
    }

    fn open_gate(&mut self, grant: &romulus_checkpoint::arbiter::SoloGrant) -> Result<(), String> {
        if self.gate.is_none() {
            self.gate = Some(self.parts.gate(self.spec)?);
        }
        self.gate.as_deref_mut().map_or(Ok(()), |gate| gate.open(grant))
    }

    /// `Ok` also where its process has ended: that one cannot be reached any more.
    fn destroy(&mut self) -> Result<(), String> {
        if self.process.as_ref().is_some_and(|process| process.wait_end(Some(Duration::ZERO))) {
            return Ok(());
        }
        let result = self.guest().and_then(|guest| guest.destroy());
        self.or_forget_guest(result)
    }

    /// Until a process that was killed has ended, it may still send: for so long its gate stays closed.
    fn has_ended(&self) -> bool {
        let Some(process) = &self.process else { return true };
        if process.wait_end(Some(Duration::ZERO)) {
            return true;
        }
        tracing::info!("process {} has not ended yet: its gate stays closed for so long", process.pid());
        process.wait_end(None)
    }

    /// The guest is gone: what its gate had set up goes too.
    fn clear_gate(&mut self) {
        let cleared = match self.gate.as_deref_mut() {
            Some(gate) => gate.clear(),
            None => self.parts.gate(self.spec).and_then(|mut gate| gate.clear()),
        };
        if let Err(why) = cleared {
            tracing::warn!("guest {}: the output gate is left in place: {why}", self.spec.guest);
        }
    }

    /// A handle that failed is made anew the next time.
    fn or_forget_guest<T>(&mut self, result: Result<T, String>) -> Result<T, String> {
        if result.is_err() {
            self.guest = None;
        }
        result
    }

    /// As [`or_forget_guest`](Self::or_forget_guest); the guest's handle knows what was done to it.
    fn or_forget_gate<T>(&mut self, result: Result<T, String>) -> Result<T, String> {
        if result.is_err() {
            self.gate = None;
        }
        result
    }
}

fn act(mut guard: Guard, hands: &mut Hands<'_>, words: LastWords) -> Outcome {
    let began = Instant::now();
    let mut action = guard.step(Input::ProtectorDied(words));
    let mut last_reason = String::new();
    loop {
        tracing::debug!(?action, elapsed_us = began.elapsed().as_micros() as u64, "guard");
        let guest = &hands.spec.guest;
        let input = match &action {
            Action::Exit(outcome) => {
                if *outcome == Outcome::Solo
                    && let Err(why) = hands.guest().and_then(|guest| guest.tidy())
                {
                    tracing::warn!("guest {guest}: settings of its protection are left in place: {why}");
                }
                let is_dying =
                    matches!(outcome, Outcome::GuestDead | Outcome::HandedBack | Outcome::Destroyed(_));
                // One that has powered off sends nothing, and its process may stay.
                if *outcome == Outcome::Ended || is_dying && hands.has_ended() {
                    hands.clear_gate();
                }
                return outcome.clone();
            }
            Action::CheckGuest => Input::GuestAlive(hands.alive()),
            Action::ReadRecord => Input::Record(hands.arbiter.read(guest).map_err(|error| error.to_string())),
            Action::Swap { expected, new } => Input::Swapped(hands.arbiter.swap(guest, Some(expected), new)),
            Action::Resume(_) => {
                let result = hands.guest().and_then(|guest| guest.resume_if_paused());
                Input::Done(hands.or_forget_guest(result))
            }
            Action::OpenGate(grant) => {
                let result = hands.open_gate(grant);
                Input::Done(hands.or_forget_gate(result))
            }
            Action::Destroy => Input::Done(hands.destroy()),
            Action::Wait(pause, why) => {
                if *why != last_reason {
                    tracing::warn!("guest {guest}: {why}; trying again");
                    last_reason.clone_from(why);
                }
                std::thread::sleep(*pause);
                Input::Waited
            }
        };
        action = guard.step(input);
    }
}

fn report(spec: &GuardSpec, outcome: &Outcome) {
    let guest = &spec.guest;
    let (name, text) = match outcome {
        Outcome::NotNeeded => ("not_needed", String::new()),
        Outcome::Solo => ("solo", "its protection died; it runs on here, unprotected".into()),
        Outcome::GuestDead => ("guest_dead", "it is dead; the backup may take over".into()),
        Outcome::HandedBack => ("handed_back", "it died too; the backup may take over".into()),
        Outcome::Destroyed(record) => ("destroyed", format!("destroyed here: {}", record.describe())),
        Outcome::Ended => ("ended", "it has ended by itself".into()),
        Outcome::Displaced => ("displaced", "another protector of this host has it now".into()),
        Outcome::Held => (
            "held",
            "its protection died and nobody arbitrates: it was left as it was; resume it by hand (cont in \
             QEMU's monitor; romulus release for a Xen domain), or let the backup take over, but not both"
                .into(),
        ),
    };
    if !matches!(outcome, Outcome::NotNeeded) {
        tracing::warn!("guest {guest}: {text}");
    }
    if let Some(path) = &spec.report {
        let line = serde_json::json!({ "guest": guest, "outcome": name, "text": text });
        if let Err(error) = std::fs::write(path, format!("{line}\n")) {
            tracing::warn!("cannot write {}: {error}", path.display());
        }
    }
}
