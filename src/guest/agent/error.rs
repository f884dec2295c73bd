//! Errors of requests: a status and a sentence in JSON; queries that cannot be read are errors, too.
//! Out of scope: errors of a command that was started, which are in its last frame.

use std::io;

use axum::Json;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::guest::protocol::AgentError;

/// The response to a request that fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The status code.
    pub status: StatusCode,
    /// A sentence.
    pub text: String,
}

impl Error {
    /// An error with a status.
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { status, text }
    }

    /// 400: the request is invalid.
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// 400: a field is invalid. Its value is not repeated.
    pub fn invalid(field: &str) -> Self {
        Self::bad_request(format!("invalid {field}"))
    }

    /// 500: a system call failed in the guest.
    pub fn system(operation: &str, error: &io::Error) -> Self {
        let text = format!("{operation}: {}", reason(error));
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }

    /// 503: a limit of the agent is reached.
    pub fn unavailable(text: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (self.status, Json(AgentError { error: self.text })).into_response()
    }
}

/// The text of an error of a system call as Go and shells write it: `permission denied`.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_lowercase);
    first.chain(chars).collect()
}

/// The query of a request. Repeated keys are lists; unknown keys are ignored, because clients of other versions send them.
///
/// # Errors
/// 400: a value does not have its type.
pub fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Error> {
    serde_html_form::from_str(uri.query().unwrap_or_default())
        .map_err(|error| Error::bad_request(format!("invalid query: {error}")))
}
