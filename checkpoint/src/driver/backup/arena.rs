//! The memory that a backup lends: who allocates it, and how it becomes one arena.

use romulus_transport::{Arena, Memory};

use crate::PAGE_BYTES;
use crate::driver::mapping::anonymous_mapping;
use crate::layout::{ArenaShape, GuestLayout};
use crate::standby::ImageRegion;

/// Why there is no arena. Nothing was kept.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// Not enough memory (or room on the file system); says how much was asked.
    #[error("{0}")]
    NoRoom(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// The memory of one session. The chunks of the arena are exactly: one for each region's home
/// frames (none with copy-only homes, whose memory is the standby's), one of all spare frames, one
/// of all commit slots; a write crosses none of them.
#[derive(Clone, Debug)]
pub struct BackupArena {
    /// The home frames, one region of the guest each, in order.
    pub regions: Vec<ImageRegion>,
    /// The spare frames.
    pub spares: Memory,
    /// The commit slots.
    pub slots: Memory,
}

impl BackupArena {
    /// As the fabric sees it.
    pub fn arena(&self) -> Arena {
        let homes = self.regions.iter().map(|region| region.memory.clone());
        Arena::new(homes.chain([self.spares.clone(), self.slots.clone()]))
    }

    /// Whether names and lengths are those asked for.
    pub(crate) fn check(&self, layout: &GuestLayout, shape: &ArenaShape) -> Result<(), ArenaError> {
        let lent = if shape.copy_only_homes { &[][..] } else { &layout.regions[..] };
        let homes = self.regions.len() == lent.len()
            && self.regions.iter().zip(lent).all(|(have, want)| {
                have.name == want.name && have.memory.len_bytes() as u64 == want.pages * PAGE_BYTES
            });
        let rest = self.spares.len_bytes() as u64 == shape.spares * PAGE_BYTES
            && self.slots.len_bytes() as u64 == shape.slots * shape.slot_bytes;
        if homes && rest {
            return Ok(());
        }
        Err(ArenaError::Failed("the arena allocated is not of the shape asked for".into()))
    }
}

/// Allocates the memory that shadows a guest.
pub trait ArenaProvider: Send {
    /// Allocates memory of this layout and shape, all of it zero, without homes if they are copy-only.
    /// What an earlier call returned is no longer in use by the driver, its standby is abandoned, and the
    /// file names may be used again. After failure nothing is kept.
    fn allocate(&mut self, layout: &GuestLayout, shape: &ArenaShape) -> Result<BackupArena, ArenaError>;
}

/// Allocates anonymous memory without files, for standbys inside this process.
#[derive(Clone, Copy, Debug)]
pub struct InProcessArenas {
    /// The most to allocate, in bytes.
    pub limit_bytes: u64,
}

impl ArenaProvider for InProcessArenas {
    fn allocate(&mut self, layout: &GuestLayout, shape: &ArenaShape) -> Result<BackupArena, ArenaError> {
        if shape.len_bytes() > self.limit_bytes {
            let (wanted, limit) = (shape.len_bytes(), self.limit_bytes);
            return Err(ArenaError::NoRoom(format!("{wanted} bytes asked for, {limit} allowed")));
        }
        let map = |bytes: u64| {
            anonymous_mapping(bytes as usize)
                .map_err(|error| ArenaError::NoRoom(format!("mapping {bytes} bytes: {error}")))
        };
        let lent = if shape.copy_only_homes { &[][..] } else { &layout.regions[..] };
        let regions = lent
            .iter()
            .map(|region| {
                let memory = map(region.pages * PAGE_BYTES)?;
                Ok(ImageRegion { name: region.name.clone(), path: Default::default(), memory })
            })
            .collect::<Result<_, ArenaError>>()?;
        Ok(BackupArena {
            regions,
            spares: map(shape.spares * PAGE_BYTES)?,
            slots: map(shape.slots * shape.slot_bytes)?,
        })
    }
}
