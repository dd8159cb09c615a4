//! Linux facilities that the glues and the benchmarks share.
