//! The backup's handshakes: strangers, Hellos, Welcomes.

use std::time::Duration;

use romulus_checkpoint::Identity;
use romulus_checkpoint::backup::{Admission, Refusal};
use romulus_checkpoint::wire::message::{ErrorCode, Hello, Message, decode};
use romulus_transport::{Channel, TransportError};

use super::arbiter::{Answer, Kind, Request};
use super::backup_process::{BackupProcess, Link};
use super::env::{Crashed, Env, Progress, Step, encoded};
use super::image::Image;
use super::scenario::Host;

/// A Hello on its way to a Welcome.
pub struct Greeted {
    pub channel: Box<dyn Channel>,
    pub identity: Identity,
    pub hello: Hello,
    pub step: Welcoming,
}

pub enum Welcoming {
    Record(Option<Box<Request>>),
    Quiesce,
}

impl BackupProcess {
    pub fn step_strangers(&mut self, env: &mut Env) -> Step {
        let mut progress = Progress::None;
        if let Ok(Some(channel)) = self.listener.accept(Duration::ZERO) {
            self.strangers.push((channel, env.now.after(Duration::from_millis(5))));
            progress = Progress::Some;
        }
        for (mut channel, until) in std::mem::take(&mut self.strangers) {
            match channel.receive(Duration::ZERO) {
                Err(TransportError::TimedOut { .. }) if env.now < until => {
                    self.strangers.push((channel, until))
                }
                Err(_) => progress = Progress::Some,
                Ok(bytes) => {
                    progress = Progress::Some;
                    self.greet(channel, &bytes, env)?;
                }
            }
        }
        Ok(progress)
    }

    pub fn greet(
        &mut self,
        mut channel: Box<dyn Channel>,
        bytes: &[u8],
        env: &mut Env,
    ) -> Result<(), Crashed> {
        let Ok((identity, Message::Hello(hello))) = decode(bytes) else {
            return Ok(());
        };
        if self.greeted.is_some() {
            // One handshake at a time; the stranger tries again.
            refuse(&mut channel, &identity, ErrorCode::Busy, "another handshake is under way");
            return Ok(());
        }
        let admission = self.machine.admit(&identity, &hello, env.now);
        env.trace(|| format!("backup: hello {identity:?}: {admission:?}"));
        self.greeted = Some(Greeted { channel, identity, hello, step: Welcoming::Quiesce });
        self.admitted(admission, env)
    }

    pub fn admitted(&mut self, admission: Result<Admission, Refusal>, env: &mut Env) -> Result<(), Crashed> {
        env.point(Host::Backup)?;
        let Some(mut greeted) = self.greeted.take() else { return Ok(()) };
        match admission {
            Err(refusal) => {
                refuse(&mut greeted.channel, &greeted.identity, refusal.code, &refusal.text);
                return Ok(());
            }
            Ok(Admission::NeedsRecord) => greeted.step = Welcoming::Record(None),
            Ok(Admission::Resume) => {
                self.disconnect("replaced by a new connection", env)?;
                greeted.step = Welcoming::Quiesce;
            }
            Ok(Admission::Prepare(shape)) => {
                self.disconnect("replaced by a new connection", env)?;
                if env.operation_fails() {
                    let text = "no standby could be prepared";
                    refuse(&mut greeted.channel, &greeted.identity, ErrorCode::StandbyFailed, text);
                    return Ok(());
                }
                env.oracle.image_gone();
                self.image = Some(Image::new(shape));
                greeted.step = Welcoming::Quiesce;
            }
        }
        self.greeted = Some(greeted);
        Ok(())
    }

    pub fn step_welcome(&mut self, env: &mut Env) -> Step {
        let Some(greeted) = &mut self.greeted else { return Ok(Progress::None) };
        match &mut greeted.step {
            Welcoming::Record(None) => {
                let request = env.arbiter.ask(Host::Backup, Kind::Read, env.now, &mut env.rng);
                greeted.step = Welcoming::Record(Some(Box::new(request)));
                Ok(Progress::Some)
            }
            Welcoming::Record(Some(request)) => {
                if request.due() > env.now {
                    return Ok(Progress::None);
                }
                let answer = env.arbiter.go_on(request, env.now, &mut env.rng, &mut env.oracle);
                if let Some(Answer::Record(record)) = answer {
                    let (identity, hello) = (greeted.identity, greeted.hello.clone());
                    let admission = self.machine.admit_with_record(&identity, &hello, record, env.now);
                    env.trace(|| format!("backup: with the record: {admission:?}"));
                    self.admitted(admission, env)?;
                }
                Ok(Progress::Some)
            }
            Welcoming::Quiesce => self.welcome(env),
        }
    }

    pub fn welcome(&mut self, env: &mut Env) -> Step {
        if !self.machine.quiesce_homing() || self.homing.is_some() {
            return Ok(Progress::None);
        }
        let (Some(mut greeted), Some(image)) = (self.greeted.take(), &self.image) else {
            return Ok(Progress::Some);
        };
        self.check_image(env);
        let Ok(fabric_answer) = greeted.channel.answer(&greeted.hello.fabric_offer, image.arena()) else {
            // The stranger is gone; the machine waits for the next Hello.
            return Ok(Progress::Some);
        };
        let (identity, welcome) =
            self.machine.welcome(&greeted.hello, fabric_answer, env.now, &mut self.actions);
        env.trace(|| format!("backup: {welcome:?}"));
        self.called(env)?;
        let sent = greeted.channel.send(&encoded(&identity, &welcome));
        if !matches!(welcome, Message::Welcome(_)) {
            // Things have changed since the Hello: the peer gets no answer of the fabric's.
            return Ok(Progress::Some);
        }
        self.fenced = None;
        match sent.and_then(|()| greeted.channel.establish(None, Duration::ZERO)) {
            Ok(endpoint) => {
                self.link = Some(Link { endpoint, number: identity.connection, fences: Vec::new() });
                if !self.machine.handle_connected(env.now, &mut self.actions) {
                    self.disconnect("given up meanwhile", env)?;
                }
            }
            Err(error) => self.machine.handle_disconnected(&error.to_string(), env.now, &mut self.actions),
        }
        self.called(env)
    }
}

fn refuse(channel: &mut Box<dyn Channel>, identity: &Identity, code: ErrorCode, text: &str) {
    let _ = channel.send(&encoded(identity, &Message::Error { code, text: text.into() }));
}
