//! Whether a network could serve an ADD now (STATUS), asked once for the VMs that come together.
//! Out of scope: what follows when it could not.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Error, Network, Runtime};
use crate::clock;

/// For so long a network that said yes is not asked again. One that said no is: it is worth no time when it can.
const FRESH: Duration = Duration::from_secs(5);

/// When networks last said yes, by what they are.
#[derive(Debug, Default)]
pub(super) struct Serving(Mutex<HashMap<String, Instant>>);

impl Runtime {
    /// Asks the plugins whether they could serve an ADD (STATUS, since 1.1.0), unless they said so a moment ago.
    ///
    /// # Errors
    /// As of [`status`](Self::status): [`Error::TryAgain`] with the code 50 or 51 when they could not.
    pub async fn serves(&self, network: &Network) -> Result<(), Error> {
        if !network.cni_version.has_gc_and_status() {
            return Ok(());
        }
        let digest = network.digest();
        let now = clock::monotonic();
        let is_fresh = |then: &Instant| now.saturating_duration_since(*then) < FRESH;
        if self.said_yes().get(&digest).is_some_and(is_fresh) {
            return Ok(());
        }
        self.status(network).await?;
        let mut said = self.said_yes();
        said.retain(|_, then| is_fresh(then));
        said.insert(digest, clock::monotonic());
        Ok(())
    }

    fn said_yes(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.serving
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
