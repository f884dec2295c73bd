//! Why a request was not executed.
//! Out of scope: HTTP statuses.

use super::super::kv;

/// The error of a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object, such as `hostgroup/web`, does not exist.
    #[error("{0} not found")]
    NotFound(String),
    /// The request is invalid; one entry per cause.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// The state of the fleet does not permit the request; one entry per cause.
    #[error("{}", .0.join("; "))]
    Conflict(Vec<String>),
    /// Other requests have changed the same objects again and again. Nothing was changed.
    #[error("other requests change the same objects at the same time: try again")]
    Busy,
    /// The user of this daemon in etcd may not do it. Nothing was changed.
    #[error(
        "etcd does not permit the user of this node to change {what}; use the daemon of a control node ({source})"
    )]
    Denied {
        /// What: `groups`, `nodes`.
        what: &'static str,
        /// The error of etcd.
        source: Box<kv::Error>,
    },
    /// It is not known whether etcd has committed the change, now or later.
    #[error("{0}; try again: a change that has been made already is not made twice")]
    Unknown(Box<kv::Error>),
    /// etcd does not answer, or refuses the request.
    #[error("{0}")]
    Etcd(Box<kv::Error>),
    /// The object cannot be expressed in JSON.
    #[error("cannot encode an object of the fleet: {0}")]
    Encode(#[from] serde_json::Error),
}

impl From<kv::Error> for Error {
    fn from(error: kv::Error) -> Self {
        match error {
            error @ kv::Error::OutcomeUnknown { .. } => Self::Unknown(Box::new(error)),
            error => Self::Etcd(Box::new(error)),
        }
    }
}

impl Error {
    /// The error of a transaction that changes `what`.
    pub(super) fn of_change(error: kv::Error, what: &'static str) -> Self {
        match error {
            error @ kv::Error::Denied { .. } => Self::Denied {
                what,
                source: Box::new(error),
            },
            error => error.into(),
        }
    }

    /// A conflict with one cause.
    pub(super) fn conflict(cause: impl Into<String>) -> Self {
        Self::Conflict(vec![cause.into()])
    }
}
