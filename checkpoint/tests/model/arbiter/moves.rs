//! What each party may do, and what follows.

use super::*;

impl Arbiter {
    pub(super) fn on(&self, clause: Clause) -> bool {
        self.without != Some(clause)
    }

    /// Asks for a swap, if there are any left.
    pub(super) fn ask(
        &self,
        state: &mut State,
        who: Who,
        expected: Record,
        owner: Owner,
        nonce: Option<u8>,
    ) -> bool {
        let given_up = state.primary.pending.filter(|swap| swap.new.owner == Owner::Protected);
        if let (Who::Primary, Some(swap)) = (who, given_up) {
            // More than one can be given up; the search bounds that to one.
            if state.primary.superseded.is_some_and(|named| named != swap.new.nonce) {
                return false;
            }
            state.primary.superseded = Some(swap.new.nonce);
        }
        state.swaps += 1;
        let new =
            Record { owner, generation: expected.generation + 1, nonce: nonce.unwrap_or(100 + state.swaps) };
        self.issue(state, who, Swap { expected, new, unknown: false })
    }

    pub(super) fn issue(&self, state: &mut State, who: Who, swap: Swap) -> bool {
        state.floating.push((who, swap.expected, swap.new));
        *pending(state, who) = Some(Swap { unknown: false, ..swap });
        state.swaps <= self.swaps
    }

    pub(super) fn primary_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let primary = &state.primary;
        if !primary.alive {
            if state.guest_alive && matches!(state.guard.phase, GuardPhase::Over | GuardPhase::Released) {
                actions.push(Action::RestartProtector);
            }
            return;
        }
        let decided = primary.pending.is_none();
        // A swap that is known to have not yet happened may be overtaken by another one.
        let may_ask = primary.pending.is_none_or(|swap| swap.unknown);
        match primary.link {
            Some(_) => {
                actions.extend([Action::Disconnect, Action::Post, Action::Ack]);
                if state.gate_open {
                    actions.push(Action::Hold);
                }
                let again = primary.pending.is_none_or(|swap| swap.new.owner == Owner::Protected);
                if primary.known.owner == Owner::Solo && may_ask && again && self.may_pair(state) {
                    actions.push(Action::AskProtected);
                }
            }
            None if state.pairings < self.pairings => {
                let kinds = [Fresh::NewImage, Fresh::Delta];
                // Backups are alike: the first connection goes to the first of them.
                let reachable = 0..=usize::from(state.pairings).min(1);
                actions
                    .extend(reachable.flat_map(|backup| kinds.map(|fresh| Action::Connect(backup, fresh))));
            }
            None => {}
        }
        if (primary.known.owner == Owner::Protected || primary.claiming || !decided) && may_ask {
            actions.push(Action::AskSolo);
        }
        let granted = primary.known.owner == Owner::Solo && decided && !primary.claiming;
        let asked_solo = primary.pending.is_some_and(|swap| swap.new.owner == Owner::Solo);
        let early = asked_solo && !self.on(Clause::SwapBeforeRelease);
        let unknown = primary.pending.is_some_and(|swap| swap.unknown) && asked_solo;
        if !state.gate_open && (granted || early || (unknown && !self.on(Clause::UnknownIsNotWon))) {
            actions.push(Action::OpenGate);
        }
        actions.push(Action::ReleaseAcked);
        if state.crashes < self.crashes {
            actions.push(Action::KillProtector);
        }
    }

    pub(super) fn may_pair(&self, state: &State) -> bool {
        let held = !state.gate_open || !self.on(Clause::GateBeforePairing);
        let acked = state.primary.acked.is_some_and(|(_, acked)| acked >= state.primary.held_at);
        let acked = acked || (state.gate_open && state.primary.acked.is_some());
        held && (acked || !self.on(Clause::AckBeforePairing))
    }

    /// Whether every record that there may be lets no other image than this take over.
    pub(super) fn covers(&self, primary: &Primary, image: u8) -> bool {
        let covers = |record: &Record| match record.owner {
            Owner::Protected => record.nonce == image,
            Owner::Solo => true,
            Owner::Owned => false,
        };
        let superseded = primary.superseded.is_none_or(|named| named == image);
        let pending = primary.pending.is_none_or(|swap| covers(&swap.new))
            && (superseded || !self.on(Clause::SupersededMayHappen));
        !self.on(Clause::AckOfNamedImage) || (covers(&primary.known) && pending && !primary.claiming)
    }

    /// What the protector does, and its end.
    pub(super) fn primary_step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Connect(index, fresh) => self.connect(state, index, fresh)?,
            Action::Disconnect => state.primary.link = None,
            Action::Hold => {
                state.gate_open = false;
                state.primary.held_at = state.guest_state;
            }
            Action::Post => {
                let index = state.primary.link.filter(|_| state.guest_alive)?;
                state.backups[index].posted = Some(state.guest_state).filter(|_| state.backups[index].linked);
            }
            Action::Ack => {
                let backup = &state.backups[state.primary.link?];
                let image = backup.image.filter(|_| backup.linked)?;
                state.primary.acked = Some((image.number, image.committed?));
            }
            Action::ReleaseAcked => {
                let (image, acked) = state.primary.acked?;
                let covered = self.covers(&state.primary, image);
                state.released = Some(acked).filter(|acked| covered && *acked > state.released)?;
            }
            Action::AskSolo => {
                let expected = state.primary.pending.map_or(state.primary.known, |swap| swap.expected);
                if !self.ask(state, Who::Primary, expected, Owner::Solo, None) {
                    return None;
                }
            }
            Action::AskProtected => {
                let (expected, index) = (state.primary.known, state.primary.link?);
                let image = state.backups[index].image?.number;
                if !self.ask(state, Who::Primary, expected, Owner::Protected, Some(image)) {
                    return None;
                }
            }
            Action::OpenGate => {
                state.gate_open = true;
                release(state);
            }
            Action::KillProtector => {
                state.crashes += 1;
                state.primary.alive = false;
                (state.primary.pending, state.primary.link) = (None, None);
                state.guard.phase = GuardPhase::Checking;
            }
            Action::RestartProtector => self.restart(state)?,
            _ => unreachable!("{action:?} is no step of the primary"),
        }
        Some(())
    }

    pub(super) fn guard_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let guard = &state.guard;
        match guard.phase {
            GuardPhase::Checking => actions.push(Action::GuardLooks),
            GuardPhase::Granted => {
                if state.guest_alive {
                    actions.push(Action::GuardOpensGate);
                }
                if !state.guest_alive {
                    actions.push(Action::GuardHandsBack);
                }
            }
            GuardPhase::Released if !self.on(Clause::HandBackUnreleased) && !state.guest_alive => {
                actions.push(Action::GuardHandsBack);
            }
            GuardPhase::Swapping if !self.on(Clause::GuardSwapsFirst) && state.guest_alive => {
                actions.push(Action::GuardOpensGate);
            }
            _ => {}
        }
        let busy = !matches!(guard.phase, GuardPhase::Watching | GuardPhase::Over | GuardPhase::Released);
        if busy && state.crashes < self.crashes {
            actions.push(Action::KillGuard);
        }
    }

    pub(super) fn backup_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, backup) in state.backups.iter().enumerate() {
            if backup.active.is_some() {
                continue;
            }
            if backup.posted.is_some() && backup.linked {
                actions.push(Action::Commit(index));
            }
            let committed = backup.image.and_then(|image| image.committed).is_some();
            if committed && backup.pending.is_none() {
                actions.push(Action::Suspect(index));
            }
            let unknown = backup.pending.is_some_and(|swap| swap.unknown);
            let asked = backup.pending.is_some();
            if (asked && !self.on(Clause::SwapBeforeActivation))
                || (unknown && !self.on(Clause::BackupWaitsForOutcome))
            {
                actions.push(Action::ActivateEarly(index));
            }
            if backup.image.is_some() && state.crashes < self.crashes {
                actions.push(Action::CrashBackup(index));
            }
        }
    }

    pub(super) fn connect(&self, state: &mut State, index: usize, fresh: Fresh) -> Option<()> {
        let backup = &mut state.backups[index];
        // A backup that is taking over or has done so refuses.
        if backup.active.is_some() || backup.pending.is_some() {
            return None;
        }
        if fresh == Fresh::Delta {
            let image = backup.image?;
            // Only of the image that this protector has built.
            let (number, _) = state.primary.acked.filter(|(number, _)| *number == image.number)?;
            state.primary.acked = Some((number, image.committed?));
        } else {
            backup.image = Some(Image { number: state.pairings + 1, committed: None });
            state.primary.acked = None;
        }
        state.pairings += 1;
        (backup.linked, backup.posted) = (true, None);
        state.primary.link = Some(index);
        Some(())
    }

    pub(super) fn suspect(&self, state: &mut State, index: usize) -> Option<()> {
        let record = state.record;
        let backup = &mut state.backups[index];
        let image = backup.image?;
        if self.on(Clause::FenceBeforeSwap) {
            (backup.linked, backup.posted) = (false, None);
        }
        let named = record.nonce == image.number || !self.on(Clause::RecordNamesImage);
        if record.owner != Owner::Protected || !named {
            // Idle: the image stays, the record may be handed back.
            return Some(());
        }
        backup.sampled = image.committed?;
        self.ask(state, Who::Backup(index), record, Owner::Owned, None).then_some(())
    }

    pub(super) fn guard_looks(&self, state: &mut State) -> Option<()> {
        if !state.guest_alive {
            state.guard.phase = GuardPhase::Over;
            return Some(());
        }
        match state.record.owner {
            Owner::Solo if !self.on(Clause::GuardSwapsSolo) => state.guard.phase = GuardPhase::Granted,
            Owner::Protected | Owner::Solo => {
                state.guard.phase = GuardPhase::Swapping;
                let record = state.record;
                return self.ask(state, Who::Guard, record, Owner::Solo, None).then_some(());
            }
            Owner::Owned => {
                state.guest_alive = false;
                state.guard.phase = GuardPhase::Over;
            }
        }
        Some(())
    }

    pub(super) fn hand_back(&self, state: &mut State) -> Option<()> {
        let image = match state.guard.displaced {
            Some(displaced) if displaced.owner == Owner::Protected => Some(displaced.nonce),
            // Without the clause: whatever image there is.
            _ if !self.on(Clause::HandBackDisplaced) => state.backups[0].image.map(|image| image.number),
            _ => None,
        };
        let Some(image) = image else {
            state.guard.phase = GuardPhase::Over;
            return Some(());
        };
        state.guard.phase = GuardPhase::Returning;
        let record = state.record;
        self.ask(state, Who::Guard, record, Owner::Protected, Some(image)).then_some(())
    }

    pub(super) fn restart(&self, state: &mut State) -> Option<()> {
        let record = state.record;
        if record.owner == Owner::Owned {
            return None;
        }
        let claiming = record.owner == Owner::Protected || self.on(Clause::RestartSwapsSolo);
        state.primary = Primary { alive: true, known: record, claiming, ..fresh_primary(record) };
        state.primary.held_at = state.guest_state;
        state.gate_open = false;
        state.guard = Guard { phase: GuardPhase::Watching, pending: None, displaced: None };
        Some(())
    }

    /// The outcome of a swap is known: `won`, or the record found instead.
    pub(super) fn outcome(&self, state: &mut State, who: Who, swap: Swap, won: bool) {
        *pending(state, who) = None;
        let record = state.record;
        match who {
            Who::Primary => {
                state.primary.superseded = None;
                state.primary.known = if won { swap.new } else { record };
                let owner = state.primary.known.owner;
                if owner == Owner::Owned && self.on(Clause::LoserStops) {
                    state.primary.alive = false;
                    state.guest_alive = false;
                    state.guard.phase = GuardPhase::Over;
                } else if owner == Owner::Owned {
                    state.gate_open = true;
                    release(state);
                }
                state.primary.claiming &= !won;
            }
            Who::Guard => match (state.guard.phase, won) {
                (GuardPhase::Swapping, true) => {
                    state.guard.displaced = Some(swap.expected);
                    state.guard.phase = GuardPhase::Granted;
                }
                (GuardPhase::Swapping, false) => state.guard.phase = GuardPhase::Checking,
                (GuardPhase::Returning, _) => state.guard.phase = GuardPhase::Over,
                _ => {}
            },
            Who::Backup(index) => {
                let backup = &mut state.backups[index];
                if won {
                    // Only now does a backup that did not fence before stop its primary.
                    backup.active = Some(backup.sampled);
                    (backup.linked, backup.posted) = (false, None);
                }
            }
        }
    }

    pub(super) fn reread(&self, state: &mut State, who: Who) -> Option<()> {
        let swap = (*pending(state, who))?;
        if state.record == swap.new {
            self.outcome(state, who, swap, true);
        } else if state.record != swap.expected {
            self.outcome(state, who, swap, false);
        } else if self.on(Clause::UnknownIsDecided) {
            state.swaps += 1;
            return self.issue(state, who, swap).then_some(());
        } else {
            *pending(state, who) = None;
        }
        Some(())
    }
}

pub(super) fn pending(state: &mut State, who: Who) -> &mut Option<Swap> {
    match who {
        Who::Primary => &mut state.primary.pending,
        Who::Guard => &mut state.guard.pending,
        Who::Backup(index) => &mut state.backups[index].pending,
    }
}

pub(super) fn release(state: &mut State) {
    if state.guest_alive {
        state.released = state.guest_state;
    }
}

/// Carries out the floating swap at `at`; whether it won.
pub(super) fn carry_out(state: &mut State, at: usize) -> bool {
    let (_, expected, new) = state.floating.remove(at);
    let won = state.record == expected;
    if won {
        state.record = new;
    }
    // Another attempt at the same swap has made it.
    won || state.record == new
}

pub(super) fn fresh_primary(known: Record) -> Primary {
    Primary {
        alive: true,
        known,
        pending: None,
        superseded: None,
        claiming: false,
        link: None,
        acked: None,
        held_at: 0,
    }
}
