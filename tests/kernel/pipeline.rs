//! The pipeline's laws: random interleavings of acquiring, releasing and deleting, and the assignment of blocks.
//! Out of scope: what a stage does; the disk (`tests/kernel/store.rs`).

mod claims;
mod foresee;
mod leases;
mod on_demand;
mod stages;
