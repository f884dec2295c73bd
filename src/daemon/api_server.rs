//! Runs the second listener of the API with the settings file, the token and the certificate. Changes apply at once.
//! Out of scope: the listener ([`crate::api_server`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::app_state::AppState;
use super::file_watch::follow;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api_server::{self, Config, Progress, Report, Target};
use crate::clock;
use crate::doctor;

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
