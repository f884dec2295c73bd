//! The body of an error of the REST API.
//! Out of scope: that of `/v1` ([`super::problem`]).

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of an error.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct ErrorBody {
    /// What is wrong, one sentence for each cause.
    #[schema(example = "vm/sbox-x4k2p not found")]
    pub(super) error: String,
    /// The kind of error, for programs.
    #[schema(example = "not_found")]
    pub(super) code: ErrorCode,
}

/// The kinds of errors. They are stable; the sentences are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ErrorCode {
    /// The request is invalid, or exceeds a limit of the group.
    InvalidRequest,
    /// The token is missing or wrong.
    Unauthorized,
    /// The client may not do this, or the object is protected.
    Forbidden,
    /// There is no such object or path.
    NotFound,
    /// The path has no such method.
    MethodNotAllowed,
    /// What was waited for has not happened in time.
    Timeout,
    /// The state of an object does not allow the request, or a name is taken.
    Conflict,
    /// It has existed and was removed.
    Gone,
    /// The body is too large.
    TooLarge,
    /// The client has sent too many requests.
    TooManyRequests,
    /// The path needs an upgrade to WebSocket.
    UpgradeRequired,
    /// The daemon has failed.
    Internal,
    /// This server does not have the function.
    NotSupported,
    /// The agent, or what it should connect to, cannot be reached.
    Unreachable,
    /// A limit of the daemon is reached, or the agent does not answer yet.
    Unavailable,
    /// The agent has not answered in time.
    AgentTimeout,
}

impl ErrorCode {
    /// The code of an error with this status.
    pub(super) fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::Unauthorized,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => Self::Timeout,
            StatusCode::CONFLICT => Self::Conflict,
            StatusCode::GONE => Self::Gone,
            StatusCode::PAYLOAD_TOO_LARGE => Self::TooLarge,
            StatusCode::TOO_MANY_REQUESTS => Self::TooManyRequests,
            StatusCode::UPGRADE_REQUIRED => Self::UpgradeRequired,
            StatusCode::NOT_IMPLEMENTED => Self::NotSupported,
            StatusCode::BAD_GATEWAY => Self::Unreachable,
            StatusCode::SERVICE_UNAVAILABLE => Self::Unavailable,
            StatusCode::GATEWAY_TIMEOUT => Self::AgentTimeout,
            status if status.is_server_error() => Self::Internal,
            _ => Self::InvalidRequest,
        }
    }
}
