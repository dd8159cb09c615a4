//! The rules spelled out, each clause of them removable, with every choice of free frames.

use crate::rules::{Config, Rule};
use crate::sides::{BackupSide, Homing, MAX_PAGES, NONE, PrimarySide, Targets, placed};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Unacked {
    epoch: u8,
    targets: Targets,
    commit_sent: bool,
}

/// The primary by the letter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpelledPrimary {
    acked: u8,
    map: Targets,
    unacked: Vec<Unacked>,
    outstanding: Vec<Homing>,
    homed_through: u8,
    next_sequence: u8,
}

impl SpelledPrimary {
    fn is_used(&self, config: &Config, frame: u8) -> bool {
        let whole = config.on(Rule::FirstEpochIsWhole) && self.acked == 0 && !self.unacked.is_empty();
        let map = self.acked > 0 && config.on(Rule::MapIsUsed) && self.map.contains(&frame);
        let unacked = |unacked: &Unacked| unacked.targets.contains(&frame);
        let source = |homing: &Homing| config.on(Rule::HomingSourceIsUsed) && homing.source == frame;
        let target = |homing: &Homing| config.on(Rule::HomingTargetIsUsed) && homing.page == frame;
        map || (whole && frame < config.pages)
            || (config.on(Rule::UnackedIsUsed) && self.unacked.iter().any(unacked))
            || self.outstanding.iter().any(|homing| source(homing) || target(homing))
    }

    fn extend(&self, config: &Config, pages: u8, page: u8, targets: Targets, all: &mut Vec<Targets>) {
        if page == config.pages {
            all.push(targets);
            return;
        }
        if pages >> page & 1 == 0 {
            return self.extend(config, pages, page + 1, targets, all);
        }
        let spares = config.pages..config.pages + config.spares;
        for frame in std::iter::once(page).chain(spares) {
            if !self.is_used(config, frame) && !targets.contains(&frame) {
                let mut targets = targets;
                targets[usize::from(page)] = frame;
                self.extend(config, pages, page + 1, targets, all);
            }
        }
    }

    fn may_home(&self, config: &Config, page: u8) -> Option<u8> {
        let newest = self.unacked.iter().rev().find(|unacked| unacked.targets[usize::from(page)] != NONE);
        let newest = newest.filter(|_| config.on(Rule::HomingOfTheNewest));
        let sent = newest.is_none_or(|unacked| unacked.commit_sent);
        let source = newest.map_or(self.map[usize::from(page)], |unacked| unacked.targets[usize::from(page)]);
        let targeted = self.unacked.iter().any(|unacked| unacked.targets[usize::from(page)] == page);
        let asked = self.outstanding.iter().any(|homing| (homing.page, homing.source) == (page, source));
        let allowed = (sent || !config.on(Rule::HomeFollowsCommit))
            && (!targeted || !config.on(Rule::HomeOfNoUnackedTarget));
        (source >= config.pages && source != NONE && !asked && allowed).then_some(source)
    }
}

impl PrimarySide for SpelledPrimary {
    fn new(config: &Config) -> Self {
        let map =
            std::array::from_fn(|page| if page < usize::from(config.pages) { page as u8 } else { NONE });
        Self {
            acked: 0,
            map,
            unacked: Vec::new(),
            outstanding: Vec::new(),
            homed_through: 0,
            next_sequence: 1,
        }
    }

    fn placements(&self, config: &Config, pages: u8) -> Vec<Targets> {
        let mut all = Vec::new();
        self.extend(config, pages, 0, [NONE; MAX_PAGES], &mut all);
        all
    }

    fn place(&mut self, _: &Config, epoch: u8, targets: &Targets) {
        self.unacked.push(Unacked { epoch, targets: *targets, commit_sent: false });
    }

    fn commit_sent(&mut self, epoch: u8) {
        for unacked in self.unacked.iter_mut().filter(|unacked| unacked.epoch == epoch) {
            unacked.commit_sent = true;
        }
    }

    fn homings(&self, config: &Config) -> Vec<Vec<Homing>> {
        let sequence = self.next_sequence;
        let homing = |page| self.may_home(config, page).map(|source| vec![Homing { sequence, page, source }]);
        (0..config.pages).filter_map(homing).collect()
    }

    fn ask(&mut self, _: &Config, homings: &[Homing]) {
        self.outstanding.extend_from_slice(homings);
        self.next_sequence += homings.len() as u8;
    }

    fn acked(&mut self, config: &Config, committed: u8, homed_through: u8) {
        for unacked in self.unacked.iter().filter(|unacked| unacked.epoch <= committed) {
            for (page, frame) in placed(&unacked.targets) {
                self.map[usize::from(page)] = frame;
            }
        }
        self.unacked.retain(|unacked| unacked.epoch > committed);
        self.acked = self.acked.max(committed);
        for homing in self.outstanding.iter().filter(|homing| homing.sequence <= homed_through) {
            let location = &mut self.map[usize::from(homing.page)];
            if *location == homing.source && config.on(Rule::HomingsAreApplied) {
                *location = homing.page;
            }
        }
        self.outstanding.retain(|homing| homing.sequence > homed_through);
        self.homed_through = self.homed_through.max(homed_through);
    }

    fn reconnected(&mut self, config: &Config, committed: u8, homed_through: u8) -> u8 {
        if config.on(Rule::WelcomeIsAck) {
            self.acked(config, committed, homed_through);
        }
        let pages = self
            .unacked
            .drain(..)
            .flat_map(|unacked| placed(&unacked.targets).map(|(page, _)| 1 << page).collect::<Vec<u8>>());
        let dropped = pages.fold(0, |all, page| all | page);
        // Numbers go on where the backup stands, whatever was concluded about frames.
        self.acked = self.acked.max(committed);
        if config.on(Rule::LostHomingsDrop) {
            self.outstanding.clear();
        }
        self.homed_through = homed_through;
        self.next_sequence = homed_through + 1;
        dropped
    }

    fn knows(&self) -> (u8, u8) {
        (self.acked, self.homed_through)
    }

    fn unacked(&self) -> u8 {
        self.unacked.len() as u8
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Progress {
    Waiting,
    Running,
    Finished,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Taken {
    homing: Homing,
    progress: Progress,
    cancelled: bool,
}

/// The backup by the letter; it trusts the primary (rule 3 has a model of its own).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpelledBackup {
    map: Targets,
    homings: Vec<Taken>,
    homed_through: u8,
}

impl SpelledBackup {
    fn is_superseded(&self, homing: &Homing) -> bool {
        self.map[usize::from(homing.page)] != homing.source
    }

    fn passed(&self, config: &Config, taken: &Taken) -> bool {
        match taken.progress {
            Progress::Finished => true,
            Progress::Running => taken.cancelled && !config.on(Rule::HWaitsForCopies),
            Progress::Waiting => {
                config.on(Rule::SupersededIsDropped) && (taken.cancelled || self.is_superseded(&taken.homing))
            }
        }
    }

    /// Moves h and forgets what it has passed and what runs no more.
    fn pass(&mut self, config: &Config) {
        self.homed_through = self.homed_through(config);
        let through = self.homed_through;
        self.homings.retain(|taken| taken.homing.sequence > through || taken.progress == Progress::Running);
    }
}

impl BackupSide for SpelledBackup {
    fn new(config: &Config) -> Self {
        Self { map: SpelledPrimary::new(config).map, homings: Vec::new(), homed_through: 0 }
    }

    fn commit(&mut self, config: &Config, targets: &Targets, _: bool) -> bool {
        for (page, frame) in placed(targets) {
            self.map[usize::from(page)] = frame;
            for taken in self.homings.iter_mut().filter(|taken| taken.homing.page == page) {
                taken.cancelled |= taken.progress != Progress::Finished
                    && (taken.progress == Progress::Waiting || config.on(Rule::CommitCancelsCopies));
            }
        }
        self.pass(config);
        true
    }

    fn take(&mut self, config: &Config, homings: &[Homing]) -> bool {
        for homing in homings {
            let last = self.homings.last().map_or(0, |taken| taken.homing.sequence).max(self.homed_through);
            if homing.sequence != last + 1 && config.on(Rule::HomingsInSequence) {
                return false;
            }
            let cancelled = false;
            self.homings.push(Taken { homing: *homing, progress: Progress::Waiting, cancelled });
        }
        self.pass(config);
        true
    }

    fn startable(&self, config: &Config) -> Vec<Homing> {
        let mut startable = Vec::new();
        for taken in self.homings.iter().filter(|taken| taken.progress == Progress::Waiting) {
            let homing = &taken.homing;
            if config.on(Rule::SupersededIsDropped) && (taken.cancelled || self.is_superseded(homing)) {
                continue;
            }
            let busy =
                |other: &Taken| other.progress == Progress::Running && other.homing.page == homing.page;
            if !(config.on(Rule::OneCopyToATarget) && self.homings.iter().any(busy)) {
                startable.push(*homing);
            }
            if config.on(Rule::CopiesInSequence) {
                break;
            }
        }
        startable
    }

    fn start(&mut self, homing: &Homing) {
        for taken in self.homings.iter_mut().filter(|taken| taken.homing == *homing) {
            taken.progress = Progress::Running;
        }
    }

    fn running(&self) -> Vec<Homing> {
        let running = |taken: &&Taken| taken.progress == Progress::Running;
        self.homings.iter().filter(running).map(|taken| taken.homing).collect()
    }

    fn finish(&mut self, config: &Config, homing: &Homing) {
        let Some(at) = self.homings.iter().position(|taken| taken.homing == *homing) else { return };
        self.homings[at].progress = Progress::Finished;
        if !self.homings[at].cancelled {
            self.map[usize::from(homing.page)] = homing.page;
        }
        self.pass(config);
    }

    fn homed_through(&self, config: &Config) -> u8 {
        let pending = self.homings.iter().filter(|taken| taken.homing.sequence > self.homed_through);
        let passed = pending.take_while(|taken| self.passed(config, taken)).last();
        passed.map_or(self.homed_through, |taken| taken.homing.sequence)
    }

    fn drop_pending(&mut self, _: &Config) {
        self.homings.retain(|taken| taken.progress == Progress::Running);
    }

    fn frame_of(&self, page: u8) -> u8 {
        self.map[usize::from(page)]
    }

    fn force_home(&mut self, page: u8) {
        self.map[usize::from(page)] = page;
    }
}
