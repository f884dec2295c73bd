//! What the handlers of all requests share: the state, and errors as responses.
//! Out of scope: the handlers.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio_util::sync::CancellationToken;
use utoipa::IntoResponses;
use utoipa::openapi::{self, RefOr};

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

impl ApiError {
    fn status(&self) -> StatusCode {
        match self.0 {
            Refusal::NotFound(_) | Refusal::NotFoundWithSuggestion(..) => StatusCode::NOT_FOUND,
            Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Conflict(_) => StatusCode::CONFLICT,
            Refusal::Gone(_) => StatusCode::GONE,
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, error) = (self.status(), self.0.to_string());
        let problems = match self.0 {
            Refusal::Invalid(problems) | Refusal::Conflict(problems) => problems,
            Refusal::NotFound(_)
            | Refusal::NotFoundWithSuggestion(..)
            | Refusal::Gone(_)
            | Refusal::Failed(_) => Vec::new(),
        };
        problem(status, error, problems)
    }
}

/// The statuses of all refusals. Their descriptions and bodies are added where the document is made.
impl IntoResponses for ApiError {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let of = |refusal| {
            (
                Self(refusal).status().as_str().to_owned(),
                RefOr::T(openapi::Response::default()),
            )
        };
        BTreeMap::from([
            of(Refusal::NotFound(String::new())),
            of(Refusal::Invalid(Vec::new())),
            of(Refusal::Conflict(Vec::new())),
            of(Refusal::Gone(String::new())),
            of(Refusal::Failed(String::new())),
        ])
    }
}
