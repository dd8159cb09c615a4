//! `ib_write_bw`, `ib_write_lat` and `ib_send_lat` (Debian package perftest): the limits of the
//! rdma fabric, run by the harness itself.
//!
//! Their figures need the processor's clock rate. Where the machine does not tell it they print
//! zeros; then each is run twice, with few and with many iterations, and the difference in time is
//! what the difference in iterations took; starting and connecting cancel out.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::super::control::{Answer, Control, Order};
use crate::exit::{Failure, OrFail};
use crate::fabrics::FabricOptions;

/// Longest run of a program.
pub const PATIENCE: Duration = Duration::from_secs(120);
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
    /// Messages there and back, waited for by blocking.
    SendLat,
}

impl Tool {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Tool::WriteBw => "ib_write_bw",
            Tool::WriteLat => "ib_write_lat",
            Tool::SendLat => "ib_send_lat",
        }
    }

    /// Whether this host has it.
    pub fn is_installed(self) -> bool {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).any(|folder| folder.join(self.name()).is_file())
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
    /// Iterations of each queue pair.
    pub iterations: u64,
}

impl Run {
    #[cfg(test)]
    pub fn sample() -> Self {
        Self { tool: Tool::WriteBw, size_bytes: 4096, depth: 128, queue_pairs: 2, iterations: 1000 }
    }

    /// Arguments of both ends: numbers, and what the options of this end say of the device.
    fn arguments(&self, device: &[String], port: u16) -> Vec<String> {
        let number = |name: &str, value: u64| [name.to_owned(), value.to_string()];
        let mut arguments = vec!["-F".to_owned()];
        arguments.extend(number("-s", self.size_bytes));
        arguments.extend(number("-n", self.iterations));
        arguments.extend(number("-p", port.into()));
        match self.tool {
            Tool::WriteBw => {
                arguments.extend(number("-t", self.depth));
                if self.queue_pairs > 1 {
                    arguments.extend(number("-q", self.queue_pairs));
                }
            }
            Tool::WriteLat => {}
            Tool::SendLat => arguments.push("-e".into()),
        }
        arguments.extend_from_slice(device);
        arguments
    }

    /// What its iterations move in all, in bytes.
    fn bytes(&self) -> u64 {
        self.size_bytes * self.iterations * self.queue_pairs
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

/// What a run told of one iteration, in seconds: the mean of all writes, or of a round trip. `None`
/// where the program does not know the clock rate.
fn printed_seconds(run: &Run, printed: &str) -> Option<f64> {
    let lines = printed.lines().skip_while(|line| !line.trim_start().starts_with("#bytes"));
    let figures: Vec<f64> =
        lines.skip(1).take(1).flat_map(str::split_whitespace).map_while(|word| word.parse().ok()).collect();
    let seconds = match run.tool {
        // Size, iterations, peak and mean in MiB/s.
        Tool::WriteBw => (run.size_bytes * run.queue_pairs) as f64 / (figures.get(3)? * f64::from(1 << 20)),
        // Size, iterations, and of half a round trip in us: least, most, typical, mean.
        Tool::WriteLat | Tool::SendLat => 2.0 * figures.get(5)? / 1e6,
    };
    (seconds.is_finite() && seconds > 0.0).then_some(seconds)
}

/// Runs both ends once; what the client printed, and its seconds from start to end.
fn run_once(control: &mut Control, options: &FabricOptions, run: &Run) -> Result<(String, f64), Failure> {
    let address: SocketAddr = control.order_listening(&Order::Perftest(*run))?;
    let begun = Instant::now();
    let program = Program::start(run, options, address.port(), Some(address.ip()))?;
    let outcome = program.finish(PATIENCE);
    let seconds = begun.elapsed().as_secs_f64();
    match control.order(&Order::Reap) {
        Ok(Answer::Done) => outcome.map(|printed| (printed, seconds)),
        Ok(other) => Err(Failure::failed(format!("the server answered {other:?}"))),
        Err(server) => Err(outcome.err().unwrap_or(server)),
    }
}

/// Seconds that one iteration of `run` takes.
fn seconds_of_iteration(control: &mut Control, options: &FabricOptions, run: &Run) -> Result<f64, Failure> {
    let (printed, long) = run_once(control, options, run)?;
    if let Some(seconds) = printed_seconds(run, &printed) {
        return Ok(seconds);
    }
    let few = Run { iterations: (run.iterations / 20).max(8), ..*run };
    let (_, short) = run_once(control, options, &few)?;
    if long <= short || run.iterations <= few.iterations {
        return Err(Failure::failed(format!(
            "{} took {short:.3} s for {} iterations and {long:.3} s for {}: measure for longer (--seconds)",
            run.tool.name(),
            few.iterations,
            run.iterations
        )));
    }
    Ok((long - short) / (run.iterations - few.iterations) as f64)
}

/// As [`seconds_of_iteration`], with as many iterations as fill at least half of `time`, beginning
/// with those of `run`.
fn measure(control: &mut Control, options: &FabricOptions, run: Run, time: Duration) -> Result<f64, Failure> {
    let mut run = run;
    let mut tries = 3;
    loop {
        run.iterations = run.iterations.clamp(64, 10_000_000);
        let seconds = seconds_of_iteration(control, options, &run)?;
        tries -= 1;
        if tries == 0 || seconds * run.iterations as f64 >= time.as_secs_f64() / 2.0 {
            return Ok(seconds);
        }
        run.iterations = (time.as_secs_f64() / seconds) as u64;
    }
}

/// Bandwidth of one-sided writes in MB/s, measured for about `time` if it is about `guess_mb_s`.
pub fn bandwidth(
    control: &mut Control,
    options: &FabricOptions,
    (size_bytes, depth): (u64, u64),
    guess_mb_s: f64,
    time: Duration,
) -> Result<f64, Failure> {
    let queue_pairs = options.streams;
    let one = Run { tool: Tool::WriteBw, size_bytes, depth, queue_pairs, iterations: 1 };
    let iterations = (guess_mb_s * 1e6 * time.as_secs_f64()) as u64 / one.bytes();
    let seconds = measure(control, options, Run { iterations, ..one }, time)?;
    Ok(one.bytes() as f64 / seconds / 1e6)
}

/// Microseconds that a write or message of `size_bytes` takes there and back, measured for about
/// `time` if it takes about `guess_us`.
pub fn round_trip_us(
    control: &mut Control,
    options: &FabricOptions,
    (tool, size_bytes): (Tool, u64),
    guess_us: f64,
    time: Duration,
) -> Result<f64, Failure> {
    let iterations = (time.as_secs_f64() * 1e6 / guess_us.max(1.0)) as u64;
    let run = Run { tool, size_bytes, depth: 1, queue_pairs: 1, iterations };
    Ok(1e6 * measure(control, options, run, time)?)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn arguments_are_what_perftest_knows() {
        let device = ["-d".to_owned(), "rxe0".to_owned()];
        let text = |tool| Run { tool, ..Run::sample() }.arguments(&device, 18515).join(" ");
        assert_eq!(text(Tool::WriteBw), "-F -s 4096 -n 1000 -p 18515 -t 128 -q 2 -d rxe0");
        assert_eq!(text(Tool::WriteLat), "-F -s 4096 -n 1000 -p 18515 -d rxe0");
        assert_eq!(text(Tool::SendLat), "-F -s 4096 -n 1000 -p 18515 -e -d rxe0");
        assert_eq!(Run::sample().bytes(), 4096 * 2 * 1000);
    }

    #[test]
    fn what_perftest_prints_is_read_and_zeros_are_not() {
        let writes = Run { tool: Tool::WriteBw, size_bytes: 1 << 20, ..Run::sample() };
        let text = |figures: &str| {
            format!(
                "----\n Mtu : 4096[B]\n #bytes     #iterations    BW peak[MB/sec] ...\n {figures}\n----\n"
            )
        };
        assert_eq!(printed_seconds(&writes, &text("1048576  2000  300.1  200.0  0.0002")), Some(0.01));
        let trips = Run { tool: Tool::SendLat, size_bytes: 16, ..Run::sample() };
        let half_us = text("16  500  20.5  900.0  24.0  25.0  3.1  40.0  50.0");
        assert_eq!(printed_seconds(&trips, &half_us), Some(50e-6));
        for figures in ["1048576 2000 0.00 0.00 0.0", "1048576 2000 inf inf inf", "1048576 2000", "", "x"] {
            assert_eq!(printed_seconds(&writes, &text(figures)), None, "{figures}");
        }
        assert_eq!(printed_seconds(&writes, "Couldn't connect"), None);
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
