//! Synchronization rounds: pages go to their home frames while the guest runs. A page read while
//! it is written is torn, but then it is dirty and comes again.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use romulus_transport::{Memory, RegionId, TransportError, Write};

use super::link::Link;
use super::shared::Shared;
use super::staging::{PIECE_BYTES, Piece};
use crate::PAGE_BYTES;
use crate::driver::zero::is_zero_page;
use crate::extent::{Extent, Transfer};
use crate::ids::{ConnectionNumber, Incarnation, PageIndex};
use crate::metrics::{Counter, Quantity};
use crate::wire::message::{PART_MARKER, ROUND_MARKER};

/// Longest write of a round.
const WRITE_BYTES: u64 = PIECE_BYTES;
/// Writes handed to the fabric at a time.
const BATCH: usize = 64;
/// Longest wait for staging memory that makes no progress.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// Which home frames of the backup's arena may hold anything but zeros.
#[derive(Debug, Default)]
struct Written {
    bits: Vec<u64>,
    connection: Option<ConnectionNumber>,
}

impl Written {
    fn contains(&self, page: u64) -> bool {
        self.bits[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    fn insert(&mut self, page: u64) {
        self.bits[(page / 64) as usize] |= 1 << (page % 64);
    }
}

/// A round to send.
pub(super) struct Order<'a> {
    /// Its number.
    pub round: u64,
    /// All pages, of which those outside `extents` are zero; or the pages in `extents`.
    pub everything: bool,
    /// Sorted, without overlap.
    pub extents: &'a [Extent],
}

/// Where pages are in the guest.
struct Place {
    region: usize,
    /// The region's first page.
    first: u64,
    known_zero: bool,
}

/// The sender's state across rounds.
#[derive(Debug)]
pub(super) struct Rounds {
    written: Written,
    batch: Vec<Write>,
    parts: u64,
    /// Staging memory of the round under way, the last piece filled up to `filled_bytes`.
    pieces: Vec<Piece>,
    filled_bytes: u64,
}

impl Rounds {
    pub fn new(shared: &Shared) -> Self {
        let words = shared.shape.pages.div_ceil(64) as usize;
        let written = Written { bits: vec![0; words], connection: None };
        let pieces = Vec::with_capacity(shared.staging.count());
        Self { written, batch: Vec::with_capacity(BATCH), parts: 0, pieces, filled_bytes: PIECE_BYTES }
    }

    /// Pages of an epoch: their homes are written now or by homing.
    pub fn count_placed(&mut self, transfers: &[Transfer]) {
        for transfer in transfers {
            (transfer.first_page.0..transfer.first_page.0 + transfer.pages)
                .for_each(|page| self.written.insert(page));
        }
    }

    /// Sends a round and its marker, and tells the machine; returns the marker. Without `link`
    /// and after an error the round fails.
    pub fn send(&mut self, shared: &Shared, link: Option<&Link>, order: &Order<'_>) -> Option<u64> {
        let round = order.round;
        let listed = order.extents.iter().map(|extent| extent.pages).sum();
        let pages = if order.everything { shared.shape.pages } else { listed };
        shared.sync_round.store(round, Ordering::Relaxed);
        shared.sync_done.store(0, Ordering::Relaxed);
        shared.sync_total.store(pages, Ordering::Relaxed);
        let marker = ROUND_MARKER | round;
        let outcome = link.ok_or(None).and_then(|link| {
            self.meet(link);
            self.send_pages(shared, link, order)
                .and_then(|sent| link.endpoint.mark(marker).map(|()| sent))
                .map_err(|error| Some((link, error)))
        });
        match outcome {
            Ok(sent) => {
                shared.metrics.count(Counter::SyncRounds, 1);
                shared.metrics.count(Counter::FullSyncs, u64::from(order.everything));
                shared.metrics.count(Counter::PagesSent, sent);
                shared.metrics.count(Counter::BytesSent, sent * PAGE_BYTES);
                shared.metrics.record_quantity(Quantity::SyncRoundPages, sent);
                shared.step(|primary, _, actions| primary.round_posted(round, pages, actions));
                Some(marker)
            }
            Err(cause) => {
                if let Some((link, error)) = cause {
                    shared.note(&format!("synchronization round {round} failed: {error}"));
                    link.endpoint.close();
                }
                let all = [Extent { first: PageIndex(0), pages: shared.shape.pages }];
                let extents = if order.everything { &all } else { order.extents };
                shared.call(|primary, _, _| primary.round_failed(round, extents));
                None
            }
        }
    }

    /// The staging memory of the round sent last, free once it has left.
    pub fn take_pieces(&mut self) -> std::vec::Drain<'_, Piece> {
        self.filled_bytes = PIECE_BYTES;
        self.pieces.drain(..)
    }

    /// Forgets what was written into an arena that is gone.
    fn meet(&mut self, link: &Link) {
        let connection = link.identity.connection;
        if self.written.connection != Some(connection) {
            self.written.connection = Some(connection);
            if link.identity.incarnation == Incarnation::of_new_arena(connection) {
                self.written.bits.fill(0);
            }
        }
    }

    /// Sends the pages that are not zero on both sides; returns how many.
    fn send_pages(&mut self, shared: &Shared, link: &Link, order: &Order<'_>) -> Result<u64, TransportError> {
        let mut sent = 0;
        let mut page = 0;
        self.batch.clear();
        for extent in order.extents {
            if order.everything {
                sent += self.send_run(shared, link, page..extent.first.0, true)?;
            }
            page = extent.first.0 + extent.pages;
            sent += self.send_run(shared, link, extent.first.0..page, false)?;
        }
        if order.everything {
            sent += self.send_run(shared, link, page..shared.shape.pages, true)?;
        }
        self.flush(link)?;
        Ok(sent)
    }

    /// Consecutive pages; `known_zero`: they are zero here, and are not even read unless the
    /// backup's are not.
    fn send_run(
        &mut self,
        shared: &Shared,
        link: &Link,
        pages: std::ops::Range<u64>,
        known_zero: bool,
    ) -> Result<u64, TransportError> {
        let mut sent = 0;
        let mut page = pages.start;
        while page < pages.end {
            let (region, first, region_end) = shared.borders.region(page);
            let stop = pages.end.min(region_end).min(page + WRITE_BYTES / PAGE_BYTES);
            let place = Place { region, first, known_zero };
            sent += self.send_span(shared, link, &place, page..stop)?;
            shared.sync_done.fetch_add(stop - page, Ordering::Relaxed);
            page = stop;
        }
        Ok(sent)
    }

    /// A few pages of one region: finds the runs to send.
    fn send_span(
        &mut self,
        shared: &Shared,
        link: &Link,
        place: &Place,
        pages: std::ops::Range<u64>,
    ) -> Result<u64, TransportError> {
        let memory = &shared.guest_memory[place.region];
        let mut sent = 0;
        let mut page = pages.start;
        while page < pages.end {
            let begin = page;
            while page < pages.end && self.must_send(memory, page, place) {
                self.written.insert(page);
                page += 1;
            }
            if page == begin {
                page += 1;
                continue;
            }
            let local_offset = (begin - place.first) * PAGE_BYTES;
            let len_bytes = (page - begin) * PAGE_BYTES;
            let (region, local_offset) = match link.guest.get(place.region) {
                Some(id) => (*id, local_offset),
                None => self.staged(shared, link, memory, local_offset, len_bytes)?,
            };
            if self.batch.len() == BATCH {
                self.flush(link)?;
            }
            self.batch.push(Write { region, local_offset, remote_offset: begin * PAGE_BYTES, len_bytes });
            sent += page - begin;
        }
        Ok(sent)
    }

    fn must_send(&self, memory: &Memory, page: u64, place: &Place) -> bool {
        let offset = ((page - place.first) * PAGE_BYTES) as usize;
        self.written.contains(page) || !(place.known_zero || is_zero_page(memory, offset))
    }

    /// Copies pages that cannot be sent from where they are to staging; returns their place there.
    fn staged(
        &mut self,
        shared: &Shared,
        link: &Link,
        memory: &Memory,
        offset: u64,
        len_bytes: u64,
    ) -> Result<(RegionId, u64), TransportError> {
        if self.filled_bytes + len_bytes > PIECE_BYTES {
            self.add_piece(shared, link)?;
        }
        let place = self.pieces.last().map_or(0, |piece| piece.offset) + self.filled_bytes;
        memory.copy_to(offset as usize, shared.staging.memory(), place as usize, len_bytes as usize);
        self.filled_bytes += len_bytes;
        Ok((link.staging, place))
    }

    /// Begins an empty piece of staging memory.
    fn add_piece(&mut self, shared: &Shared, link: &Link) -> Result<(), TransportError> {
        let piece = match shared.staging.take() {
            Some(piece) => Some(piece),
            None => {
                // All staging memory belongs to this round: once what was posted has left, it is
                // free again.
                self.flush(link)?;
                self.parts += 1;
                let marker = PART_MARKER | (1 << 61) | self.parts;
                link.endpoint.mark(marker)?;
                wait_completed(link, marker)?;
                self.take_pieces().for_each(|piece| shared.staging.give_back(piece));
                shared.staging.take()
            }
        };
        let nothing = || TransportError::Invalid("a synchronization round has no staging memory".into());
        self.pieces.push(piece.ok_or_else(nothing)?);
        self.filled_bytes = 0;
        Ok(())
    }

    fn flush(&mut self, link: &Link) -> Result<(), TransportError> {
        if !self.batch.is_empty() {
            link.endpoint.write(&self.batch)?;
            self.batch.clear();
        }
        Ok(())
    }
}

fn wait_completed(link: &Link, marker: u64) -> Result<(), TransportError> {
    let begun = Instant::now();
    loop {
        if link.endpoint.completed(marker, Duration::from_millis(100))? == marker {
            return Ok(());
        }
        if begun.elapsed() > STUCK_AFTER {
            return Err(TransportError::TimedOut {
                what: "sending staged pages of a synchronization".into(),
                limit: STUCK_AFTER,
            });
        }
    }
}
