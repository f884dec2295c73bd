//! What all connections share, and what the log needs of each.
//! Out of scope: connections.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use super::admission::Admission;
use crate::api::ssh_key::SshKey;
use crate::wire::rates::LogRate;

/// What all connections share.
pub struct Shared<B> {
    /// The daemon.
    pub backend: Arc<B>,
    /// The keys that may log in now.
    pub keys: RwLock<Arc<[SshKey]>>,
    /// All connections.
    pub admission: Arc<Admission>,
    /// How often failed logins are logged.
    pub log_rate: LogRate,
    /// Cancelled when the daemon stops.
    pub stop: CancellationToken,
}

/// What is known of the login of a connection.
#[derive(Debug, Default)]
pub struct Attempt {
    /// Whether a key has logged in.
    pub succeeded: bool,
    /// The fingerprint of the last key that was refused.
    pub refused: Option<String>,
}
