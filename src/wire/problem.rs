//! Error responses.
//! Out of scope: the reasons.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::api::view::Problem;

/// A response with a [`Problem`] as its body: a message, and one entry per cause. It is also an extension of the response, for APIs that
/// give errors another form.
pub(super) fn problem(status: StatusCode, error: String, problems: Vec<String>) -> Response {
    let problem = Problem { error, problems };
    let mut response = (status, Json(&problem)).into_response();
    response.extensions_mut().insert(problem);
    response
}
