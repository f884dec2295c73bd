//! The pipeline's laws: random interleavings of acquiring, releasing and deleting, and the assignment of blocks.
//! Out of scope: what a stage does; the disk (`tests/store.rs`).

#[path = "pipeline/claims.rs"]
mod claims;
#[path = "pipeline/leases.rs"]
mod leases;
#[path = "pipeline/on_demand.rs"]
mod on_demand;
#[path = "pipeline/stages.rs"]
mod stages;
mod support;
