//! Both sides of placement over an arena whose bytes change when writes and copies really land:
//! in any order, half by half, also after the connection that carried them has begun to break.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arrayvec::ArrayVec;
use romulus_checkpoint::placement::committed::{CommittedMap, HomingCopy};
use romulus_checkpoint::placement::planner::{NotPlaced, Planner};
use romulus_checkpoint::wire::message::Homing;
use romulus_checkpoint::{ArenaShape, Epoch, Extent, FrameIndex, HomingSequence, PageIndex, Transfer};

use crate::plain::{PlainCommitted, PlainPlanner, pairs};

/// A frame's bytes: two halves that land one at a time.
type Content = [u64; 2];

#[derive(Clone, Debug)]
struct InFlight {
    epoch: u64,
    frame: u64,
    half: usize,
    value: u64,
}

#[derive(Clone, Debug)]
enum ToBackup {
    Commit { epoch: u64, transfers: Vec<Transfer> },
    Home { first: HomingSequence, homings: Vec<Homing> },
}

#[derive(Clone, Debug)]
pub struct World {
    shape: ArenaShape,
    planner: Planner,
    plain_planner: PlainPlanner,
    map: CommittedMap,
    plain_map: PlainCommitted,
    arena: Vec<Content>,
    guest: Vec<u64>,
    dirty: BTreeSet<u64>,
    versions: u64,
    /// What the backup holds once the epoch is committed.
    images: BTreeMap<u64, Vec<u64>>,
    placed: u64,
    /// Placed, data posted, Commit not yet sent.
    unsent: VecDeque<(u64, Vec<Transfer>)>,
    committed: u64,
    in_flight: Vec<InFlight>,
    to_backup: VecDeque<ToBackup>,
    to_primary: VecDeque<(u64, u64)>,
    /// Running copies and how many halves they have copied.
    copies: Vec<(HomingCopy, usize)>,
}

impl World {
    pub fn new(shape: ArenaShape, low_water_spares: u64) -> Self {
        let guest: Vec<u64> = (1..=shape.pages).collect();
        let mut arena: Vec<Content> = vec![[u64::MAX; 2]; shape.frames() as usize];
        let mut dirty = BTreeSet::new();
        if shape.copy_only_homes {
            dirty.extend(0..shape.pages);
        } else {
            for (frame, value) in arena.iter_mut().zip(&guest) {
                *frame = [*value; 2];
            }
        }
        Self {
            planner: Planner::new(shape, low_water_spares),
            plain_planner: PlainPlanner::new(shape),
            map: CommittedMap::new(shape),
            plain_map: PlainCommitted::new(shape),
            images: BTreeMap::from([(0, arena[..shape.pages as usize].iter().map(|c| c[0]).collect())]),
            versions: shape.pages,
            shape,
            arena,
            guest,
            dirty,
            placed: 0,
            unsent: VecDeque::new(),
            committed: 0,
            in_flight: Vec::new(),
            to_backup: VecDeque::new(),
            to_primary: VecDeque::new(),
            copies: Vec::new(),
        }
    }

    /// One step, chosen by two numbers; steps that are not possible now do nothing.
    pub fn step(&mut self, kind: u8, choice: u16) {
        let choice = usize::from(choice);
        match kind % 16 {
            0 | 1 => self.guest_writes(choice),
            2 | 3 => drop(self.place(choice)),
            4 => self.send_commit(),
            5..=7 => self.land(choice),
            8 | 9 => self.backup_receives(),
            10 => self.start_copy(),
            11 | 12 => self.advance_copy(choice),
            13 => self.primary_receives(),
            14 => self.ask_homings(),
            _ if choice.is_multiple_of(4) => self.reconnect(choice / 4),
            _ => self.unprompted_ack(),
        }
        self.check();
    }

    fn guest_writes(&mut self, choice: usize) {
        // A run of pages somewhere: mostly short, sometimes nearly all.
        let first = choice as u64 % self.shape.pages;
        let pages = 1 + (choice as u64 >> 8) % if choice & 0x80 == 0 { 2 } else { self.shape.pages };
        for page in first..(first + pages).min(self.shape.pages) {
            self.versions += 1;
            self.guest[page as usize] = self.versions;
            self.dirty.insert(page);
        }
    }

    /// Pauses the guest and places what it wrote.
    pub fn place(&mut self, choice: usize) -> Result<(), NotPlaced> {
        let mut pages: Vec<u64> = self.dirty.iter().copied().collect();
        if self.shape.copy_only_homes && self.placed == 0 {
            pages.truncate(self.shape.spares as usize);
        }
        // Extents cut in ways that must not matter.
        let mut extents: Vec<Extent> = Vec::new();
        for &page in &pages {
            match extents.last_mut() {
                Some(last) if last.first.0 + last.pages == page && choice & 1 == 0 => last.pages += 1,
                _ => extents.push(Extent { first: PageIndex(page), pages: 1 }),
            }
        }
        let epoch = self.placed + 1;
        let mut transfers = Vec::new();
        let used = self.plain_planner.used();
        let free = self.planner.free_spares();
        if let Err(refusal) = self.planner.place(Epoch(epoch), &extents, &mut transfers) {
            assert!(transfers.is_empty() && self.planner.free_spares() == free, "nothing was changed");
            assert_eq!(
                matches!(refusal, NotPlaced::NeverFits { .. }),
                pages.len() as u64 > self.shape.spares,
                "an epoch fits after waiting exactly if each of its pages can have a spare"
            );
            return Err(refusal);
        }
        self.check_transfers(&transfers, &pages, &used);
        let mut image = self.images[&self.placed].clone();
        for (page, frame) in pairs(&transfers) {
            let value = self.guest[page as usize];
            image[page as usize] = value;
            for half in 0..2 {
                self.in_flight.push(InFlight { epoch, frame, half, value });
            }
            self.dirty.remove(&page);
        }
        if self.dirty.is_empty() {
            assert_eq!(image, self.guest, "I7: no dirty page is lost");
        }
        self.images.insert(epoch, image);
        self.plain_planner.place(epoch, &transfers);
        self.placed = epoch;
        self.unsent.push_back((epoch, transfers));
        Ok(())
    }

    fn check_transfers(&self, transfers: &[Transfer], dirty: &[u64], used: &BTreeSet<u64>) {
        let pairs = pairs(transfers);
        let pages: Vec<u64> = pairs.iter().map(|(page, _)| *page).collect();
        assert_eq!(pages, dirty, "the pages collected, each once, sorted");
        let mut frames = BTreeSet::new();
        for (page, frame) in pairs {
            assert!(!used.contains(&frame), "I3: page {page} to used frame {frame}");
            assert!(frames.insert(frame), "frame {frame} twice");
            assert!(frame < self.shape.frames() && (frame == page || frame >= self.shape.pages));
            assert!(frame != page || !self.shape.copy_only_homes);
            assert!(!self.in_flight.iter().any(|write| write.frame == frame), "rule 2: frame {frame}");
        }
        for pair in transfers.windows(2) {
            let continues = pair[0].first_page.0 + pair[0].pages == pair[1].first_page.0
                && pair[0].first_frame.0 + pair[0].pages == pair[1].first_frame.0;
            assert!(!continues, "transfers that continue each other are one");
        }
    }

    fn send_commit(&mut self) {
        if let Some((epoch, transfers)) = self.unsent.pop_front() {
            self.planner.commit_sent(Epoch(epoch));
            self.to_backup.push_back(ToBackup::Commit { epoch, transfers });
        }
    }

    /// Half a frame of some posted write reaches the arena.
    fn land(&mut self, choice: usize) {
        if self.in_flight.is_empty() {
            return;
        }
        let write = self.in_flight.swap_remove(choice % self.in_flight.len());
        if self.committed > 0 || self.shape.copy_only_homes {
            assert!(!self.map.is_used(FrameIndex(write.frame)), "I3: {write:?} lands in a used frame");
        }
        self.arena[write.frame as usize][write.half] = write.value;
    }

    /// The next message, in order; a Commit waits for the markers, which come after its data.
    fn backup_receives(&mut self) {
        match self.to_backup.front() {
            Some(ToBackup::Commit { epoch, transfers }) => {
                if self.in_flight.iter().any(|write| write.epoch <= *epoch) {
                    return;
                }
                assert_eq!(*epoch, self.committed + 1, "I5");
                let first = *epoch == 1;
                self.map.commit(transfers, first).expect("the planner obeys rule 3");
                self.plain_map.commit(transfers);
                self.committed = *epoch;
                self.unprompted_ack();
            }
            Some(ToBackup::Home { first, homings }) => {
                self.map.take_homings(*first, homings).expect("in sequence");
                self.plain_map.take(first.0, homings);
            }
            None => return,
        }
        self.to_backup.pop_front();
    }

    fn unprompted_ack(&mut self) {
        self.to_primary.push_back((self.committed, self.map.homed_through().0));
    }

    fn start_copy(&mut self) {
        if let Some(copy) = self.map.next_copy() {
            assert!(self.copies.iter().all(|(other, _)| other.target != copy.target), "rule 5");
            self.plain_map.start(&copy);
            self.copies.push((copy, 0));
        }
    }

    /// Half a frame of some running copy.
    fn advance_copy(&mut self, choice: usize) {
        if self.copies.is_empty() {
            return;
        }
        let index = choice % self.copies.len();
        let (copy, done) = self.copies[index];
        if done < 2 {
            self.arena[copy.target.0 as usize][done] = self.arena[copy.source.0 as usize][done];
            self.copies[index].1 += 1;
            return;
        }
        self.copies.swap_remove(index);
        self.map.copy_finished(copy.sequence);
        self.plain_map.finish(copy.sequence.0);
    }

    fn primary_receives(&mut self) {
        if let Some((committed, homed_through)) = self.to_primary.pop_front() {
            assert!(self.planner.may_stand_at(Epoch(committed), HomingSequence(homed_through)));
            self.planner.acked(Epoch(committed), HomingSequence(homed_through));
            self.plain_planner.acked(committed, homed_through);
        }
    }

    fn ask_homings(&mut self) {
        let mut homings = ArrayVec::new();
        while let Some(first) = self.planner.next_homings(&mut homings) {
            assert!(!homings.is_empty());
            self.plain_planner.ask(first.0, &homings);
            self.to_backup.push_back(ToBackup::Home { first, homings: homings.to_vec() });
        }
    }

    /// The connection breaks. What had left the primary may still arrive in part, in order for
    /// messages and in any order for data, until the backup destroys its end.
    fn reconnect(&mut self, choice: usize) {
        self.unsent.clear();
        for round in 0..choice % 8 {
            self.land(choice / 8 + round);
            if choice & 0x40 != 0 {
                self.backup_receives();
            }
        }
        self.in_flight.clear();
        self.to_backup.clear();
        self.to_primary.clear();
        while !self.copies.is_empty() {
            self.advance_copy(choice);
        }
        self.map.drop_pending();
        self.plain_map.drop_pending();
        let (committed, homed_through) = (Epoch(self.committed), self.map.homed_through());
        assert!(self.planner.may_stand_at(committed, homed_through), "rule 9");
        let mut dropped = Vec::new();
        self.planner.reconnected(committed, homed_through, &mut dropped);
        let plain = self.plain_planner.reconnected(committed.0, homed_through.0);
        let dropped: BTreeSet<u64> =
            dropped.iter().flat_map(|extent| extent.first.0..extent.first.0 + extent.pages).collect();
        assert_eq!(dropped, plain, "I7: the dirty sets of the epochs after C");
        self.dirty.extend(dropped);
        self.images.retain(|epoch, _| *epoch <= self.committed);
        self.placed = self.committed;
        assert_eq!(self.planner.outstanding_homings(), 0);
    }

    /// Everything under way arrives, all homings asked for are done.
    pub fn settle(&mut self) {
        let bound = 1000 + 20 * self.shape.frames();
        for _ in 0..bound {
            self.ask_homings();
            if self.plain_planner.unacked() == 0 && self.planner.outstanding_homings() == 0 {
                self.check();
                return;
            }
            self.send_commit();
            while !self.in_flight.is_empty() {
                self.land(0);
            }
            self.backup_receives();
            self.start_copy();
            self.advance_copy(0);
            self.unprompted_ack();
            self.primary_receives();
        }
        panic!("acks and homings do not come to an end");
    }

    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// What must hold at every instant.
    fn check(&self) {
        let used = self.plain_planner.used();
        for frame in 0..self.shape.frames() {
            assert_eq!(self.planner.is_used(FrameIndex(frame)), used.contains(&frame), "rule 1: {frame}");
            let backup = self.committed > 0 && self.map.is_used(FrameIndex(frame));
            assert!(!backup || used.contains(&frame), "the primary thinks {frame} free, the backup uses it");
        }
        assert_eq!(self.planner.free_spares(), self.planner.recount_free_spares(), "free is derived");
        let used = self.plain_map.used();
        for frame in 0..self.shape.frames() {
            assert_eq!(self.map.is_used(FrameIndex(frame)), used.contains(&frame), "frame {frame}");
        }
        assert_eq!(self.map.homed_through().0, self.plain_map.homed_through(), "rule 5: h");
        for page in 0..self.shape.pages {
            assert_eq!(self.map.frame_of(PageIndex(page)).0, self.plain_map.map[&page]);
        }
        self.check_displaced();
        if self.committed > 0 {
            self.check_image();
        }
    }

    fn check_displaced(&self) {
        let displaced: Vec<_> = self.map.displaced().iter().map(|(page, frame)| (page.0, frame.0)).collect();
        let plain = self.plain_map.map.iter().filter(|(page, frame)| page != frame);
        assert_eq!(displaced, plain.map(|(page, frame)| (*page, *frame)).collect::<Vec<_>>());
        assert_eq!(displaced.len() as u64, self.map.displaced_pages());
        if self.plain_planner.has_acked() {
            assert!(self.planner.displaced_pages() <= self.shape.spares);
        }
    }

    /// I2, by looking and by a takeover at this instant.
    fn check_image(&self) {
        let image = &self.images[&self.committed];
        for page in 0..self.shape.pages {
            let frame = self.map.frame_of(PageIndex(page)).0;
            let wanted = image[page as usize];
            if wanted != u64::MAX {
                assert_eq!(self.arena[frame as usize], [wanted; 2], "I2: page {page} in frame {frame}");
            }
        }
        // After the fence nothing else lands and no copy goes on.
        let mut arena = self.arena.clone();
        for (page, frame) in self.map.displaced() {
            arena[page.0 as usize] = arena[frame.0 as usize];
        }
        for (content, wanted) in arena.iter().zip(image) {
            assert!(*wanted == u64::MAX || *content == [*wanted; 2], "I2: after takeover");
        }
    }
}
