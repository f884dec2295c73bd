//! Runs the SSH server with the settings file. Changes apply at once.
//! Out of scope: the server ([`crate::ssh`]).

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::app_state::AppState;
use super::settings;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::cli::sliced::Args;
use crate::clock;
use crate::intake::Watch;
use crate::ssh::{self, Config, Report};

/// The interval between reads of a settings file in a directory that cannot be watched.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Serves until `stop`.
pub(super) async fn run(
    state: AppState,
    args: Args,
    initial: Option<Config>,
    stop: CancellationToken,
) {
    let engine = state.engine.clone();
    let report = move |report: Report| {
        let (kind, reason, message) = match report {
            Report::Listening(address, fingerprint) => {
                let message = format!("SSH server listens on {address}, host key {fingerprint}");
                info!(%address, host_key = %fingerprint, "SSH server listens");
                (EventType::Normal, EventReason::SshServerChanged, message)
            }
            Report::Failed(why) => {
                warn!(error = %why, "SSH server does not listen");
                let message = format!("SSH server does not listen: {why}");
                (EventType::Warning, EventReason::SshServerFailed, message)
            }
            Report::Off => {
                info!("SSH server no longer listens");
                let message = "SSH server no longer listens".to_owned();
                (EventType::Normal, EventReason::SshServerChanged, message)
            }
        };
        let (events, now) = (engine.store.events(), clock::now());
        events.note(now, kind, &ObjectRef::Host, reason, &message);
    };
    let (configs, changed) = watch::channel(initial);
    tokio::select! {
        () = ssh::run(state, changed, report, stop) => {}
        () = follow(&args, &configs) => {}
    }
}

/// Reads the settings file at every change. Never returns.
async fn follow(args: &Args, configs: &watch::Sender<Option<Config>>) {
    let dir = args.settings.parent().unwrap_or(Path::new("/"));
    let any = |_: &OsStr| true;
    let mut last_error = None;
    loop {
        let mut watch = Watch::of(dir, any).await.ok();
        loop {
            // After the watch is set up, so that no change is missed.
            read(args, configs, &mut last_error).await;
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
async fn read(
    args: &Args,
    configs: &watch::Sender<Option<Config>>,
    last_error: &mut Option<String>,
) {
    let args = args.clone();
    let reading = tokio::task::spawn_blocking(move || settings::read_all(&args));
    let error = match reading.await {
        Ok(Ok(read)) => {
            configs.send_if_modified(|current| {
                let is_other = *current != read.ssh;
                *current = read.ssh;
                is_other
            });
            None
        }
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(error) = error
        .as_ref()
        .filter(|error| last_error.as_ref() != Some(error))
    {
        warn!(%error, "the settings file is invalid; the SSH server keeps its settings");
    }
    *last_error = error;
}
