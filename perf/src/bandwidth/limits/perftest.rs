//! `ib_write_bw` and `ib_write_lat` (Debian package perftest): the limits of the rdma fabric, run by
//! the harness itself.
//!
//! Their own figures are not used: those rest on a guess at the processor's clock rate that fails on
//! a busy machine. Each runs for a time instead, and what counts is how often it did its work.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use romulus_host::facts::find_in_path;
use serde::{Deserialize, Serialize};

use super::super::control::{Answer, Control, Order};
use crate::exit::{Failure, OrFail};
use crate::fabrics::FabricOptions;

/// Longest wait for a program beyond the time that it was told to run.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a program is tried. With polling ends on few processors, perftest now and then waits
/// for ever for a write that its other end no longer makes.
const ATTEMPTS: u32 = 3;
/// A program's first and last seconds, which it does not count.
const MARGIN_SECONDS: u64 = 1;
/// How often an end, or a port, is looked for.
const LOOK: Duration = Duration::from_millis(1);

/// A program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tool {
    /// One-sided writes, many at a time.
    WriteBw,
    /// One-sided writes there and back, waited for by polling memory.
    WriteLat,
}

impl Tool {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Tool::WriteBw => "ib_write_bw",
            Tool::WriteLat => "ib_write_lat",
        }
    }

    /// Whether this host has it.
    pub fn is_installed(self) -> bool {
        find_in_path(self.name()).is_some()
    }
}

/// One run of a program, the same on both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The program.
    pub tool: Tool,
    /// Bytes of a write or message.
    pub size_bytes: u64,
    /// Writes on their way at a time.
    pub depth: u64,
    /// Queue pairs.
    pub queue_pairs: u64,
    /// Seconds that are counted.
    pub seconds: u64,
}

impl Run {
    #[cfg(test)]
    pub(in crate::bandwidth) fn sample() -> Self {
        Self { tool: Tool::WriteBw, size_bytes: 4096, depth: 128, queue_pairs: 2, seconds: 3 }
    }

    /// Longest that it may take.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.seconds + 2 * MARGIN_SECONDS) + PATIENCE
    }

    /// Arguments of both ends: numbers, and what the options of this end say of the device.
    fn arguments(&self, device: &[String], port: u16) -> Vec<String> {
        let number = |name: &str, value: u64| [name.to_owned(), value.to_string()];
        let mut arguments = vec!["-F".to_owned()];
        arguments.extend(number("-s", self.size_bytes));
        arguments.extend(number("-D", self.seconds + 2 * MARGIN_SECONDS));
        arguments.extend(number("-f", MARGIN_SECONDS));
        arguments.extend(number("-p", port.into()));
        match self.tool {
            Tool::WriteBw => {
                arguments.extend(number("-t", self.depth));
                if self.queue_pairs > 1 {
                    arguments.extend(number("-q", self.queue_pairs));
                }
            }
            Tool::WriteLat => {}
        }
        arguments.extend_from_slice(device);
        arguments
    }
}

/// A started program, killed when dropped.
pub struct Program {
    child: Child,
    name: &'static str,
    port: u16,
}

impl Program {
    /// The server's half; returns when it listens.
    pub fn serve(run: &Run, options: &FabricOptions, at: IpAddr) -> Result<Self, Failure> {
        let free = TcpListener::bind((at, 0)).or_fail("a free port")?;
        let port = free.local_addr().or_fail("a free port")?.port();
        drop(free);
        let mut program = Self::start(run, options, port, None)?;
        let deadline = Instant::now() + PATIENCE;
        while !is_listening(port) {
            if program.child.try_wait().or_fail(program.name)?.is_some() {
                let name = program.name;
                program.finish(Duration::ZERO)?;
                return Err(Failure::failed(format!("{name} ended before its client came")));
            }
            if Instant::now() >= deadline {
                return Err(Failure::failed(format!("{} does not listen on port {port}", program.name)));
            }
            std::thread::sleep(LOOK);
        }
        Ok(program)
    }

    fn start(run: &Run, options: &FabricOptions, port: u16, server: Option<IpAddr>) -> Result<Self, Failure> {
        let name = run.tool.name();
        let child = Command::new(name)
            .args(run.arguments(&options.perftest_arguments(), port))
            .args(server.map(|server| server.to_string()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .or_fail(format!("starting {name} (Debian package perftest)"))?;
        Ok(Self { child, name, port })
    }

    /// The port of a server's half.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits for its end; what it printed. An error when it failed or takes longer than `patience`.
    pub fn finish(mut self, patience: Duration) -> Result<String, Failure> {
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().or_fail(self.name)? {
                break status;
            }
            if Instant::now() >= deadline {
                return Err(Failure::failed(format!("{} did not end within {patience:?}", self.name)));
            }
            std::thread::sleep(LOOK);
        };
        let read = |pipe: Option<&mut dyn std::io::Read>| {
            let mut text = String::new();
            // What cannot be read is not said.
            let _ = pipe.map(|pipe| pipe.read_to_string(&mut text));
            text
        };
        let printed = read(self.child.stdout.as_mut().map(|pipe| pipe as _));
        if status.success() {
            return Ok(printed);
        }
        let said = read(self.child.stderr.as_mut().map(|pipe| pipe as _)) + &printed;
        let last: Vec<_> = said.lines().filter(|line| !line.starts_with("---")).take(8).collect();
        Err(Failure::failed(format!("{} failed ({status}): {}", self.name, last.join("; "))))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program of this host listens on a port.
fn is_listening(port: u16) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .any(|path| fs::read_to_string(path).is_ok_and(|text| names_listener(&text, port)))
}

/// Whether a table of `/proc/net` has a socket that listens on a port.
fn names_listener(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().is_some_and(|local| local.ends_with(&suffix));
        local && fields.nth(1) == Some(LISTEN)
    })
}

/// How often a program did its work in the seconds counted.
fn iterations(printed: &str) -> Option<u64> {
    let mut lines = printed.lines().skip_while(|line| !line.trim_start().starts_with("#bytes"));
    let iterations = lines.nth(1)?.split_whitespace().nth(1)?.parse().ok()?;
    (iterations > 0).then_some(iterations)
}

/// Runs both ends, again where that fails; how often the program did its work.
fn count(control: &mut Control, options: &FabricOptions, run: &Run) -> Result<u64, Failure> {
    let mut attempt = 1;
    loop {
        match count_once(control, options, run) {
            Err(failure) if attempt < ATTEMPTS => eprintln!("{failure}; trying again"),
            outcome => return outcome,
        }
        attempt += 1;
    }
}

fn count_once(control: &mut Control, options: &FabricOptions, run: &Run) -> Result<u64, Failure> {
    let address: SocketAddr = control.order_listening(&Order::Perftest(*run))?;
    let program = Program::start(run, options, address.port(), Some(address.ip()))?;
    let outcome = program.finish(run.patience());
    match control.order(&Order::Reap { kill: outcome.is_err() }) {
        Ok(Answer::Done) => {}
        Ok(other) => return Err(Failure::failed(format!("the server answered {other:?}"))),
        Err(server) => return Err(outcome.err().unwrap_or(server)),
    }
    let printed = outcome?;
    let why = || Failure::failed(format!("{} gave no figures: {printed}", run.tool.name()));
    iterations(&printed).ok_or_else(why)
}

/// Runs both ends from this process; how often the program did its work.
pub fn count_here(options: &FabricOptions, run: &Run, at: IpAddr) -> Result<u64, Failure> {
    let server = Program::serve(run, options, at)?;
    let client = Program::start(run, options, server.port(), Some(at))?;
    let printed = client.finish(PATIENCE);
    let served = server.finish(PATIENCE);
    let printed = printed?;
    served?;
    let why = || Failure::failed(format!("{} gave no figures: {printed}", run.tool.name()));
    iterations(&printed).ok_or_else(why)
}

fn whole_seconds(time: Duration) -> u64 {
    (time.as_secs_f64().ceil() as u64).max(1)
}

/// Bandwidth of one-sided writes in MB/s, measured for `time`, in whole seconds.
pub fn bandwidth(
    control: &mut Control,
    options: &FabricOptions,
    (size_bytes, depth): (u64, u64),
    time: Duration,
) -> Result<f64, Failure> {
    let seconds = whole_seconds(time);
    let run = Run { tool: Tool::WriteBw, size_bytes, depth, queue_pairs: options.streams, seconds };
    let writes = count(control, options, &run)?;
    Ok((writes * size_bytes) as f64 / seconds as f64 / 1e6)
}

/// Microseconds that a write of `size_bytes` takes there and back, measured for `time`.
pub fn round_trip_us(
    control: &mut Control,
    options: &FabricOptions,
    (tool, size_bytes): (Tool, u64),
    time: Duration,
) -> Result<f64, Failure> {
    let seconds = whole_seconds(time);
    let run = Run { tool, size_bytes, depth: 1, queue_pairs: 1, seconds };
    let trips = count(control, options, &run)?;
    Ok(seconds as f64 * 1e6 / trips as f64)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn arguments_are_what_perftest_knows() {
        let device = ["-d".to_owned(), "rxe0".to_owned()];
        let text = |tool| Run { tool, ..Run::sample() }.arguments(&device, 18515).join(" ");
        assert_eq!(text(Tool::WriteBw), "-F -s 4096 -D 5 -f 1 -p 18515 -t 128 -q 2 -d rxe0");
        assert_eq!(text(Tool::WriteLat), "-F -s 4096 -D 5 -f 1 -p 18515 -d rxe0");
    }

    #[test]
    fn the_work_done_is_read() {
        let text = |figures: &str| {
            format!(
                "----\n Mtu : 4096[B]\n #bytes     #iterations    BW peak[MB/sec] ...\n {figures}\n----\n"
            )
        };
        assert_eq!(iterations(&text("1048576  2000  0.00  0.00  0.0002")), Some(2000));
        assert_eq!(iterations(&text("16  77  inf  nan")), Some(77));
        for figures in ["1048576 0 1.0", "1048576", "", "x y"] {
            assert_eq!(iterations(&text(figures)), None, "{figures}");
        }
        assert_eq!(iterations("Couldn't connect"), None);
    }

    #[test]
    fn a_listening_port_is_seen() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_listening(port));
        drop(listener);
        assert!(!is_listening(port));
        let connected = "  sl  local_address rem_address   st\n   0: 0100007F:4853 0100007F:0001 01 0:0";
        assert!(!names_listener(connected, 0x4853));
        assert!(names_listener(&connected.replace(" 01 ", " 0A "), 0x4853));
    }
}
