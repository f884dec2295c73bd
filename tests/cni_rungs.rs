//! CNI mode's two rungs on the real kernel: Debian's plugins, a guest at the TAP, crashes before every step.
//! Out of scope: the runtime alone (`tests/cni.rs`); plans (`tests/plans.rs`, `tests/laws.rs`).

mod support;

#[path = "cni_rungs/asked.rs"]
mod asked;
#[path = "cni_rungs/crash.rs"]
mod crash;
#[path = "cni_rungs/drift.rs"]
mod drift;
#[path = "cni_rungs/failures.rs"]
mod failures;
#[path = "cni_rungs/ground.rs"]
mod ground;
#[path = "cni_rungs/keep.rs"]
mod keep;
#[path = "cni_rungs/life.rs"]
mod life;
#[path = "cni_rungs/refused.rs"]
mod refused;
#[path = "cni_rungs/results.rs"]
mod results;
#[path = "cni_rungs/undo.rs"]
mod undo;
