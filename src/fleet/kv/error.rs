//! Why a request has failed.
//! Out of scope: which responses mean what ([`super::answer`]).

use std::error::Error as _;
use std::fmt;
use std::io;
use std::time::Duration;

use super::message::Request;
use super::types::{ClusterId, LeaseId, Revision};
use super::url::Url;

/// The error of a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No endpoint has answered by the deadline. A write was certainly not applied.
    #[error("no endpoint of etcd answers; the last was {endpoint}: {cause}")]
    Unreachable {
        /// The endpoint that was tried last.
        endpoint: Url,
        /// What it did.
        cause: Cause,
    },
    /// The answer to a write was lost. It may have been applied, and may be applied later.
    #[error("it is unknown whether {endpoint} has applied the {request}: {cause}")]
    OutcomeUnknown {
        /// The endpoint.
        endpoint: Url,
        /// The write.
        request: Request,
        /// Why there is no answer.
        cause: Cause,
    },
    /// A watch has ended; it can be continued at another endpoint.
    #[error("the watch at {endpoint} has ended: {cause}")]
    WatchEnded {
        /// The endpoint.
        endpoint: Url,
        /// What it did.
        cause: Cause,
    },
    /// The user may not do this. Of a client without a user: it needs one.
    #[error("{endpoint} denies this {request} to the user of this client")]
    Denied {
        /// The endpoint.
        endpoint: Url,
        /// The request.
        request: Request,
    },
    /// The user, its password or the certificate is not accepted, or the cluster has no users although one is configured.
    #[error("{endpoint} does not authenticate this client: {cause}")]
    Unauthenticated {
        /// The endpoint.
        endpoint: Url,
        /// The reason that etcd gave, or the failure of the connection.
        cause: Cause,
    },
    /// The revision is not in the store any more: list again.
    #[error("{endpoint} has compacted the requested revision{}", at.map(|at| format!("; the oldest is {at}")).unwrap_or_default())]
    Compacted {
        /// The endpoint.
        endpoint: Url,
        /// The oldest revision that can be read. `None`: etcd did not report it, as in the answer to a list.
        at: Option<Revision>,
    },
    /// The revision is not in the store yet: the store has another history than the caller knows.
    #[error(
        "{endpoint} has not reached the requested revision: its store was replaced or restored"
    )]
    FutureRevision {
        /// The endpoint.
        endpoint: Url,
    },
    /// Two parts of an answer are of different clusters.
    #[error("{endpoint} is of cluster {found}, expected {expected}")]
    ClusterChanged {
        /// The endpoint.
        endpoint: Url,
        /// The cluster of the earlier parts.
        expected: ClusterId,
        /// The cluster of this part.
        found: ClusterId,
    },
    /// The lease has expired or was revoked.
    #[error("{endpoint} has no such lease")]
    LeaseNotFound {
        /// The endpoint.
        endpoint: Url,
        /// The lease, if the request has one.
        lease: Option<LeaseId>,
    },
    /// etcd refuses the request, whoever sends it.
    #[error("{endpoint} refuses this {request}: {cause}")]
    Invalid {
        /// The endpoint.
        endpoint: Url,
        /// The request.
        request: Request,
        /// The reason that etcd gave.
        cause: Cause,
    },
    /// A transaction has more operations than etcd accepts. Nothing was sent.
    #[error("a transaction has {found} {part}; etcd accepts {limit}")]
    TooManyOps {
        /// `compares` or `operations`.
        part: &'static str,
        /// Their number.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The answer is larger than this client accepts.
    #[error("{endpoint} answers the {request} with more than {limit} bytes")]
    TooLarge {
        /// The endpoint.
        endpoint: Url,
        /// The request.
        request: Request,
        /// The limit in bytes.
        limit: usize,
    },
    /// The answer to a read is not one of etcd.
    #[error("the answer of {endpoint} to this {request} is invalid: {cause}")]
    Malformed {
        /// The endpoint.
        endpoint: Url,
        /// The request.
        request: Request,
        /// What is wrong with the response.
        cause: Malformed,
    },
    /// The request cannot be expressed in JSON. Nothing was sent.
    #[error("cannot encode a request to etcd: {0}")]
    Encode(#[from] serde_json::Error),
}

/// What an endpoint did.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// There is no TCP connection.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// There is no TLS connection: a certificate is not trusted or has expired.
    #[error("no TLS connection: {0}")]
    Tls(#[source] tokio_rustls::rustls::Error),
    /// It did not answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection ended before the answer.
    #[error("connection closed unexpectedly{}", chain(.0))]
    Closed(#[source] hyper::Error),
    /// A stream ended that etcd should not end.
    #[error("the stream ended")]
    Ended,
    /// An error of etcd.
    #[error("{message} ({code})")]
    Etcd {
        /// The code.
        code: Code,
        /// The message, of at most 300 characters.
        message: String,
    },
    /// A status of HTTP without an error of etcd.
    #[error("HTTP status {status}: {text}")]
    Status {
        /// The status.
        status: u16,
        /// The body, of at most 300 characters.
        text: String,
    },
    /// It is not an answer of etcd.
    #[error("invalid answer: {0}")]
    Malformed(#[from] Malformed),
}

/// The texts of an error and of its sources.
fn chain(error: &hyper::Error) -> String {
    let mut text = format!(": {error}");
    let mut source = error.source();
    while let Some(error) = source {
        let io = error.downcast_ref::<io::Error>();
        // rustls has a text of several lines for it.
        if io.is_some_and(|io| io.kind() == io::ErrorKind::UnexpectedEof) {
            text.push_str(": unexpected end of file");
            break;
        }
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

impl Cause {
    /// Whether the next attempt fails in the same way unless somebody changes the configuration.
    pub(super) fn is_permanent(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

/// Why an answer is not one of etcd.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or not of the expected type.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Too long.
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    /// A field is missing.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A field has a value that it cannot have.
    #[error("its {0} is invalid")]
    Field(&'static str),
}

/// The codes of gRPC that etcd uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 1
    Canceled,
    /// 3
    InvalidArgument,
    /// 4
    DeadlineExceeded,
    /// 5
    NotFound,
    /// 7
    PermissionDenied,
    /// 8
    ResourceExhausted,
    /// 9
    FailedPrecondition,
    /// 11
    OutOfRange,
    /// 12
    Unimplemented,
    /// 13
    Internal,
    /// 14
    Unavailable,
    /// 16
    Unauthenticated,
    /// 2, and all that etcd does not use.
    Unknown,
}

impl Code {
    /// The code of this number.
    pub(super) fn of(number: u32) -> Self {
        match number {
            1 => Self::Canceled,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            16 => Self::Unauthenticated,
            _ => Self::Unknown,
        }
    }
}

impl Code {
    /// The code and the message of an error that gRPC has formatted: `rpc error: code = NotFound desc = no such lease`.
    pub(super) fn parse(text: &str) -> Option<(Self, &str)> {
        let (name, message) = text
            .strip_prefix("rpc error: code = ")?
            .split_once(" desc = ")?;
        let all = (0..=16).map(Self::of);
        let code = all.into_iter().find(|code| code.to_string() == name);
        Some((code.unwrap_or(Self::Unknown), message))
    }
}

/// As gRPC names it: `PermissionDenied`.
impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
