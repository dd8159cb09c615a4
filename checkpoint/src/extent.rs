//! Runs of consecutive pages, and where they go.

use crate::ids::{FrameIndex, PageIndex};

/// A run of consecutive pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The first page.
    pub first: PageIndex,
    /// How many.
    pub pages: u64,
}

/// A run of consecutive pages and the run of consecutive frames they are placed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Transfer {
    /// The first page.
    pub first_page: PageIndex,
    /// The first frame.
    pub first_frame: FrameIndex,
    /// How many.
    pub pages: u64,
}
