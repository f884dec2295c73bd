//! CNI mode's two stages on the real kernel: Debian's plugins, a guest at the TAP, crashes before every step.
//! Out of scope: the runtime alone (`tests/kernel/cni.rs`); plans (`tests/pure/plans.rs`, `tests/pure/laws.rs`).

mod crash;
mod drift;
mod failures;
mod fixture;
mod keep;
mod life;
mod refused;
mod requests;
mod results;
mod undo;
