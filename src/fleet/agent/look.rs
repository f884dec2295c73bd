//! When the agent looks at the host: programs, files of groups, secrets, memory and disk space.
//! Out of scope: what it finds ([`super::available`]).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::task::JoinError;
use tracing::warn;

use super::available::{self, Files, HostFacts};
use super::{Agent, Progress};
use crate::api::allowed::Purpose;
use crate::clock;
use crate::engine::Engine;
use crate::host::{self, blocking};

/// The interval in which programs, files and disk space are looked at.
const LOOK: Duration = Duration::from_secs(60);
/// The timeout of a look at one file. The leader waits for 5 s.
const FILE_TIMEOUT: Duration = Duration::from_secs(3);
/// Files that are looked for at the same time.
const CONCURRENCY: usize = 8;

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
        let before = self.host.lock().files.clone();
        let look = look(Arc::clone(&self.engine), files.clone(), before);
        progress.looking = Some(tokio::spawn(look));
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

async fn look(
    engine: Arc<Engine>,
    files: BTreeSet<(Purpose, PathBuf)>,
    before: Files,
) -> Result<HostFacts, host::Error> {
    let access = engine.processes.files().clone();
    let read = move || Ok(HostFacts::read(&engine));
    let (limit, key) = (blocking::FILE_TIMEOUT, "fleet-host".to_owned());
    let mut host = blocking::limited(1, key, limit, "read", "what this node has", read).await?;
    let looks = futures::stream::iter(files).map(|(purpose, path)| {
        let (access, named) = (access.clone(), path.clone());
        let look = move || Ok(available::file_size(&access, purpose, &named));
        let shown = path.display().to_string();
        let key = format!("fleet-file {shown}");
        let found = blocking::limited(1, key, FILE_TIMEOUT, "look for", shown, look);
        async move { (path, found.await) }
    });
    let mut looks = std::pin::pin!(looks.buffer_unordered(CONCURRENCY));
    while let Some((path, found)) = looks.next().await {
        if let Err(error) = &found {
            warn!(%error, "a file of a group of the fleet is not looked for");
        }
        available::add(&mut host.files, &before, path, found.ok());
    }
    Ok(host)
}
