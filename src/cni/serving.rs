//! Whether a network can serve an ADD now (STATUS). A success is cached for VMs that start at about the same time.
//! Out of scope: what the caller does if the network cannot.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::{Error, LIMITED, Network, Runtime};
use crate::clock;

/// How long a STATUS success is cached. A failure is not cached, so that a VM does not wait once the network can serve an ADD.
const CACHE_DURATION: Duration = Duration::from_secs(5);

/// The last STATUS of each network, by the digest of its configuration.
#[derive(Debug, Default)]
pub(super) struct StatusCache(Mutex<HashMap<String, LastStatus>>);

#[derive(Debug)]
enum LastStatus {
    /// The time of a success.
    Success(Instant),
    /// The error of the plugin: limited connectivity (code 51).
    Limited(String),
}

impl Runtime {
    /// Calls STATUS (1.1.0 and later), which reports whether the plugins can serve an ADD, unless a success is cached.
    ///
    /// # Errors
    /// As of [`status`](Self::status): [`Error::TryAgain`] with the code 50 or 51 if the plugins cannot serve an ADD.
    pub async fn check_serving(&self, network: &Network) -> Result<(), Error> {
        if !network.cni_version.has_gc_and_status() {
            return Ok(());
        }
        let digest = network.digest();
        let is_fresh = |last: &LastStatus| match last {
            LastStatus::Success(time) => {
                clock::monotonic().saturating_duration_since(*time) < CACHE_DURATION
            }
            LastStatus::Limited(_) => false,
        };
        if self.last_status().get(&digest).is_some_and(is_fresh) {
            return Ok(());
        }
        let status = self.status(network).await;
        let mut all = self.last_status();
        all.retain(|_, last| matches!(last, LastStatus::Limited(_)) || is_fresh(last));
        match &status {
            Ok(_) => drop(all.insert(digest, LastStatus::Success(clock::monotonic()))),
            Err(Error::TryAgain(failure)) if failure.code == LIMITED => {
                all.insert(digest, LastStatus::Limited(failure.to_string()));
            }
            Err(_) => drop(all.remove(&digest)),
        }
        status.map(drop)
    }

    /// Why attached containers may have limited connectivity, as the last STATUS reported it (code 51).
    pub fn limited_connectivity(&self, network: &Network) -> Option<String> {
        let all = self.last_status();
        // A digest costs more than this check, and the table is usually empty.
        let is_limited = |last: &LastStatus| matches!(last, LastStatus::Limited(_));
        if !all.values().any(is_limited) {
            return None;
        }
        match all.get(&network.digest())? {
            LastStatus::Limited(why) => Some(why.clone()),
            LastStatus::Success(_) => None,
        }
    }

    fn last_status(&self) -> MutexGuard<'_, HashMap<String, LastStatus>> {
        self.status_cache.0.lock()
    }
}
