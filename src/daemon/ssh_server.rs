//! Runs the SSH server with the settings file. Changes apply at once.
//! Out of scope: the server ([`crate::ssh`]), reading the file (`settings_file`).

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::app_state::AppState;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::clock;
use crate::ssh::{self, Config, Report};

/// Serves until `stop`.
pub(super) async fn run(
    state: AppState,
    configs: watch::Receiver<Option<Config>>,
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
    ssh::run(state, configs, report, stop).await;
}
