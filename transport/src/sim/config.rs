//! What a simulated network does to those who use it.

/// How a simulated network behaves. Everything is drawn from the network's seed.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Data streams of each connection; default 2, at least 1. Items of one stream keep the
    /// order of its markers, streams have no order among each other.
    pub streams: usize,
    /// Chance in percent that a step on a write moves only a random part of it; default 30.
    pub partial_percent: u32,
    /// Chance in percent that a step on a write reads local memory now and places the bytes in a
    /// later step (completion before placement, as over TCP); default 30. Otherwise memory is
    /// read and placed in the same step.
    pub early_departure_percent: u32,
    /// Chance in percent that a step first holds back the lane (one stream, or the messages of
    /// one direction) it would have served; default 5.
    pub hold_percent: u32,
    /// Longest time a lane is held back, in steps; default 40.
    pub hold_steps_max: u64,
    /// Chance in a million per step that a random connection is cut
    /// (see [`SimNetwork::cut`](super::SimNetwork::cut)); default 0.
    pub cut_per_million: u32,
    /// Chance in a million per step that a random side of a random connection falls silent and
    /// both sides notice it later as `Silent`; default 0.
    pub silence_per_million: u32,
    /// Longest time from a fault until a side notices, in steps; default 100.
    pub notice_steps_max: u64,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            streams: 2,
            partial_percent: 30,
            early_departure_percent: 30,
            hold_percent: 5,
            hold_steps_max: 40,
            cut_per_million: 0,
            silence_per_million: 0,
            notice_steps_max: 100,
        }
    }
}
