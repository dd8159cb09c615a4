//! `romulus status`, `failover` and `stop`: talk to a running instance.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::control::{self, Request};
use crate::exit::Failure;
use crate::protect::state_line;

/// Which instance.
#[derive(Debug, clap::Args)]
pub struct InstanceOptions {
    /// Control socket of the instance [default: the one of a `romulus protect` on this machine,
    /// else that of a `romulus backup`]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

impl InstanceOptions {
    fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(named) = &self.control {
            return Ok(named.clone());
        }
        let [protect, backup] = ["protect", "backup"].map(control::default_path);
        let nobody = format!(
            "no romulus of this user runs here: there is neither {} nor {} (--control names another socket)",
            protect.display(),
            backup.display()
        );
        [protect, backup].into_iter().find(|path| path.exists()).ok_or_else(|| Failure::failed(nobody))
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
    let path = options.instance.path()?;
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
    control::ask(&options.instance.path()?, &Request::Failover { force: options.force })?;
    println!("failover has begun; `romulus status` shows how it goes");
    Ok(ExitCode::SUCCESS)
}

/// Asks an instance to end.
pub fn stop(options: &InstanceOptions) -> Result<ExitCode, Failure> {
    let path = options.path()?;
    control::ask(&path, &Request::Stop)?;
    println!("asked; waiting for its end (with an arbiter that does not answer, it waits for that)");
    // The socket goes with the instance, after it has cleaned up.
    while path.exists() && control::ask(&path, &Request::Status).is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("stopped");
    Ok(ExitCode::SUCCESS)
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
