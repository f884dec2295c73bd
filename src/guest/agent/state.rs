//! What all requests share.
//! Out of scope: a request.

use std::sync::Arc;
use std::time::Instant;

use super::exec::commands::Commands;
use super::provision::provisioner::Provisioner;
use crate::clock;

/// The state of the agent.
#[derive(Debug)]
pub struct Agent {
    /// The commands of `/exec`.
    pub commands: Arc<Commands>,
    /// When the agent started.
    pub started: Instant,
    /// Provisions the guest; `None`: the agent does not run in one.
    pub provisioner: Option<Arc<Provisioner>>,
    /// Whether it runs in the initrd of a guest with a root file system that was not found yet.
    pub in_initrd: bool,
}

impl Agent {
    /// The state at the start.
    pub fn new(provisioner: Option<Arc<Provisioner>>, in_initrd: bool) -> Arc<Self> {
        Arc::new(Self {
            provisioner,
            in_initrd,
            commands: Arc::default(),
            started: clock::monotonic(),
        })
    }
}
