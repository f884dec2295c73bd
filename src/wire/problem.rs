//! An answer that is no success.
//! Out of scope: why.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::api::view::Problem;

/// With one sentence, and one cause each.
pub(super) fn problem(status: StatusCode, error: String, problems: Vec<String>) -> Response {
    (status, Json(Problem { error, problems })).into_response()
}
