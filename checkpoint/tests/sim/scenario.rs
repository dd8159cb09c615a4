//! What a seed means: sizes, settings, and which faults happen how often.

use std::time::Duration;

use romulus_checkpoint::layout::{ArenaShape, GuestLayout, Region};
use romulus_transport::sim::SimConfig;

use super::rng::Rng;

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    Primary,
    Backup,
}

/// What a run is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// End this host's process at its n-th step.
    pub crash_at: Option<(Host, u64)>,
    /// Break one rule on purpose.
    pub mutant: Mutant,
    /// Keep a trace.
    pub trace: bool,
}

/// A rule that the simulated drivers break on purpose, to see that the checks notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    None,
    /// The gate lets output go at the pause.
    ReleaseEarly,
    /// The gate opens when the connection is lost, without a grant.
    OpenWithoutGrant,
    /// The backup believes that all markers are in as soon as the Commit is.
    CommitWithoutFence,
    /// Pages carried over from epochs that did not commit are not sent.
    DropCarriedPages,
    /// A dirty page is now and then not reported.
    LoseDirtyPage,
    /// Dirty pages are collected before the state is saved.
    CollectBeforeState,
    /// Staging is used again before its bytes have left.
    ReuseStaging,
    /// The fence is reported although the connection and homing go on.
    TakeoverWithoutFence,
    /// A homing copy is reported finished before it is made.
    HomingReportedEarly,
    /// An unknown outcome of a swap counts as won.
    UnknownIsWon,
    /// The state of the epoch before is sent with an epoch.
    StaleState,
    /// Displaced pages are not copied home at takeover.
    SkipDisplaced,
    /// The guard resumes the guest without asking the arbiter.
    GuardWithoutGrant,
    /// A page is written one frame further than planned.
    WrongFrame,
}

impl Mutant {
    pub const ALL: [(&'static str, Mutant); 14] = [
        ("release-early", Mutant::ReleaseEarly),
        ("open-without-grant", Mutant::OpenWithoutGrant),
        ("commit-without-fence", Mutant::CommitWithoutFence),
        ("drop-carried-pages", Mutant::DropCarriedPages),
        ("lose-dirty-page", Mutant::LoseDirtyPage),
        ("collect-before-state", Mutant::CollectBeforeState),
        ("reuse-staging", Mutant::ReuseStaging),
        ("takeover-without-fence", Mutant::TakeoverWithoutFence),
        ("homing-reported-early", Mutant::HomingReportedEarly),
        ("unknown-is-won", Mutant::UnknownIsWon),
        ("stale-state", Mutant::StaleState),
        ("skip-displaced", Mutant::SkipDisplaced),
        ("guard-without-grant", Mutant::GuardWithoutGrant),
        ("wrong-frame", Mutant::WrongFrame),
    ];
}

/// What people do, once, somewhere in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Nothing,
    Failover,
    Takeover,
    Stop,
    StopBackup,
    GuestPowersOff,
    GuestDies,
    PrimaryHostDies,
    BackupHostDies,
}

/// How often faults happen, per million steps of the run (unless the name says otherwise).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    pub cut: u64,
    pub silence: u64,
    pub freeze_network: u64,
    pub refuse_connections: u64,
    pub crash_primary: u64,
    pub crash_backup: u64,
    pub hang_primary: u64,
    pub hang_backup: u64,
    pub arbiter_outage: u64,
    /// Percent of swaps.
    pub arbiter_unknown_percent: u64,
    /// Per mille of the guest's and standby's operations.
    pub guest_failure: u64,
    /// Percent of Hellos that arrive twice, the second one late.
    pub late_hello_percent: u64,
    /// Garbage from strangers and replays.
    pub garbage: u64,
}

/// Everything drawn from a seed before its run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub layout: GuestLayout,
    pub shape: ArenaShape,
    pub depth: u64,
    pub interval: Duration,
    pub heartbeat: Duration,
    pub primary_suspects: Duration,
    pub backup_suspects: Duration,
    pub sync_target_pages: u64,
    pub sync_max_rounds: u64,
    pub throttle_pause: Duration,
    pub low_water_spares: u64,
    /// Both hosts ask the same arbiter; otherwise there is none.
    pub shared_arbiter: bool,
    pub solo_automatic: bool,
    pub takeover_automatic: bool,
    /// Pages that the guest writes most of the time.
    pub working_set: u64,
    /// Longest time between two things the guest does, in microseconds.
    pub guest_every_us: u64,
    /// Percent of the guest's writes that touch many pages at once.
    pub burst_percent: u64,
    pub arbiter_delay_us: u64,
    pub net: SimConfig,
    pub faults: Faults,
    pub deed: Deed,
    /// The step at which it is done.
    pub deed_at: u64,
    /// Steps with faults; then everything heals.
    pub fault_steps: u64,
    /// Whether a process that crashed is started again.
    pub restart_percent: u64,
}

impl Scenario {
    pub fn draw(plan: &Plan) -> Self {
        let mut rng = Rng::new(plan.seed, 1);
        let rng = &mut rng;
        let layout = layout(rng);
        let pages = layout.pages();
        let depth = rng.between(1, 3);
        let spares = match rng.below(4) {
            0 => rng.between(1, 3),
            1 => rng.between(1, pages),
            _ => rng.between(pages / 2 + 1, pages * (depth + 1)),
        };
        let shape = ArenaShape {
            pages,
            spares,
            slots: depth + 1 + rng.below(2) * rng.below(3),
            slot_bytes: 4096,
            copy_only_homes: false,
        };
        let sweep = plan.crash_at.is_some();
        // A draw of its own, so that the other draws of a seed stay what they were.
        let copy_only_homes = Rng::new(plan.seed, 2).percent(25);
        let shape = ArenaShape { copy_only_homes, ..shape };
        let shared_arbiter = sweep || !rng.percent(12);
        let mut faults = if sweep { Faults::default() } else { faults(rng) };
        let (mut solo_automatic, mut takeover_automatic) = (!rng.percent(8), !rng.percent(8));
        if !shared_arbiter {
            // Only one move may be automatic, and a guard has nobody to ask.
            solo_automatic = rng.percent(50);
            takeover_automatic = !solo_automatic;
            faults.crash_primary = 0;
            (faults.arbiter_outage, faults.arbiter_unknown_percent) = (0, 0);
        }
        let primary_suspects = Duration::from_micros(rng.between(4_000, 12_000));
        Self {
            shape,
            depth,
            interval: Duration::from_micros(rng.between(200, 1500)),
            heartbeat: Duration::from_micros(rng.between(500, 1500)),
            primary_suspects,
            backup_suspects: primary_suspects + Duration::from_micros(rng.between(2_000, 10_000)),
            sync_target_pages: rng.below(pages + 1),
            sync_max_rounds: rng.between(1, 4),
            low_water_spares: rng.below(spares + 1),
            shared_arbiter,
            solo_automatic,
            takeover_automatic,
            working_set: rng.between(1, pages.min(spares + 2)),
            guest_every_us: rng.pick(&[20, 60, 150, 400]),
            burst_percent: rng.pick(&[0, 0, 1, 5]),
            arbiter_delay_us: rng.pick(&[10, 500, 3000]),
            net: SimConfig {
                streams: rng.between(1, 3) as usize,
                partial_percent: rng.pick(&[0, 10, 30]),
                early_departure_percent: rng.pick(&[0, 30, 70]),
                hold_percent: rng.pick(&[0, 2, 10]) as u32,
                hold_steps_max: rng.pick(&[20, 100]),
                notice_steps_max: rng.pick(&[30, 300]),
                ..SimConfig::default()
            },
            faults,
            deed: deed(rng, sweep),
            deed_at: rng.between(300, 3000),
            fault_steps: if sweep { 1500 } else { rng.between(1000, 4000) },
            restart_percent: rng.pick(&[50, 100, 100]),
            // Drawn last, so that the other draws of a seed stay what they were.
            throttle_pause: Duration::from_micros(rng.pick(&[0, 300, 5_000])),
            layout,
        }
    }
}

fn layout(rng: &mut Rng) -> GuestLayout {
    let regions = rng.between(1, 3);
    let region = |index| Region { name: format!("ram{index}"), pages: rng.between(1, 6) };
    GuestLayout { regions: (0..regions).map(region).collect() }
}

fn deed(rng: &mut Rng, sweep: bool) -> Deed {
    use Deed::*;
    if sweep {
        return rng.pick(&[Nothing, Failover, Stop, GuestPowersOff]);
    }
    rng.pick(&[
        Nothing,
        Nothing,
        Nothing,
        Failover,
        Takeover,
        Stop,
        StopBackup,
        GuestPowersOff,
        GuestDies,
        PrimaryHostDies,
        PrimaryHostDies,
        BackupHostDies,
    ])
}

/// Most seeds have a few kinds of faults, some none, some all.
fn faults(rng: &mut Rng) -> Faults {
    let density = rng.pick(&[0, 20, 40, 100]);
    let mut draw = |choices: &[u64]| if rng.percent(density) { rng.pick(choices) } else { 0 };
    Faults {
        cut: draw(&[500, 2000]),
        silence: draw(&[300, 1000]),
        freeze_network: draw(&[300, 1000]),
        refuse_connections: draw(&[300]),
        crash_primary: draw(&[200, 600]),
        crash_backup: draw(&[200, 600]),
        hang_primary: draw(&[200, 600]),
        hang_backup: draw(&[200, 600]),
        arbiter_outage: draw(&[300, 1000]),
        arbiter_unknown_percent: draw(&[10, 50]),
        guest_failure: draw(&[5, 30]),
        late_hello_percent: draw(&[30]),
        garbage: draw(&[500]),
    }
}
