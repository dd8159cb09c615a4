//! The standby of a measured guest: at the takeover it verifies the image.

use std::sync::{Arc, Mutex, PoisonError};

use romulus_checkpoint::standby::{ImageRegion, Standby, StandbyError};
use romulus_checkpoint::synthetic::{
    SyntheticGuestControl, SyntheticOptions, SyntheticState, check_page, digest_of, verify_image,
};
use romulus_checkpoint::wire::message::MachineIdentity;
use romulus_checkpoint::{GuestLayout, PAGE_BYTES};
use romulus_transport::Memory;
use serde::Serialize;

/// What came of the verification.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verified {
    /// Whether the image is the guest at the committed pause.
    pub exact: bool,
    /// Pages looked at.
    pub pages: u64,
    /// Pages that are torn, misplaced or damaged.
    pub corrupt_pages: u64,
    /// The first of them.
    pub first_fault: Option<String>,
}

/// Where the verdict will be found.
pub type Verdict = Arc<Mutex<Option<Verified>>>;

/// The standby.
pub struct VerifyingStandby {
    image: Vec<Memory>,
    /// Of a sparse guest: only what it ever wrote is looked at.
    sparse: Option<SyntheticGuestControl>,
    corrupt_page: Option<u64>,
    verdict: Verdict,
}

impl VerifyingStandby {
    /// Damages `corrupt_page` first, to show that it is found.
    pub fn new(sparse: Option<SyntheticGuestControl>, corrupt_page: Option<u64>) -> Self {
        Self { image: Vec::new(), sparse, corrupt_page, verdict: Verdict::default() }
    }

    /// Where the verdict will be found.
    pub fn verdict(&self) -> Verdict {
        Arc::clone(&self.verdict)
    }

    fn damage(&mut self) -> Result<(), StandbyError> {
        let Some(page) = self.corrupt_page.take() else { return Ok(()) };
        let Some((memory, offset)) = find(&self.image, page) else {
            return Err(error(format!("--corrupt-page {page}"), "the guest has no such page"));
        };
        let at = offset + 1000;
        let mut byte = [0];
        memory.read(at, &mut byte);
        memory.write(at, &[byte[0] ^ 1]);
        Ok(())
    }

    fn verify(&self, state: SyntheticState) -> Verified {
        let Some(control) = &self.sparse else {
            let verdict = verify_image(&self.image, state);
            return Verified {
                exact: verdict.is_exact(),
                pages: self.image.iter().map(|memory| memory.len_bytes() as u64 / PAGE_BYTES).sum(),
                corrupt_pages: verdict.corrupt_pages,
                first_fault: verdict.first_fault,
            };
        };
        let mut populated = Vec::new();
        control.populated(&mut populated);
        let mut verified = Verified { exact: false, pages: 0, corrupt_pages: 0, first_fault: None };
        let mut digest: u64 = 0;
        let pages = populated.iter().flat_map(|extent| extent.first.0..extent.first.0 + extent.pages);
        for page in pages {
            let Some((memory, offset)) = find(&self.image, page) else { continue };
            verified.pages += 1;
            match check_page(memory, offset, page) {
                Ok(version) => digest = digest.wrapping_add(digest_of(page, version)),
                Err(fault) => {
                    verified.corrupt_pages += 1;
                    verified.first_fault.get_or_insert_with(|| fault.to_string());
                }
            }
        }
        verified.exact = verified.corrupt_pages == 0 && digest == state.digest;
        verified
    }
}

/// The region of a page, and its offset there.
fn find(image: &[Memory], page: u64) -> Option<(&Memory, usize)> {
    let mut offset = page.checked_mul(PAGE_BYTES)?;
    for memory in image {
        let len_bytes = memory.len_bytes() as u64;
        if offset < len_bytes {
            return Some((memory, offset as usize));
        }
        offset -= len_bytes;
    }
    None
}

fn error(what: impl Into<String>, why: impl Into<String>) -> StandbyError {
    StandbyError { what: what.into(), why: why.into() }
}

impl Standby for VerifyingStandby {
    fn prepare(
        &mut self,
        layout: &GuestLayout,
        image: &[ImageRegion],
    ) -> Result<MachineIdentity, StandbyError> {
        self.image = image.iter().map(|region| region.memory.clone()).collect();
        let regions = layout.regions.iter().map(|region| region.pages).collect();
        Ok(SyntheticOptions { regions, ..SyntheticOptions::default() }.machine())
    }

    fn trial(&mut self, state: &[u8]) -> Result<(), StandbyError> {
        SyntheticState::load(state).map(drop).map_err(|why| error("trial load", why))
    }

    fn check(&mut self) -> Result<(), StandbyError> {
        Ok(())
    }

    fn activate(&mut self, state: &[u8]) -> Result<(), StandbyError> {
        self.damage()?;
        let state = SyntheticState::load(state).map_err(|why| error("activating", why))?;
        let verified = self.verify(state);
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(verified.clone());
        match verified.exact {
            true => Ok(()),
            false => Err(error("activating", format!("the image is not exact: {verified:?}"))),
        }
    }

    fn abandon(&mut self) {
        self.image.clear();
    }
}
