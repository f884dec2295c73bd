//! Disks: their plans' laws, real copies on file systems of a small size, and never two writers.
//! Out of scope: guests; the syntax of manifests (`tests/pure/manifests.rs`).

mod choices;
mod copies;
mod fixture;
mod holds;
mod laws;
