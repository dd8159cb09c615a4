//! What was measured, phase by phase, in HDR histograms.
