//! Runs the second listener of the API with the settings file, the token and the certificate. Changes apply at once.
//! Out of scope: the listener ([`crate::api_server`]).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{pending, select_all};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::app_state::AppState;
use super::settings_file::POLL_INTERVAL;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api_server::{self, Config, Progress, Report, Target};
use crate::clock;
use crate::doctor;
use crate::intake::Watch;

/// Serves until `stop`. `resync`: the interval of reads of the files without a notification, for links to files in other directories.
pub(super) async fn run(
    target: Target<AppState>,
    configs: watch::Receiver<Option<Config>>,
    resync: Duration,
    stop: CancellationToken,
) {
    let state = Arc::clone(&target.backend);
    let report = move |progress: Progress| {
        let events = state.engine.store.events();
        for news in progress.news {
            let (kind, reason, message) = text(news);
            match kind {
                EventType::Normal => info!("{message}"),
                EventType::Warning => warn!("{message}"),
            }
            events.note(clock::now(), kind, &ObjectRef::Host, reason, &message);
        }
        *state.api_problem.lock() = progress.problem.map(|problem| {
            let is_open = !matches!(problem, Report::Failed(_));
            doctor::api_listener(&text(problem).2, is_open)
        });
    };
    let files = Arc::new(Notify::new());
    let serving = api_server::run(target, configs.clone(), files.clone(), report, stop);
    tokio::select! {
        () = serving => {}
        () = follow(configs, Config::directories, &files, resync) => {}
    }
}

fn text(report: Report) -> (EventType, EventReason, String) {
    let (normal, warning) = (EventType::Normal, EventType::Warning);
    let (changed, failed) = (
        EventReason::ApiListenerChanged,
        EventReason::ApiListenerFailed,
    );
    match report {
        Report::Listening(place) => (normal, changed, format!("API listens on {place}")),
        Report::TokenChanged => {
            let message = "API has another token; connections were closed".to_owned();
            (normal, changed, message)
        }
        Report::CertificateChanged => (normal, changed, "API has another certificate".to_owned()),
        Report::NodesChanged => {
            let message = "API accepts other certificates of nodes".to_owned();
            (normal, changed, message)
        }
        Report::Off => (
            normal,
            changed,
            "API no longer listens beside its socket".to_owned(),
        ),
        Report::Failed(why) => (warning, failed, format!("API does not listen: {why}")),
        Report::Outdated(why) => {
            let message = format!("API keeps its previous certificate: {why}");
            (warning, failed, message)
        }
        Report::Kept(place, why) => {
            let message = format!("API still listens on {place}: {why}");
            (warning, failed, message)
        }
    }
}

/// Notifies of every change in the directories of the files. Never returns while the daemon runs.
pub(super) async fn follow<T: Clone>(
    mut configs: watch::Receiver<Option<T>>,
    directories: impl Fn(&T) -> BTreeSet<PathBuf>,
    files: &Notify,
    resync: Duration,
) {
    let any = |_: &OsStr| true;
    loop {
        let config = configs.borrow_and_update().clone();
        let (mut watches, mut interval) = (Vec::new(), resync);
        for dir in config.iter().flat_map(&directories) {
            match Watch::of(&dir, any).await {
                Ok(watch) => watches.push(watch),
                Err(_) => interval = POLL_INTERVAL,
            }
        }
        // After the watches are set up, so that no change is missed.
        files.notify_one();
        loop {
            let changed = async {
                match watches.is_empty() {
                    true => pending().await,
                    false => {
                        let all = watches.iter_mut().map(|watch| Box::pin(watch.changed()));
                        select_all(all).await.0
                    }
                }
            };
            tokio::select! {
                changed = configs.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => pending().await,
                },
                changed = changed => {
                    files.notify_one();
                    if changed.is_err() {
                        break;
                    }
                }
                () = tokio::time::sleep(interval), if config.is_some() => files.notify_one(),
            }
        }
    }
}
