//! Queries of `/v1`.
//! Out of scope: the requests.

use serde::Deserialize;
use utoipa::IntoParams;

use super::backend::{Deletion, Detail, Effect, StreamMode};
use crate::api::event::ObjectRef;

/// Whether something is changed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DryRunQuery {
    /// Change nothing.
    #[serde(default)]
    pub(super) dry_run: bool,
}

impl DryRunQuery {
    pub(super) fn effect(&self) -> Effect {
        match self.dry_run {
            true => Effect::DryRun,
            false => Effect::Commit,
        }
    }
}

/// How detailed a difference is.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StepsQuery {
    /// The steps of each object, too.
    #[serde(default = "with_steps")]
    pub(super) steps: bool,
}

fn with_steps() -> bool {
    true
}

impl StepsQuery {
    pub(super) fn detail(&self) -> Detail {
        match self.steps {
            true => Detail::Steps,
            false => Detail::Summary,
        }
    }
}

/// Which object is meant, if another one may have its name by now.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct UidQuery {
    /// Its uid. The request fails with status 409 if the object of that name has another one.
    #[serde(default)]
    pub(super) uid: Option<String>,
}

/// How something is deleted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ForceQuery {
    /// Do not wait for a guest to power down.
    #[serde(default)]
    pub(super) force: bool,
}

impl ForceQuery {
    pub(super) fn deletion(&self) -> Deletion {
        match self.force {
            true => Deletion::Forced,
            false => Deletion::Graceful,
        }
    }
}

/// Whether a response ends.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct FollowQuery {
    /// Do not end: send what follows.
    #[serde(default)]
    pub(super) follow: bool,
}

impl FollowQuery {
    pub(super) fn span(self) -> StreamMode {
        match self.follow {
            true => StreamMode::Follow,
            false => StreamMode::Once,
        }
    }
}

/// Which part of a log.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LinesQuery {
    /// The number of last lines.
    #[serde(default)]
    pub(super) lines: Option<usize>,
    /// The offset in the log to begin at; wins over `lines`.
    #[serde(default)]
    pub(super) offset: Option<u64>,
}

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ObjectQuery {
    /// The events of this object, such as `vm/x`.
    #[serde(default)]
    pub(super) object: Option<ObjectRef>,
}

/// Which packet.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PacketQuery {
    /// `DST[:PORT[/PROTO]]`, such as `1.2.3.4:443/tcp`.
    pub(super) packet: String,
}
