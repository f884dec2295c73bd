//! The CNI runtime, against a plugin that writes down what it hears and against Debian's real ones.
//! Out of scope: what VMs do with it.

#[path = "cni/cache.rs"]
mod cache;
#[path = "cni/configs.rs"]
mod configs;
#[path = "cni/debian.rs"]
mod debian;
#[path = "cni/failures.rs"]
mod failures;
#[path = "cni/manners.rs"]
mod manners;
#[path = "cni/requests.rs"]
mod requests;
#[path = "cni/stage.rs"]
mod stage;
mod support;
#[path = "cni/sweep.rs"]
mod sweep;
#[path = "cni/turns.rs"]
mod turns;
#[path = "cni/versions.rs"]
mod versions;
