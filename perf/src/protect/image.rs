//! The backup's memory: kept within reach, hashed, and damaged on request.

use std::sync::{Arc, Mutex, PoisonError};

use romulus_checkpoint::driver::backup::{ArenaError, ArenaProvider, BackupArena};
use romulus_checkpoint::standby::{CopyOnlyHomes, ImageRegion, Standby, StandbyError};
use romulus_checkpoint::synthetic::{
    SyntheticOptions, SyntheticStandby, SyntheticState, Verdict, verify_image,
};
use romulus_checkpoint::wire::message::MachineIdentity;
use romulus_checkpoint::{ArenaShape, GuestLayout, PAGE_BYTES};
use romulus_host::memory::HostArenas;
use romulus_transport::Memory;
use sha2::{Digest, Sha256};

/// Bytes hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The arena lent last, and the homes of the standby prepared last.
#[derive(Clone, Debug, Default)]
pub struct Lent {
    arena: Arc<Mutex<Option<BackupArena>>>,
    homes: Arc<Mutex<Vec<Memory>>>,
}

impl Lent {
    fn arena(&self) -> Option<BackupArena> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn homes(&self) -> Vec<Memory> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep_homes(&self, homes: Vec<Memory>) {
        *self.homes.lock().unwrap_or_else(PoisonError::into_inner) = homes;
    }

    /// A hash over all that a primary can write to: home frames, spare frames and commit slots.
    pub fn hash(&self) -> Option<String> {
        let arena = self.arena()?.arena();
        let mut hash = Sha256::new();
        let mut bytes = vec![0; CHUNK_BYTES];
        for (_, memory) in arena.chunks() {
            for offset in (0..memory.len_bytes()).step_by(CHUNK_BYTES) {
                let chunk = &mut bytes[..CHUNK_BYTES.min(memory.len_bytes() - offset)];
                memory.read(offset, chunk);
                hash.update(&*chunk);
            }
        }
        Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Compares the image once more with the guest's word at the committed pause.
    pub fn verify(&self, state: SyntheticState) -> Option<Verdict> {
        let homes = self.homes();
        (!homes.is_empty()).then(|| verify_image(&homes, state))
    }
}

/// Allocates as `romulus backup` does and keeps the arena within reach.
#[derive(Debug, Default)]
pub struct ReachableArenas {
    inner: HostArenas,
    lent: Lent,
}

impl ReachableArenas {
    /// Where the arena will be found.
    pub fn lent(&self) -> Lent {
        self.lent.clone()
    }
}

impl ArenaProvider for ReachableArenas {
    fn allocate(&mut self, layout: &GuestLayout, shape: &ArenaShape) -> Result<BackupArena, ArenaError> {
        let keep = |arena| *self.lent.arena.lock().unwrap_or_else(PoisonError::into_inner) = arena;
        keep(None);
        let arena = self.inner.allocate(layout, shape)?;
        keep(Some(arena.clone()));
        Ok(arena)
    }
}

/// A synthetic standby for a guest of any shape; with a page to damage it flips a bit of that page before it verifies the
/// image, to show that the verification finds it.
#[derive(Debug)]
pub struct DamagingStandby {
    inner: SyntheticStandby,
    page: Option<u64>,
    lent: Lent,
}

impl DamagingStandby {
    /// Damages this page, if any; its homes are kept within reach of `lent`.
    pub fn new(inner: SyntheticStandby, page: Option<u64>, lent: Lent) -> Self {
        Self { inner, page, lent }
    }

    fn damage(&mut self) -> Result<(), StandbyError> {
        let Some(page) = self.page.take() else { return Ok(()) };
        let mut offset = page.saturating_mul(PAGE_BYTES);
        for memory in self.lent.homes() {
            let len_bytes = memory.len_bytes() as u64;
            if offset < len_bytes {
                let at = offset as usize + 1000;
                let mut byte = [0];
                memory.read(at, &mut byte);
                memory.write(at, &[byte[0] ^ 1]);
                return Ok(());
            }
            offset -= len_bytes;
        }
        let why = "the guest has no such page".into();
        Err(StandbyError { what: format!("--damage-page {page}"), why })
    }
}

impl Standby for DamagingStandby {
    fn prepare(
        &mut self,
        layout: &GuestLayout,
        image: &[ImageRegion],
    ) -> Result<MachineIdentity, StandbyError> {
        self.inner.prepare(layout, image)?;
        let own = self.inner.copy_only_homes().map(|homes| homes.regions);
        self.lent
            .keep_homes(own.unwrap_or_else(|| image.iter().map(|region| region.memory.clone()).collect()));
        // What the guest is follows from its memory's shape: nobody has to say it twice.
        let regions = layout.regions.iter().map(|region| region.pages).collect();
        Ok(SyntheticOptions { regions, ..SyntheticOptions::default() }.machine())
    }
    fn copy_only_homes(&self) -> Option<CopyOnlyHomes> {
        self.inner.copy_only_homes()
    }
    fn trial(&mut self, state: &[u8]) -> Result<(), StandbyError> {
        self.inner.trial(state)
    }
    fn check(&mut self) -> Result<(), StandbyError> {
        self.inner.check()
    }
    fn activate(&mut self, state: &[u8]) -> Result<(), StandbyError> {
        self.damage()?;
        self.inner.activate(state)
    }
    fn may_have_run(&self) -> bool {
        self.inner.may_have_run()
    }
    fn abandon(&mut self) {
        self.lent.keep_homes(Vec::new());
        self.inner.abandon();
    }
}
