//! Why a request of a client failed.
//! Out of scope: requests ([`super::client`]).

use std::io;
use std::path::PathBuf;

use super::access::{connect_error, socket_access};
use super::endpoint::Url;
use crate::api::view::Problem;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens there.
    #[error(
        "cannot connect to sliced at {at}: {}. Is it running?",
        connect_error(source)
    )]
    Unreachable {
        /// Path of the socket, or the URL.
        at: Url,
        /// The error of `connect(2)`. Not a `source()`, since the message contains it.
        source: io::Error,
    },
    /// The user may not connect to the socket.
    #[error("permission denied: {}", socket_access(.0))]
    PermissionDenied(PathBuf),
    /// The connection was closed, or the response is invalid.
    #[error("connection to sliced at {at} failed: {why}")]
    ConnectionFailed {
        /// Path of the socket, or the URL.
        at: Url,
        /// The error.
        why: String,
    },
    /// The daemon requires a token.
    #[error(
        "sliced at {0} requires a token; use --token-file, or set SLICE_TOKEN_FILE or SLICE_TOKEN"
    )]
    TokenRequired(Url),
    /// The daemon refused the token.
    #[error("sliced at {0} refused the token")]
    TokenRefused(Url),
    /// The connection to the agent in a guest was closed within a response.
    #[error("the connection to the agent was closed unexpectedly")]
    AgentClosed,
    /// What the agent in a guest has sent is invalid.
    #[error("invalid response of the agent: {0}")]
    InvalidAgent(String),
    /// The daemon refused the request.
    #[error("{}", causes(.problem).join("; "))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The response body.
        problem: Problem,
    },
}

impl ClientError {
    /// Whether the daemon reported that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Whether the same request may succeed later although nobody changes anything: the daemon is restarted, or etcd elects a leader.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::ConnectionFailed { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            _ => false,
        }
    }

    /// Whether no daemon listens on the socket.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Messages for users, one per cause.
    pub fn causes(&self) -> Vec<String> {
        match self {
            Self::Refused { problem, .. } => causes(problem),
            other => vec![other.to_string()],
        }
    }
}

/// The causes of a refusal; without any, the error is the cause.
fn causes(problem: &Problem) -> Vec<String> {
    match problem.problems.is_empty() {
        true => vec![problem.error.clone()],
        false => problem.problems.clone(),
    }
}
