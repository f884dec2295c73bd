//! The ladder's laws: random interleavings of taking, leaving and deleting, and who gets which block.
//! Out of scope: what a rung does; the disk (`tests/store.rs`).

#[path = "ladder/claims.rs"]
mod claims;
#[path = "ladder/leases.rs"]
mod leases;
#[path = "ladder/on_demand.rs"]
mod on_demand;
#[path = "ladder/rungs.rs"]
mod rungs;
mod support;
