//! Names of figures that several subcommands share, or that a report looks for.
//!
//! Labels of the figures of `epochs`: `case` (text, unique in a run), `guest_mib`, `dirty_pages`
//! (aimed at, for each epoch; absent where the load is pages a second), `pages_per_second`,
//! `interval_ms` (absent where the rate is searched for), `pattern`, `fabric`, `streams`, `capture`, `copy_workers`, `pinned`, `tracking`
//! (`reported` or `write_protect`), `sparse`. `side` (`primary`, `backup`) where both have one.

/// Checkpoints acked a second.
pub const CHECKPOINTS_PER_SECOND: &str = "checkpoints_per_second";
/// Epochs that began more than a tenth of the interval late, in percent of all.
pub const LATE_EPOCHS_PERCENT: &str = "late_epochs_percent";
/// The highest rate that holds with fewer late epochs than allowed: `--find-max`.
pub const MAX_CHECKPOINTS_PER_SECOND: &str = "max_checkpoints_per_second";
/// The guest's pause. Its limit is one memcpy of the same pages in the same run.
pub const PAUSE_P50_US: &str = "pause_p50_us";
/// See [`PAUSE_P50_US`].
pub const PAUSE_P99_US: &str = "pause_p99_us";
/// Begin of the pause to the ack.
pub const COMMIT_P50_US: &str = "commit_p50_us";
/// See [`COMMIT_P50_US`].
pub const COMMIT_P99_US: &str = "commit_p99_us";
/// From when the epoch was due to its ack, with every epoch counted that a stall left out.
pub const COMMIT_FROM_DUE_P99_US: &str = "commit_from_due_p99_us";
/// One memcpy of an epoch's pages by one thread, from the guest to staging.
pub const MEMCPY_US: &str = "memcpy_us";
/// How much slower the guest's writers are than unprotected in the same run, in percent.
pub const GUEST_SLOWDOWN_PERCENT: &str = "guest_slowdown_percent";
/// Processor seconds by GiB of dirty pages; label `side`.
pub const CPU_S_PER_GIB: &str = "cpu_s_per_gib";
/// Bytes written to the backup by byte of dirty pages.
pub const BYTES_PER_DIRTY_BYTE: &str = "bytes_per_dirty_byte";
/// Pages placed by an epoch, median.
pub const DIRTY_PAGES_P50: &str = "dirty_pages_p50";
/// The first synchronization, in seconds.
pub const SYNC_S: &str = "sync_s";
/// Bandwidth of one-sided writes; labels `fabric`, `size_bytes`.
pub const WRITE_BANDWIDTH: &str = "write_bandwidth";
/// Rate of one-sided writes; labels `fabric`, `size_bytes`.
pub const WRITE_RATE: &str = "write_rate";
/// memcpy; labels `threads`, `size_bytes`, `scattered`.
pub const MEMCPY_BANDWIDTH: &str = "memcpy_bandwidth";
/// Scanning for dirty pages, by GiB of memory; labels `guest_mib`, `dirty_pages`.
pub const PAGE_SCAN_US_PER_GIB: &str = "page_scan_us_per_gib";
/// Scanning and protecting again, by GiB; labels `guest_mib`, `dirty_pages`.
pub const WRITE_PROTECT_US_PER_GIB: &str = "write_protect_us_per_gib";
/// Plain TCP over loopback; labels `streams`, `size_bytes`.
pub const TCP_BANDWIDTH: &str = "tcp_bandwidth";
