//! What a request of a user asks of the daemon, and why it is refused.
//! Out of scope: the requests ([`super::backend`], [`super::fleet_backend`]).

use std::io;

use bytes::Bytes;
use futures::stream::BoxStream;

/// Whether a request changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Changes are made.
    Commit,
    /// The request is validated, and nothing is changed.
    DryRun,
}

/// What a difference contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// The groups, fields and VMs that change.
    Summary,
    /// Also the steps for each VM.
    Steps,
}

/// How an object is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// Guests are requested to power down, and a DEL of CNI plugins that fails is retried.
    Graceful,
    /// VMMs are killed immediately, and a CNI attachment is given up after the first DEL that fails.
    Forced,
}

/// Where the output of a VM begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStart {
    /// At the begin of the log.
    Beginning,
    /// At the last lines of the existing output.
    LastLines(usize),
    /// At this offset; at the begin if the log is shorter.
    Offset(u64),
}

/// The output of a VM.
pub struct LogOutput {
    /// The offset in the log at which it begins.
    pub offset: u64,
    /// The output.
    pub bytes: BoxStream<'static, io::Result<Bytes>>,
}

/// Whether a stream continues with new items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamMode {
    /// The stream ends after the existing items.
    Once,
    /// The stream continues with new items.
    Follow,
}

/// Why the daemon refused a request, with the HTTP status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 404: the object, such as `vm/sandbox-9`, does not exist.
    #[error("{0} not found")]
    NotFound(String),
    /// 404, with a similar object that exists.
    #[error("{0} not found; did you mean {1}?")]
    NotFoundWithSuggestion(String, String),
    /// 422: the request is invalid; one entry per cause, with file and line if there is one.
    #[error("invalid request")]
    Invalid(Vec<String>),
    /// 409: the object has another owner, or its state does not permit the request; one entry per cause.
    #[error("the request conflicts with the current state")]
    Conflict(Vec<String>),
    /// 410: the version of the request is too old, or of another run of the daemon.
    #[error("{0}")]
    Gone(String),
    /// 500: an internal error with its causes.
    #[error("{0}")]
    Failed(String),
}
