//! Synchronization with copy-only homes: the pages of a round go out in parts, placed like epochs,
//! while the guest runs. A page read while it is written is torn, but then it is dirty and comes
//! again in a later round.

use std::sync::atomic::Ordering;

use super::capture::Capture;
use super::checkpoint::{Captured, JOB_WAIT, take_pages};
use super::shared::Shared;
use super::staging::PIECE_BYTES;
use crate::PAGE_BYTES;
use crate::driver::zero::is_zero_page;
use crate::extent::Extent;
use crate::ids::{Identity, Incarnation, PageIndex};
use crate::metrics::{Counter, Quantity};

impl Capture {
    /// Tells the machine which pages a round has that was asked for under `identity`.
    pub(super) fn list_round(&mut self, identity: &Identity, round: u64, everything: bool) {
        let shared = &*self.shared;
        self.failures = 0;
        self.last_begin = None;
        let mut pages = Vec::new();
        if everything {
            if identity.incarnation == Incarnation::of_new_arena(identity.connection) {
                // The backup's homes are zero as well.
                let mut populated = Vec::new();
                self.guest.populated(&mut populated);
                not_zero(shared, &populated, &mut pages);
            } else {
                pages.push(Extent { first: PageIndex(0), pages: shared.shape.pages });
            }
        } else {
            pages.extend_from_slice(self.tools.dirty.extents());
        }
        self.tools.dirty.clear();
        let count = pages.iter().map(|extent| extent.pages).sum();
        shared.sync_round.store(round, Ordering::Relaxed);
        shared.sync_done.store(0, Ordering::Relaxed);
        shared.sync_total.store(count, Ordering::Relaxed);
        shared.metrics.count(Counter::SyncRounds, 1);
        shared.metrics.count(Counter::FullSyncs, u64::from(everything));
        shared.metrics.record_quantity(Quantity::SyncRoundPages, count);
        shared.step(|primary, now, actions| primary.round_listed(round, &pages, now, actions));
    }

    /// Copies and sends the next part of a round.
    pub(super) fn part(&mut self) {
        let shared = &*self.shared;
        let Some(mut job) = shared.jobs.take_free(JOB_WAIT) else { return };
        let most = shared.staging.count() as u64 * PIECE_BYTES / PAGE_BYTES;
        let placed =
            shared.call(|primary, now, actions| primary.place_part(most, now, &mut job.transfers, actions));
        shared.perform();
        let Some(placed) = placed else { return shared.jobs.give_back(job) };
        job.state_bytes = 0;
        shared.sync_done.fetch_add(placed.pages, Ordering::Relaxed);
        if let Captured::Taken(job) = take_pages(shared, &mut self.tools, job, placed) {
            shared.jobs.submit(job);
        }
    }
}

/// Of these pages those that hold anything but zeros.
fn not_zero(shared: &Shared, pages: &[Extent], into: &mut Vec<Extent>) {
    for extent in pages {
        for page in extent.first.0..extent.first.0 + extent.pages {
            let (region, first, _) = shared.borders.region(page);
            if is_zero_page(&shared.guest_memory[region], ((page - first) * PAGE_BYTES) as usize) {
                continue;
            }
            match into.last_mut() {
                Some(last) if last.first.0 + last.pages == page => last.pages += 1,
                _ => into.push(Extent { first: PageIndex(page), pages: 1 }),
            }
        }
    }
}
