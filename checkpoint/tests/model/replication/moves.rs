//! What each side may do, and what follows.

use super::*;

impl<P: PrimarySide, B: BackupSide> Replication<P, B> {
    pub(super) fn on(&self, rule: Rule) -> bool {
        self.config.on(rule)
    }

    /// The fence of a placement: its writes, and those of the placements before it, have landed.
    pub(super) fn land_through(&self, state: &mut State<P, B>, placement: u8) {
        let (landed, in_flight): (Vec<_>, Vec<_>) = std::mem::take(&mut state.in_flight)
            .into_iter()
            .partition(|write| write.placement() <= placement);
        state.in_flight = in_flight;
        for write in landed {
            self.land(state, write);
        }
    }

    pub(super) fn land(&self, state: &mut State<P, B>, write: Write) {
        match write {
            Write::Page { frame, content, .. } => state.arena[usize::from(frame)] = content,
            Write::Slot(slot) => state.slots[usize::from(slot.epoch % self.config.slots())] = slot,
        }
    }

    pub(super) fn primary_actions(&self, state: &State<P, B>, actions: &mut Vec<Action>) {
        let config = &self.config;
        let (acked, homed) = state.primary.knows();
        let stands = (state.committed.epoch, state.backup.homed_through(config));
        match state.phase {
            Phase::Empty => actions.push(Action::PostRound),
            Phase::Round => actions.push(Action::RoundAcked),
            Phase::Running => {
                if state.primary.unacked() < config.depth && state.placement <= config.placements {
                    self.placements(state, actions);
                }
                if (acked, homed) != stands && state.half_ack.is_none() {
                    actions.push(Action::Ack);
                }
                if state.asked < config.homings {
                    actions.extend(state.primary.homings(config).into_iter().map(Action::AskHomings));
                }
                let asked = state.messages.contains(&Message::Invalidate);
                if config.takeover && acked > 0 && state.placement <= config.placements && !asked {
                    actions.push(Action::Overflow);
                }
            }
            _ => {}
        }
        if !state.unsent.is_empty() {
            actions.push(Action::SendCommit);
        }
    }

    pub(super) fn backup_actions(&self, state: &State<P, B>, actions: &mut Vec<Action>) {
        if !state.messages.is_empty() {
            actions.push(Action::Receive);
        }
        if !self.on(Rule::HomeWaitsForCommit) {
            let homes = state.messages.iter().enumerate().skip(1);
            let homes = homes.filter(|(_, message)| matches!(message, Message::Home(_)));
            actions.extend(homes.map(|(at, _)| Action::ReceiveHomeEarly(at)));
        }
        actions.extend(state.backup.startable(&self.config).into_iter().map(Action::StartCopy));
        actions.extend(state.backup.running().into_iter().map(Action::FinishCopy));
        if !self.on(Rule::AckIsAtomic) && state.connected && state.phase == Phase::Running {
            let half = state.half_ack.map_or(Action::SampleCommitted, |_| Action::AckSampled);
            actions.push(half);
        }
        if !self.on(Rule::NoHomingUnasked) && state.committed.epoch > 0 {
            let displaced = (0..self.config.pages).filter(|page| state.backup.frame_of(*page) != *page);
            actions.extend(displaced.map(Action::HomeUnasked));
        }
    }

    pub(super) fn placements(&self, state: &State<P, B>, actions: &mut Vec<Action>) {
        for dirty in 0..1 << self.config.pages {
            let pages = dirty | state.carried;
            if pages == 0 {
                continue;
            }
            for targets in state.primary.placements(&self.config, pages) {
                actions.push(Action::Place { dirty, targets });
            }
        }
    }

    pub(super) fn place(&self, state: &mut State<P, B>, dirty: u8, targets: Targets) {
        let placement = state.placement;
        state.placement += 1;
        for page in 0..self.config.pages {
            if dirty >> page & 1 == 1 {
                state.guest[usize::from(page)] = placement;
            }
        }
        state.carried = 0;
        let epoch = state.primary.knows().0 + state.primary.unacked() + 1;
        state.primary.place(&self.config, epoch, &targets);
        for (page, frame) in placed(&targets) {
            let content = state.guest[usize::from(page)];
            state.in_flight.push(Write::Page { placement, frame, content });
        }
        state.in_flight.push(Write::Slot(Slot { placement, epoch, targets, image: state.guest }));
        state.in_flight.sort_unstable();
        state.unsent.push((epoch, placement));
    }

    pub(super) fn receive(&self, state: &mut State<P, B>) {
        match state.messages.remove(0) {
            Message::Commit { epoch, placement } => {
                if self.on(Rule::CommitIsFenced) {
                    self.land_through(state, placement);
                }
                self.commit(state, epoch);
            }
            Message::Home(homings) => self.take(state, &homings),
            Message::Invalidate => state.phase = Phase::Over,
        }
    }

    pub(super) fn commit(&self, state: &mut State<P, B>, epoch: u8) {
        let slot = state.slots[usize::from(epoch % self.config.slots())];
        let next = epoch == state.committed.epoch + 1 || !self.on(Rule::CommitIsNext);
        // A slot of another epoch is refused whatever the rules.
        if !next || slot.epoch != epoch {
            return self.close(state);
        }
        let first = state.committed.epoch == 0;
        if state.backup.commit(&self.config, &slot.targets, first) {
            state.committed = slot;
        } else {
            state.refused = true;
        }
    }

    pub(super) fn take(&self, state: &mut State<P, B>, homings: &[Homing]) {
        if !state.backup.take(&self.config, homings) {
            self.close(state);
        }
    }

    /// The backup ends the connection: it takes no more messages of it.
    pub(super) fn close(&self, state: &mut State<P, B>) {
        state.messages.clear();
        self.disconnect(state);
    }

    /// The primary can send no more; what it has sent may still arrive.
    pub(super) fn disconnect(&self, state: &mut State<P, B>) {
        state.connected = false;
        state.unsent.clear();
        state.half_ack = None;
    }

    pub(super) fn is_quiet(&self, state: &State<P, B>) -> bool {
        state.backup.running().is_empty() || !self.on(Rule::HomingIsQuiet)
    }

    /// The backup's end of the old connection is gone: nothing of it lands, no copy is due.
    pub(super) fn fence(&self, state: &mut State<P, B>) {
        if self.on(Rule::OldWritesDie) {
            state.in_flight.clear();
        }
        if self.on(Rule::OldMessagesDie) {
            state.messages.clear();
        }
        state.backup.drop_pending(&self.config);
    }

    pub(super) fn reconnect(&self, state: &mut State<P, B>) {
        self.fence(state);
        let homed = state.backup.homed_through(&self.config);
        let dropped = state.primary.reconnected(&self.config, state.committed.epoch, homed);
        if self.on(Rule::DirtySetsMerge) {
            state.carried |= dropped;
        }
        state.connected = true;
        if state.committed.epoch == 0 {
            state.phase = Phase::Empty;
        }
    }

    pub(super) fn home_displaced(&self, state: &mut State<P, B>) {
        for page in 0..self.config.pages {
            let frame = state.backup.frame_of(page);
            if frame != page && self.on(Rule::TakeoverHomes) {
                state.arena[usize::from(page)] = state.arena[usize::from(frame)];
            }
        }
    }

    /// The image is given up, or taken over.
    pub(super) fn end(&self, state: &mut State<P, B>, action: Action) {
        match action {
            Action::Overflow if self.on(Rule::InvalidateFirst) => state.messages.push(Message::Invalidate),
            Action::Overflow => {
                let placement = state.placement;
                state.in_flight.push(Write::Page { placement, frame: 0, content: placement });
                state.placement += self.config.placements;
            }
            Action::TakeOver => {
                self.disconnect(state);
                if self.on(Rule::FenceFirst) {
                    self.fence(state);
                }
                state.messages.clear();
                state.phase = Phase::TakingOver;
            }
            Action::HomeDisplaced => {
                self.home_displaced(state);
                state.phase = Phase::Homed;
            }
            Action::Activate => {
                self.fence(state);
                state.phase = Phase::Active;
            }
            Action::GiveUp => {
                state.arena[0] = JUNK;
                let ended = self.on(Rule::TakeoverEndsIncarnation);
                state.phase = if ended { Phase::Over } else { Phase::Running };
            }
            _ => unreachable!("{action:?} is no end"),
        }
    }
}
