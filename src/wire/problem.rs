//! Error responses.
//! Out of scope: the reasons.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::api::view::Problem;

/// A response with a [`Problem`] as its body: a message, and one entry per cause.
pub(super) fn problem(status: StatusCode, error: String, problems: Vec<String>) -> Response {
    (status, Json(Problem { error, problems })).into_response()
}
