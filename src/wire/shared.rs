//! What the handlers of all requests share: the state, and errors as responses.
//! Out of scope: the handlers.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio_util::sync::CancellationToken;

use super::agents::Agents;
use super::backend::Refusal;
use super::problem::problem;

/// State shared by all requests.
pub(super) struct Shared<B> {
    pub(super) backend: Arc<B>,
    /// The requests that are forwarded to agents.
    pub(super) agents: Arc<Agents>,
    /// Cancelled when the daemon stops; ends all streams.
    pub(super) stop: CancellationToken,
}

pub(super) type AppState<B> = State<Arc<Shared<B>>>;

/// Parses a part of a request.
pub(super) fn read<T>(text: &str) -> Result<T, Refusal>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse()
        .map_err(|error: T::Err| Refusal::Invalid(vec![error.to_string()]))
}

/// A refusal as a response.
pub(super) struct ApiError(Refusal);

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = self.0.to_string();
        match self.0 {
            Refusal::NotFound(_) | Refusal::NotFoundWithSuggestion(..) => {
                problem(StatusCode::NOT_FOUND, error, Vec::new())
            }
            Refusal::Invalid(problems) => {
                problem(StatusCode::UNPROCESSABLE_ENTITY, error, problems)
            }
            Refusal::Conflict(problems) => problem(StatusCode::CONFLICT, error, problems),
            Refusal::Gone(_) => problem(StatusCode::GONE, error, Vec::new()),
            Refusal::Failed(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, error, Vec::new()),
        }
    }
}
