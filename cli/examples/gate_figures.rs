//! What the output gate costs: latency and throughput of a guest without protection, protected
//! with nothing held, and protected with output held until it is committed.
//!
//! `cargo run --release -p romulus --example gate_figures [-- SECONDS]`, as root, on a quiet
//! machine. Each figure is measured for so many seconds (default 10). The guest runs 40
//! checkpoints a second; `romulus` must have been built with the same profile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use romulus::demo::client::{Client, LatencyMs, Phase};
use romulus::demo::network;
use romulus::demo::qemu::{Machine, accelerator};
use romulus::demo::stage::Stage;
use serde_json::Value;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const INTERVAL_MS: f64 = 25.0;
const PACE: Duration = Duration::from_millis(5);
const LONG: Duration = Duration::from_secs(30);

/// One column of the table.
struct Column {
    name: &'static str,
    latency: LatencyMs,
    from_guest_mbit: f64,
    to_guest_mbit: f64,
    checkpoints_per_second: f64,
    commit_ms_p50: f64,
}

fn main() -> Outcome<()> {
    let seconds = std::env::args().nth(1).map_or(Ok(10), |text| text.parse())?;
    let columns = [
        measure("unprotected", None, seconds)?,
        measure("nothing held", Some(true), seconds)?,
        measure("held until committed", Some(false), seconds)?,
    ];
    let row = |name: &str, of: &dyn Fn(&Column) -> String| {
        let cells: Vec<String> = columns.iter().map(of).collect();
        println!("| {name} | {} |", cells.join(" | "));
    };
    row("", &|column| column.name.to_owned());
    println!("|---|---|---|---|");
    row("answer to a small request, p50 / p99, ms", &|column| {
        format!("{:.1} / {:.1}", column.latency.p50, column.latency.p99)
    });
    row("TCP from the guest, Mbit/s", &|column| format!("{:.0}", column.from_guest_mbit));
    row("TCP to the guest, Mbit/s", &|column| format!("{:.0}", column.to_guest_mbit));
    row("checkpoints per second, answering", &|column| format!("{:.1}", column.checkpoints_per_second));
    row("pause to commit, p50, ms", &|column| format!("{:.1}", column.commit_ms_p50));
    let [bare, open, held] = &columns;
    println!(
        "\nadded at the median: {:.1} ms, {:.1} ms of it by holding; expected is half an interval plus the commit: \
         {:.1} + {:.1} = {:.1} ms",
        held.latency.p50 - bare.latency.p50,
        held.latency.p50 - open.latency.p50,
        INTERVAL_MS / 2.0,
        held.commit_ms_p50,
        INTERVAL_MS / 2.0 + held.commit_ms_p50
    );
    Ok(())
}

/// `ungated`: whether a protected guest's output is left alone; `None` is no protection at all.
fn measure(name: &'static str, ungated: Option<bool>, seconds: u64) -> Outcome<Column> {
    eprintln!("measuring: {name}");
    let mut stage = Stage::new(machine()?, &program()?)?;
    stage.start_guest()?;
    if let Some(ungated) = ungated {
        stage.ungated = ungated;
        let address = stage.start_backup(stage.listen_address())?;
        stage.start_protect(&address, INTERVAL_MS)?;
        stage.wait_protected()?;
    }
    let network = stage.network.as_ref().ok_or("the stage has no network")?;
    let client = Client::start(network.world(), network::guest_server(), PACE, LONG)?;
    client.set_phase(Phase::Protected);
    std::thread::sleep(Duration::from_secs(seconds));
    let latency = client.latency(Phase::Protected);
    let status = stage.protect.as_ref().and_then(|protect| protect.status()).unwrap_or_default();
    let (_, complaints) = client.finish(LONG);
    if !complaints.is_empty() {
        return Err(complaints.join("; ").into());
    }
    let number = |path: &str| status.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
    let (checkpoints_per_second, commit_us) = (number("/checkpoints_per_second"), number("/ack_us/p50"));
    let from_guest_mbit = network.world().run(|| iperf(seconds, true).map_err(|e| e.to_string()))??;
    let to_guest_mbit = network.world().run(|| iperf(seconds, false).map_err(|e| e.to_string()))??;
    Ok(Column {
        name,
        latency,
        from_guest_mbit,
        to_guest_mbit,
        checkpoints_per_second,
        commit_ms_p50: commit_us / 1_000.0,
    })
}

/// Received Mbit/s. iperf3's server refuses while it still ends the test before.
fn iperf(seconds: u64, from_guest: bool) -> Outcome<f64> {
    let deadline = Instant::now() + LONG + Duration::from_secs(seconds);
    loop {
        match iperf_once(seconds, from_guest) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(500)),
            outcome => return outcome,
        }
    }
}

fn iperf_once(seconds: u64, from_guest: bool) -> Outcome<f64> {
    let mut command = Command::new("iperf3");
    command.args(["--client", &network::GUEST.to_string(), "--json", "--time", &seconds.to_string()]);
    if from_guest {
        command.arg("--reverse");
    }
    let report: Value = serde_json::from_slice(&command.output()?.stdout)?;
    let rate = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    rate.map(|rate| rate / 1e6).ok_or_else(|| format!("iperf3: {report}").into())
}

fn machine() -> Outcome<Machine> {
    Ok(Machine {
        kind: "q35".into(),
        accelerator: accelerator(),
        memory_mib: 512,
        check_mib: 64,
        dirty_mib_per_second: 10.0,
        halt_after_s: None,
        networked: true,
        servers: true,
        work: None,
        image_dir: image_dir()?,
    })
}

/// The guest's image, built if need be.
fn image_dir() -> Outcome<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/guest-image");
    let output = Command::new(script).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// `romulus`, beside this example's folder.
fn program() -> Outcome<PathBuf> {
    let here = std::env::current_exe()?;
    let program = here.ancestors().nth(2).ok_or("this program has no folder")?.join("romulus");
    if !program.exists() {
        return Err(format!("{} is missing: build it with the same profile", program.display()).into());
    }
    Ok(program)
}
