//! State shared by the handlers of all connections.
//! Out of scope: the handlers (`answers`, `streams`).

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::fleet::Slot;
use super::intake_loop::IntakeLoop;
use super::peers::Peers;
use super::watches::Watches;
use crate::api::meta::Timestamp;
use crate::api::view::Check;
use crate::cli::sliced::Args;
use crate::clock;
use crate::engine::Engine;
use crate::status::StatusBuilder;

/// A check that fails as long as the settings of the second listener are not in effect.
pub(super) type ApiProblem = Arc<Mutex<Option<Check>>>;

/// State shared by the handlers of all connections.
pub struct AppState {
    pub(super) engine: Arc<Engine>,
    pub(super) intake: Arc<IntakeLoop>,
    pub(super) status_builder: StatusBuilder,
    /// The log of changes, shared by all listeners: a version of one is valid for the others.
    pub(super) watches: Arc<Watches>,
    pub(super) config_dir: PathBuf,
    pub(super) state_dir: PathBuf,
    pub(super) started_at: Timestamp,
    /// Why the settings of the second listener are not in effect, for `doctor`.
    pub(super) api_problem: ApiProblem,
    /// The connection to the fleet.
    pub(super) fleet: Arc<Slot>,
    /// The other nodes, as the API sees them.
    pub(super) peers: Arc<Peers>,
}

impl AppState {
    /// Creates the state for a daemon that was started with `args`.
    pub(super) fn new(
        engine: Arc<Engine>,
        intake: Arc<IntakeLoop>,
        watches: Arc<Watches>,
        api_problem: ApiProblem,
        fleet: Arc<Slot>,
        peers: Arc<Peers>,
        args: &Args,
    ) -> Self {
        Self {
            status_builder: StatusBuilder {
                instance: engine.instance.clone(),
                run_dir: engine.run_dir.clone(),
            },
            config_dir: args.config_dir.clone(),
            state_dir: args.state_dir.clone(),
            started_at: clock::now(),
            engine,
            intake,
            watches,
            api_problem,
            fleet,
            peers,
        }
    }
}
