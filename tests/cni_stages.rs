//! CNI mode's two stages on the real kernel: Debian's plugins, a guest at the TAP, crashes before every step.
//! Out of scope: the runtime alone (`tests/cni.rs`); plans (`tests/plans.rs`, `tests/laws.rs`).

mod support;

#[path = "cni_stages/asked.rs"]
mod asked;
#[path = "cni_stages/crash.rs"]
mod crash;
#[path = "cni_stages/drift.rs"]
mod drift;
#[path = "cni_stages/failures.rs"]
mod failures;
#[path = "cni_stages/ground.rs"]
mod ground;
#[path = "cni_stages/keep.rs"]
mod keep;
#[path = "cni_stages/life.rs"]
mod life;
#[path = "cni_stages/refused.rs"]
mod refused;
#[path = "cni_stages/results.rs"]
mod results;
#[path = "cni_stages/undo.rs"]
mod undo;
