//! Disks: their plans' laws, real copies on file systems of a small size, and never two writers.
//! Out of scope: guests; the syntax of manifests (`tests/manifests.rs`).

#[path = "disks/choices.rs"]
mod choices;
#[path = "disks/copies.rs"]
mod copies;
#[path = "support/descriptors.rs"]
mod descriptors;
#[path = "disks/holds.rs"]
mod holds;
#[path = "disks/laws.rs"]
mod laws;
#[path = "disks/support.rs"]
mod support;
