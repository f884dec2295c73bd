//! Follows the settings file: the servers that it configures get their settings at every change.
//! Out of scope: the servers.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use super::{fleet, settings};
use crate::api_server;
use crate::cli::sliced::Args;
use crate::intake::Watch;
use crate::ssh;

/// The interval between reads of a settings file in a directory that cannot be watched.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The settings of the servers that follow the file.
pub(super) struct Followers {
    pub(super) ssh: watch::Sender<Option<ssh::Config>>,
    pub(super) api: watch::Sender<Option<api_server::Config>>,
    pub(super) fleet: watch::Sender<Option<fleet::Config>>,
    pub(super) fleet_files: watch::Sender<Option<api_server::FleetFiles>>,
}

/// Reads the settings file at every change. Never returns.
pub(super) async fn follow(args: Args, followers: Followers) {
    let dir = args.settings.parent().unwrap_or(Path::new("/"));
    let any = |_: &OsStr| true;
    let mut last_error = None;
    loop {
        let mut watch = Watch::of(dir, any).await.ok();
        loop {
            // After the watch is set up, so that no change is missed.
            read(&args, &followers, &mut last_error).await;
            let Some(watch) = &mut watch else {
                tokio::time::sleep(POLL_INTERVAL).await;
                break;
            };
            if watch.changed().await.is_err() {
                break;
            }
        }
    }
}

/// A file that is invalid changes nothing: the settings before stay in effect.
async fn read(args: &Args, followers: &Followers, last_error: &mut Option<String>) {
    let args = args.clone();
    let reading = tokio::task::spawn_blocking(move || settings::read_all(&args));
    let error = match reading.await {
        Ok(Ok(read)) => {
            replace(&followers.ssh, read.ssh);
            replace(&followers.api, read.api);
            replace(&followers.fleet, read.fleet);
            replace(&followers.fleet_files, read.fleet_files);
            None
        }
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(error) = error
        .as_ref()
        .filter(|error| last_error.as_ref() != Some(error))
    {
        warn!(%error, "the settings file is invalid; the servers keep their settings");
    }
    *last_error = error;
}

fn replace<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|current| {
        let is_other = *current != value;
        *current = value;
        is_other
    });
}
