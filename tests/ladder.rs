//! The pipeline's laws: random interleavings of acquiring, releasing and deleting, and the assignment of blocks.
//! Out of scope: what a stage does; the disk (`tests/store.rs`).

#[path = "ladder/claims.rs"]
mod claims;
#[path = "ladder/leases.rs"]
mod leases;
#[path = "ladder/on_demand.rs"]
mod on_demand;
#[path = "ladder/rungs.rs"]
mod rungs;
mod support;
