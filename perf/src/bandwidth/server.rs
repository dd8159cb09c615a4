//! The server: lends memory, acknowledges fences, echoes messages, and runs its half of the limits.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use romulus_checkpoint::driver::anonymous_mapping;
use romulus_transport::{Arena, Endpoint, Event, Fabric, Listener, MessageBuffer};

use super::control::{Answer, Control, Order, VERSION};
use super::limits::perftest::Program;
use super::limits::plain;
use super::load::wants_ack;
use crate::exit::{Failure, OrFail};
use crate::fabrics::FabricOptions;
use crate::machine::Machine;

/// Longest wait for the client to do what it announced.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most memory that a client may ask for.
const MAX_ARENA_BYTES: u64 = 64 << 30;

/// Serves one client after the other; with `once` the first one only.
pub fn run(
    listener: &TcpListener,
    fabric: &dyn Fabric,
    options: &FabricOptions,
    once: bool,
) -> Result<(), Failure> {
    loop {
        let (stream, peer) = listener.accept().or_fail("waiting for a client")?;
        let local = stream.local_addr().or_fail("the client's connection")?;
        let mut client = Client { fabric, options, at: local.ip(), program: None };
        let served = Control::new(stream).and_then(|mut control| client.serve(&mut control));
        if once {
            return served;
        }
        if let Err(failure) = served {
            eprintln!("romulus-perf: client {peer}: {failure}");
        }
    }
}

struct Client<'a> {
    fabric: &'a dyn Fabric,
    options: &'a FabricOptions,
    /// The address that the client reached.
    at: IpAddr,
    /// What was started, and how long it may take.
    program: Option<(Program, Duration)>,
}

impl Client<'_> {
    /// Carries out orders until the client has gone.
    fn serve(&mut self, control: &mut Control) -> Result<(), Failure> {
        while let Some(order) = control.receive()? {
            match self.carry_out(order, control) {
                Ok(Some(answer)) => control.send(&answer)?,
                Ok(None) => {}
                Err(failure) => control.send(&Answer::Failed { why: failure.message })?,
            }
        }
        Ok(())
    }

    /// The answer, where it was not sent on the way.
    fn carry_out(&mut self, order: Order, control: &mut Control) -> Result<Option<Answer>, Failure> {
        match order {
            Order::Hello { version, fabric } => {
                if version != VERSION || fabric != self.options.fabric {
                    let (client, server) = (fabric.name(), self.options.fabric.name());
                    return Err(Failure::failed(format!(
                        "client: version {version}, fabric {client}; server: version {VERSION}, fabric \
                         {server}; start both with the same --fabric and build"
                    )));
                }
                Ok(Some(Answer::Hello { machine: Machine::here() }))
            }
            Order::Lend { arena_bytes } => {
                let mut listener = self.fabric.listen(SocketAddr::new(self.at, 0)).or_fail("the fabric")?;
                let arena = arena(arena_bytes)?;
                control.send(&Answer::Listening { address: listener.local_address() })?;
                let endpoint = accept(&mut *listener, arena)?;
                std::thread::scope(|scope| {
                    let work = || serve_endpoint(&*endpoint);
                    let serving = std::thread::Builder::new().name("committer".into());
                    serving.spawn_scoped(scope, work).or_fail("starting a thread")?.join().unwrap_or(Ok(()))
                })?;
                Ok(None)
            }
            Order::Plain { streams, window_bytes, span_bytes } => {
                let listener = TcpListener::bind((self.at, 0)).or_fail("listening for plain streams")?;
                let address = listener.local_addr().or_fail("listening for plain streams")?;
                let memory = plain::touched(window_bytes.clamp(1, MAX_ARENA_BYTES))?;
                control.send(&Answer::Listening { address })?;
                plain::receive(&listener, streams.clamp(1, 64) as usize, &memory, span_bytes)?;
                Ok(None)
            }
            Order::Perftest(run) => {
                let program = Program::serve(&run, self.options, self.at)?;
                let address = SocketAddr::new(self.at, program.port());
                self.program = Some((program, run.patience()));
                Ok(Some(Answer::Listening { address }))
            }
            Order::Reap { kill } => match self.program.take() {
                // Dropping kills it.
                Some(_) if kill => Ok(Some(Answer::Done)),
                Some((program, patience)) => program.finish(patience).map(|_| Some(Answer::Done)),
                None => Err(Failure::failed("no program was started")),
            },
        }
    }
}

fn arena(len_bytes: u64) -> Result<Arena, Failure> {
    if len_bytes == 0 || len_bytes > MAX_ARENA_BYTES {
        return Err(Failure::failed(format!("an arena of {len_bytes} bytes is out of the question")));
    }
    let memory = anonymous_mapping(len_bytes as usize).or_fail(format!("mapping {len_bytes} bytes"))?;
    plain::touch(&memory);
    Ok(Arena::new([memory]))
}

/// The handshake of the layer above: offer and answer travel as messages.
fn accept(listener: &mut dyn Listener, arena: Arena) -> Result<Arc<dyn Endpoint>, Failure> {
    let channel = listener.accept(PATIENCE).or_fail("accepting")?;
    let mut channel = channel.ok_or_else(|| Failure::failed("the client did not connect"))?;
    let offer = channel.receive(PATIENCE).or_fail("the client's offer")?;
    let answer = channel.answer(&offer, arena).or_fail("lending memory")?;
    channel.send(&answer).or_fail("answering")?;
    channel.establish(None, PATIENCE).or_fail("establishing")
}

/// Acknowledges fences that ask for it and echoes messages, until the client closes.
fn serve_endpoint(endpoint: &dyn Endpoint) -> Result<(), Failure> {
    let mut message = MessageBuffer::default();
    loop {
        // An error in sending shows as the end of the connection.
        match endpoint.next_event(&mut message, PATIENCE).or_fail("waiting for the client")? {
            Event::Fenced { marker } if wants_ack(marker) => drop(endpoint.send(&marker.to_le_bytes())),
            Event::Fenced { .. } | Event::Idle => {}
            Event::Message => drop(endpoint.send(message.message())),
            Event::Closed(_) => break,
        }
    }
    endpoint.close();
    Ok(())
}
