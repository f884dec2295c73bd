//! What all requests share.
//! Out of scope: a request.

use std::sync::Arc;
use std::time::Instant;

use super::exec::commands::Commands;
use crate::clock;

/// The state of the agent.
#[derive(Debug)]
pub struct Agent {
    /// The commands of `/exec`.
    pub commands: Arc<Commands>,
    /// When the agent started.
    pub started: Instant,
}

impl Agent {
    /// The state at the start.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            commands: Arc::default(),
            started: clock::monotonic(),
        })
    }
}
