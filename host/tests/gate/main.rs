//! Output gates on real taps and bridges, in network namespaces of their own. They need root.

mod redirect;
mod world;
