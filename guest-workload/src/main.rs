//! The workload inside demonstration guests: fills memory with pages that check themselves,
//! rewrites them at a given rate, re-checks all of them without end, and prints a counter. With
//! `serve=PORT` it also answers clients, see [`server`]; with `work=NAME` it measures how fast other
//! work is, see [`work`]; with `probe=true` it measures the guest's pauses, see [`probe`].
//!
//! Built as a static binary, so that it runs alone in an initramfs. Every line it prints has the
//! form `romulus counter=N corrupt=N passes=N clock_ms=N requests=N`; after the first corrupt page
//! also `romulus corrupt page=...` once for each.

mod pages;
mod probe;
mod server;
mod work;

use std::io::Write;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use pages::{Fault, PAGE_BYTES, Pages};

/// Work is done in steps of this length.
const STEP: Duration = Duration::from_millis(10);
/// Pages are re-checked at this multiple of the rate at which they are rewritten, and at least
/// [`MIN_CHECKS_PER_STEP`].
const CHECKS_PER_WRITE: u64 = 2;
const MIN_CHECKS_PER_STEP: u64 = 64;
/// Corrupt pages described on the console at most.
const MAX_FAULTS_PRINTED: u64 = 16;

/// In the guest's memory like all else, so that a takeover must bring it along.
static REQUESTS: LazyLock<server::Counter> = LazyLock::new(server::Counter::default);

struct Settings {
    check_mib: u64,
    dirty_mib_per_second: f64,
    serve: Option<u16>,
    work: Option<work::Work>,
    probe: bool,
}

impl Settings {
    /// From `check_mib=N dirty_mib_per_second=X serve=PORT work=NAME probe=BOOL`; unknown words end the
    /// program.
    fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut settings =
            Self { check_mib: 64, dirty_mib_per_second: 10.0, serve: None, work: None, probe: false };
        for word in words {
            let (name, value) = word.split_once('=').ok_or(format!("'{word}' is not NAME=VALUE"))?;
            let bad = |e: &dyn std::fmt::Display| format!("{name}={value}: {e}");
            match name {
                "check_mib" => settings.check_mib = value.parse().map_err(|e| bad(&e))?,
                "dirty_mib_per_second" => {
                    settings.dirty_mib_per_second = value.parse().map_err(|e| bad(&e))?;
                }
                "work" => settings.work = Some(value.parse().map_err(|e| bad(&e))?),
                "serve" => settings.serve = Some(value.parse().map_err(|e| bad(&e))?),
                "probe" => settings.probe = value.parse().map_err(|e| bad(&e))?,
                _ => return Err(format!("unknown setting '{name}'")),
            }
        }
        Ok(settings)
    }
}

fn main() {
    let settings = Settings::parse(std::env::args().skip(1)).unwrap_or_else(|e| {
        eprintln!("romulus-guest-workload: {e}");
        std::process::exit(2);
    });
    if let Some(port) = settings.serve
        && let Err(e) = server::serve(port, &REQUESTS)
    {
        eprintln!("romulus-guest-workload: serving port {port}: {e}");
        std::process::exit(1);
    }
    if settings.probe
        && let Err(e) = probe::start()
    {
        eprintln!("romulus-guest-workload: starting the probe: {e}");
        std::process::exit(1);
    }
    if let Some(kind) = settings.work {
        let started = Instant::now();
        let why = work::run(kind, settings.check_mib, |done| tell(started, done, 0, 0));
        println!("romulus workload ended: {why}");
        std::process::exit(1);
    }
    run(&settings);
}

/// One line of the console.
fn tell(started: Instant, counter: u64, corrupt: u64, passes: u64) {
    let _ = writeln!(
        std::io::stdout(),
        "romulus counter={counter} corrupt={corrupt} passes={passes} clock_ms={} requests={}",
        started.elapsed().as_millis(),
        REQUESTS.now()
    );
}

fn run(settings: &Settings) -> ! {
    let page_count = (settings.check_mib << 20) / PAGE_BYTES as u64;
    let mut pages = Pages::filled(page_count as usize);
    let mut faults = 0;
    let mut counter: u64 = 0;
    let mut owed_pages = 0.0;
    let started = Instant::now();
    let mut next_step = started;
    let mut out = std::io::stdout();
    let _ = writeln!(out, "romulus ready pages={page_count}");
    loop {
        owed_pages +=
            settings.dirty_mib_per_second * STEP.as_secs_f64() * (1 << 20) as f64 / PAGE_BYTES as f64;
        let writes = owed_pages as u64;
        owed_pages -= writes as f64;
        for _ in 0..writes {
            pages.rewrite_one();
        }
        for _ in 0..(writes * CHECKS_PER_WRITE).max(MIN_CHECKS_PER_STEP) {
            if let Some(fault) = pages.check_next() {
                faults += 1;
                if faults <= MAX_FAULTS_PRINTED {
                    report(&mut out, &fault);
                }
            }
        }
        counter += 1;
        tell(started, counter, faults, pages.passes());
        next_step += STEP;
        let now = Instant::now();
        if next_step > now {
            std::thread::sleep(next_step - now);
        } else {
            next_step = now;
        }
    }
}

fn report(out: &mut impl Write, fault: &Fault) {
    let _ = writeln!(
        out,
        "romulus corrupt page={} expected_version={} found_index={} found_version={} word={}",
        fault.page, fault.expected_version, fault.found_index, fault.found_version, fault.word
    );
}
