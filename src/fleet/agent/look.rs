//! When the agent looks at the host: programs, images, secrets, memory and disk space.
//! Out of scope: what it finds ([`super::available`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;

use super::available::{self, HostFacts};
use super::{Agent, Progress};
use crate::clock;
use crate::host::{self, blocking};

/// The interval in which programs, images and disk space are looked at.
const LOOK: Duration = Duration::from_secs(60);

impl Agent {
    /// Begins to look at the host, in an interval and when a group names other files. A file system that hangs must not stop the agent, which
    /// postpones the times in the file of the guard: what was found before is used.
    pub(super) fn begin_look(&self, progress: &mut Progress) {
        let files = self.link.read(|mirror, _| available::files(mirror));
        let now = clock::monotonic();
        let is_current = progress.looked.as_ref().is_some_and(|(at, known)| {
            now.saturating_duration_since(*at) < LOOK && *known == files
        });
        if is_current || progress.looking.is_some() {
            return;
        }
        let (engine, named) = (Arc::clone(&self.engine), files.clone());
        let read = move || Ok(HostFacts::read(&engine, &named));
        let (limit, what) = (
            blocking::FILE_TIMEOUT,
            "the files of the groups of the fleet",
        );
        let key = "fleet-files".to_owned();
        let looking = blocking::limited(1, key, limit, "look for", what, read);
        progress.looking = Some(tokio::spawn(looking));
        progress.looked = Some((now, files));
    }

    pub(super) fn looked(
        &self,
        progress: &mut Progress,
        found: Result<Result<HostFacts, host::Error>, JoinError>,
    ) {
        match found {
            Ok(Ok(found)) => *self.host.lock() = found,
            Ok(Err(error)) => self.note(progress, error.to_string()),
            Err(error) => self.note(progress, format!("looking at the host has ended: {error}")),
        }
    }
}
