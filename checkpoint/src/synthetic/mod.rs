//! A guest and a standby inside this process, for tests and benchmarks: real writer threads over
//! mapped memory, with content that checks itself, and a standby that verifies the image against
//! what the guest was at the committed pause.
//!
//! The proof needs no log of the writes: the guest keeps a digest over (page, version) of all its
//! pages, which its device state carries. At activation the standby checks each page of the image
//! by itself (no torn and no misplaced page) and the digest of all of them (no page of another
//! pause).

mod bits;
mod guest;
mod load;
mod page;
mod standby;
mod state;
mod writers;

pub use guest::{SyntheticGuest, SyntheticGuestControl, SyntheticOptions};
pub use load::{Fill, Pace, Pattern};
pub use page::{PageFault, check_page, digest_of};
pub use standby::{StandbyControl, SyntheticStandby, Verdict, verify_image};
pub use state::SyntheticState;
