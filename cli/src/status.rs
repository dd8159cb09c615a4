//! `romulus status`, `failover` and `stop`: talk to a running instance.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::control::{self, Request};
use crate::exit::Failure;
use crate::protect::state_line;

/// Which instance.
#[derive(Debug, clap::Args)]
pub struct InstanceOptions {
    /// Control socket of the instance [default: the one that runs on this machine, a `romulus protect`
    /// or a `romulus backup`; where both do, `status` is of the former, and `failover` and `stop` need this]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

impl InstanceOptions {
    /// To look at: a `romulus protect` before a `romulus backup`.
    fn any(&self) -> Result<PathBuf, Failure> {
        self.control.clone().map_or_else(|| Running::here()?.any(), Ok)
    }

    /// To be acted on: never a guess.
    fn only(&self) -> Result<PathBuf, Failure> {
        self.control.clone().map_or_else(|| Running::here()?.only(), Ok)
    }
}

/// The instances at the places where they are without `--control`.
struct Running {
    places: [PathBuf; 2],
    listening: Vec<PathBuf>,
}

impl Running {
    fn here() -> Result<Self, Failure> {
        Self::at(["protect", "backup"].map(control::default_path))
    }

    fn at(places: [PathBuf; 2]) -> Result<Self, Failure> {
        let mut listening = Vec::new();
        for place in &places {
            if control::listens(place)? {
                listening.push(place.clone());
            }
        }
        Ok(Self { places, listening })
    }

    fn any(mut self) -> Result<PathBuf, Failure> {
        if self.listening.is_empty() {
            let [protect, backup] = self.places.each_ref().map(|place| place.display());
            return Err(Failure::failed(format!(
                "no romulus of this user runs here: nobody listens at {protect} or {backup} (--control names another \
                 socket)"
            )));
        }
        Ok(self.listening.remove(0))
    }

    fn only(self) -> Result<PathBuf, Failure> {
        if let [protect, backup] = &self.listening[..] {
            return Err(Failure::usage(format!(
                "a `romulus protect` and a `romulus backup` run here: say which, --control {} or --control {}",
                protect.display(),
                backup.display()
            )));
        }
        self.any()
    }
}

/// Options of `romulus status`.
#[derive(Debug, clap::Args)]
pub struct StatusOptions {
    #[command(flatten)]
    instance: InstanceOptions,

    /// Print one JSON object and end
    #[arg(long)]
    json: bool,

    /// Print once and end, also on a terminal
    #[arg(long)]
    once: bool,

    /// Refresh the table this often, in milliseconds
    #[arg(long, default_value_t = 500, value_name = "MS", value_parser = clap::value_parser!(u64).range(50..=60_000))]
    every_ms: u64,
}

/// Options of `romulus failover`.
#[derive(Debug, clap::Args)]
pub struct FailoverOptions {
    #[command(flatten)]
    instance: InstanceOptions,

    /// At a backup: take over although the primary is still connected. DANGER without an arbiter: if
    /// the primary is not dead, two copies of the guest run
    #[arg(long)]
    force: bool,
}

/// Shows the status: a live table on a terminal, one table or JSON object elsewhere.
pub fn run(options: &StatusOptions) -> Result<ExitCode, Failure> {
    let path = options.instance.any()?;
    let mut status = control::ask(&path, &Request::Status)?;
    if options.json {
        println!("{status:#}");
        return Ok(ExitCode::SUCCESS);
    }
    if options.once || !std::io::stdout().is_terminal() {
        print!("{}", table(&status));
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        // Home, then each line over the old one, then clear what is left below: no flicker.
        print!("\x1b[H{}\x1b[J", table(&status).replace('\n', "\x1b[K\n"));
        std::thread::sleep(Duration::from_millis(options.every_ms));
        status = control::ask(&path, &Request::Status)?;
    }
}

/// Asks for a failover.
pub fn failover(options: &FailoverOptions) -> Result<ExitCode, Failure> {
    control::ask(&options.instance.only()?, &Request::Failover { force: options.force })?;
    println!("failover has begun; `romulus status` shows how it goes");
    Ok(ExitCode::SUCCESS)
}

/// Asks an instance to end.
pub fn stop(options: &InstanceOptions) -> Result<ExitCode, Failure> {
    let path = options.only()?;
    control::ask(&path, &Request::Stop)?;
    println!("asked; waiting for its end (with an arbiter that does not answer, it waits for that)");
    wait_for_end(&path)?;
    println!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Until nobody listens any more: an instance that is busy is none that has ended. (The socket goes
/// with the instance, after it has cleaned up.)
fn wait_for_end(path: &Path) -> Result<(), Failure> {
    while control::listens(path)? {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// One card's gate.
fn gate_row(gate: &Value) -> (String, String) {
    let text = |path: &str| {
        gate.pointer(path).map_or_else(String::new, |value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    };
    let what = format!("{} on {}", text("/kind"), text("/interface"));
    let value = match (text("/kind").as_str(), text("/holding") == "true") {
        ("none", _) => format!("{what}: nothing is held"),
        (_, false) => format!("{what}, open"),
        ("redirect", true) => format!(
            "{what}: {} packets held, {} dropped; held for us p50/p99/max {} / {} / {}",
            text("/held_packets"),
            text("/dropped_packets"),
            text("/held_us/p50"),
            text("/held_us/p99"),
            text("/held_us/max")
        ),
        (_, true) => format!("{what}, holding"),
    };
    (format!("gate of {}", text("/nic")), value)
}

/// The table for people.
fn table(status: &Value) -> String {
    let text = |path: &str| match status.pointer(path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".into(),
        Some(value) => value.to_string(),
    };
    let number = |path: &str| status.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
    let mut lines = Vec::new();
    let mut row = |name: &str, value: String| lines.push(format!("{name:<22} {value}\n"));
    let is_primary = text("/role") == "protect";
    row("guest", format!("{} ({})", text("/guest"), text("/role")));
    let reason = status.pointer("/state_reason").and_then(Value::as_str).unwrap_or("");
    row("state", state_line(&text("/state"), reason));
    row(
        "peer",
        if text("/connected") == "true" {
            text("/peer")
        } else {
            format!("{} (not connected)", text("/peer"))
        },
    );
    row("epoch", format!("{} ({} committed)", text("/epoch"), text("/epochs_committed")));
    row("checkpoints/s", format!("{:.1}", number("/checkpoints_per_second")));
    if is_primary {
        let pair = |path: &str| {
            format!(
                "{} / {} / {}",
                text(&format!("{path}/p50")),
                text(&format!("{path}/p99")),
                text(&format!("{path}/max"))
            )
        };
        row("pause us p50/p99/max", pair("/pause_us"));
        row("commit us p50/p99/max", pair("/ack_us"));
        row("dirty pages", pair("/dirty_pages"));
        row("lag", format!("{} epochs, {:.1} ms", text("/lag_epochs"), number("/lag_us") / 1_000.0));
        row(
            "late epochs",
            format!(
                "{} (throttled {}, stalled {}, in pieces {}, overflowed {})",
                text("/late_epochs"),
                text("/throttled_epochs"),
                text("/stalled_epochs"),
                text("/pieced_epochs"),
                text("/overflows")
            ),
        );
        for gate in status.pointer("/gates").and_then(Value::as_array).into_iter().flatten() {
            let (name, value) = gate_row(gate);
            row(&name, value);
        }
        row("sent", format!("{:.1} MiB", number("/bytes_written") / f64::from(1 << 20)));
        if text("/state") == "syncing" {
            let (done, all) = (number("/sync/pages_done"), number("/sync/pages_total").max(1.0));
            row("synchronizing", format!("round {}, {:.0} %", text("/sync/round"), 100.0 * done / all));
        }
    } else {
        row("listening at", text("/listen"));
        row("arena", format!("{:.0} MiB", number("/arena_bytes") / f64::from(1 << 20)));
        row("pages homed", text("/pages_homed"));
        row("last heard", format!("{:.0} ms ago", number("/silence_us") / 1_000.0));
        if status.pointer("/takeover").is_some_and(|takeover| !takeover.is_null()) {
            row(
                "takeover",
                format!(
                    "epoch {}, {:.0} ms after the last sign of life",
                    text("/takeover/epoch"),
                    number("/takeover/total_ms")
                ),
            );
            row("guest's QMP socket", text("/standby_qmp"));
        }
    }
    if let Some(reports) = status.pointer("/reports").and_then(Value::as_array) {
        let last = reports.iter().rev().take(5).rev().filter_map(Value::as_str);
        for report in last {
            row("", report.to_owned());
        }
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::exit::Code;

    #[test]
    fn a_socket_that_was_left_is_no_instance_and_two_instances_are_no_choice() {
        let dir = tempfile::tempdir().unwrap();
        let places = || ["protect", "backup"].map(|role| dir.path().join(role));
        let [protect, backup] = places();
        let running = || Running::at(places()).unwrap();
        assert_eq!(running().any().unwrap_err().code, Code::Failed);
        assert_eq!(running().only().unwrap_err().code, Code::Failed);

        drop(UnixListener::bind(&protect).unwrap());
        let _backup = UnixListener::bind(&backup).unwrap();
        assert_eq!(running().any().unwrap(), backup);
        assert_eq!(running().only().unwrap(), backup);

        std::fs::remove_file(&protect).unwrap();
        let _protect = UnixListener::bind(&protect).unwrap();
        assert_eq!(running().any().unwrap(), protect);
        let failure = running().only().unwrap_err();
        assert_eq!(failure.code, Code::Usage);
        assert!(failure.message.contains(&format!("--control {}", backup.display())), "{failure}");
    }

    #[test]
    fn an_instance_that_answers_nothing_has_not_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Whoever asks is hung up on.
                for _ in 0..3 {
                    drop(listener.accept());
                }
                ended.store(true, Ordering::SeqCst);
                drop(listener);
            });
            wait_for_end(&path).unwrap();
            let had_ended = ended.load(Ordering::SeqCst);
            (0..3).for_each(|_| drop(UnixStream::connect(&path)));
            assert!(had_ended, "its end was told before it came");
        });
    }
}
