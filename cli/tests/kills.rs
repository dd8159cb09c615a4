//! Kill -9 of `romulus protect`, `romulus backup` and the standby's QEMU at random moments: exactly
//! one copy of the guest goes on, the primary's, and protection resumes.
//!
//! `ROMULUS_KILLS` says how many moments (default 6).

mod support;

use std::time::{Duration, Instant};

use romulus::demo::instance::{kill, pid, state};
use romulus::demo::qemu::Console;
use romulus::demo::stage::Stage;

#[derive(Clone, Copy, Debug)]
enum Victim {
    Protect,
    Backup,
    Standby,
}

const VICTIMS: [Victim; 3] = [Victim::Protect, Victim::Backup, Victim::Standby];

/// The guest at the primary makes progress, and nothing has run at the backup.
fn exactly_the_primary_runs(stage: &mut Stage, console: &mut Console, context: &str) {
    console.poll();
    let before = console.last.map_or(0, |report| report.counter);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        console.poll();
        let now = console.last.expect("the workload has reported");
        assert_eq!(now.corrupt, 0, "{context}: {:?}", console.complaints);
        if now.counter > before + 20 {
            break;
        }
        let status = stage.backup.as_ref().and_then(|backup| backup.status());
        assert!(
            Instant::now() < deadline,
            "{context}: the guest stands still at step {}; backup: {status:?}; logs in {}",
            now.counter,
            stage.dir().display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut second = stage.backup_console();
    second.poll();
    assert_eq!(second.last, None, "{context}: a second copy of the guest has run at the backup");
}

#[test]
fn i8_i9_kills_at_random_moments_leave_exactly_one_guest() {
    let moments: u64 = std::env::var("ROMULUS_KILLS").map_or(6, |text| text.parse().expect("a number"));
    let mut stage = support::stage();
    let mut console = stage.start_guest().expect("a guest");
    let address = stage.start_backup("127.0.0.1:0").expect("a backup");
    stage.start_protect(&address, 25.0).expect("protection");
    for moment in 0..moments {
        let victim = VICTIMS[(moment % 3) as usize];
        let context = format!("moment {moment}, {victim:?} killed");
        stage.wait_protected().unwrap_or_else(|e| panic!("before {context}: {e}"));
        std::thread::sleep(Duration::from_millis(support::random(400)));
        match victim {
            Victim::Protect => {
                kill(&mut stage.protect.take().expect("protect runs").child);
                exactly_the_primary_runs(&mut stage, &mut console, &context);
                stage.start_protect(&address, 25.0).expect("protection again");
            }
            Victim::Backup => {
                let mut backup = stage.backup.take().expect("the backup runs");
                let standby = backup.status().and_then(|status| pid(&status, "/standby_pid"));
                kill(&mut backup.child);
                exactly_the_primary_runs(&mut stage, &mut console, &context);
                if let Some(standby) = standby {
                    let gone = Instant::now() + Duration::from_secs(5);
                    while rustix::process::test_kill_process(standby).is_ok() {
                        assert!(Instant::now() < gone, "{context}: the standby outlives its backup");
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
                stage.start_backup(&address).unwrap_or_else(|e| panic!("{context}: {e}"));
            }
            Victim::Standby => {
                let backup = stage.backup.as_mut().expect("the backup runs");
                let standby = backup.status().and_then(|status| pid(&status, "/standby_pid"));
                let standby = standby.unwrap_or_else(|| panic!("{context}: there is no standby"));
                rustix::process::kill_process(standby, rustix::process::Signal::KILL)
                    .expect("the standby lives");
                backup
                    .wait_for("new standby", Duration::from_secs(30), |status| {
                        let new = pid(status, "/standby_pid")?;
                        (new != standby && state(status) == "protected").then_some(())
                    })
                    .unwrap_or_else(|e| panic!("{context}: {e}"));
                exactly_the_primary_runs(&mut stage, &mut console, &context);
            }
        }
    }
    stage.wait_protected().expect("protected at the end");
}
