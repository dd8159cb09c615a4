//! Kills a protector at random moments and lets the guard's handle put the domain right: run in dom0.
//! `xen_kills DOMAIN [ROUNDS] [SEED]`. In each round a child process attaches to the domain and
//! checkpoints it without a rest, SIGKILL ends it at a random moment, and what `romulus guard` then
//! does is done. After that the domain must not be suspended and nothing may log its writes; and the
//! next round's child must be able to suspend it again. Prints a line a round.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use romulus_checkpoint::guest::Guest;
use romulus_host::gate::GateChoices;
use romulus_transport::Memory;
use romulus_xen::library::{Control, Library, Shutdown};
use romulus_xen::{XenGuest, XenHandle, XenOptions};

type Error = Box<dyn std::error::Error>;

/// Longest time from the child's first checkpoint to its end.
const LONGEST_MS: u64 = 1500;
/// How long the child leaves the domain suspended, as if much were to be copied: so that many a kill
/// falls into that time.
const HOLD: Duration = Duration::from_millis(400);

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next().ok_or("usage: xen_kills DOMAIN [ROUNDS] [SEED]")?;
    if first == "--victim" {
        return victim(&arguments.next().ok_or("--victim DOMAIN")?);
    }
    let rounds: u32 = arguments.next().map_or(Ok(30), |text| text.parse())?;
    let mut seed: u64 = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let control = Control::open(&Library::open()?)?;
    let mut suspended = 0;
    for round in 1..=rounds {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let wait = Duration::from_micros((seed >> 33) % (LONGEST_MS * 1000));
        let (access, domid) = kill_one(&first, wait)?;
        let info = control.domain(domid)?.ok_or("the domain is gone")?;
        let was_suspended = info.shutdown == Some(Shutdown::Suspend);
        suspended += u32::from(was_suspended);

        if control.log_dirty_on(domid).is_ok() {
            return Err(
                "no log was kept when the child was killed: that none is left would say nothing".into()
            );
        }

        let began = Instant::now();
        let mut handle = XenHandle::open(&access)?;
        if !handle.alive() {
            return Err("the domain does not live".into());
        }
        handle.resume_if_paused()?;
        let resumed = began.elapsed();
        handle.tidy()?;
        let info = control.domain(domid)?.ok_or("the domain is gone")?;
        if info.shutdown.is_some() || info.paused {
            return Err(format!("round {round}: the domain does not run: {info:?}").into());
        }
        if handle.device_model_runs()? == Some(false) {
            return Err(format!("round {round}: the domain's device model is stopped").into());
        }
        // Can only be begun where no log is kept.
        control.log_dirty_on(domid).map_err(|error| format!("round {round}: a log was left on: {error}"))?;
        control.log_dirty_off(domid)?;
        println!(
            "round {round}: killed after {wait:.0?}, suspended {was_suspended}, resumed {resumed:.1?}, tidy {:.1?}",
            began.elapsed()
        );
    }
    println!(
        "{rounds} kills, {suspended} of them while the domain was suspended: it runs, and nothing is logged"
    );
    Ok(())
}

/// Starts a child, and kills it so long after its first checkpoint.
fn kill_one(domain: &str, wait: Duration) -> Result<(String, u32), Error> {
    let mut child =
        Command::new(std::env::current_exe()?).args(["--victim", domain]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no pipe")?).lines();
    let mut line = || {
        lines.next().ok_or("the child has ended: it could not checkpoint the domain")?.map_err(Error::from)
    };
    let (access, domid) = (line()?, line()?.parse()?);
    line()?;
    std::thread::sleep(wait);
    child.kill()?;
    child.wait()?;
    Ok((access, domid))
}

/// Checkpoints the domain until it is killed.
fn victim(domain: &str) -> Result<(), Error> {
    let mut options = XenOptions::new(domain);
    options.allowances.unreplicated_disk = true;
    options.gates = Some(GateChoices::parse(["all=none"])?);
    let mut guest = XenGuest::attach(options)?;
    guest.start_tracking()?;
    let state = Memory::anonymous(4 << 20);
    let mut dirty = Vec::new();
    let mut out = std::io::stdout();
    writeln!(out, "{}\n{}", guest.access(), guest.domid())?;
    loop {
        guest.pause()?;
        guest.save_state(&state)?;
        dirty.clear();
        guest.collect(&mut dirty)?;
        std::thread::sleep(HOLD);
        guest.resume()?;
        // Nobody reads any more once the kill is near.
        let _ = writeln!(out, "checkpoint");
    }
}
