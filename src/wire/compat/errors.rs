//! Errors in the form that clients of this API read, and the parts of requests that may be invalid.
//! Out of scope: the reasons.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Query, Request};
use axum::http::{HeaderName, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use utoipa::IntoResponses;
use utoipa::openapi::{self, RefOr};

use super::super::backend::Refusal;
use super::super::error_body::{ErrorBody, ErrorCode};
use super::super::extract::body_as_json;
use super::super::problem::problem;
use super::super::shared::ApiError;
use super::counters::COUNTERS;
use crate::api::meta::Name;
use crate::api::plain_text;
use crate::api::view::Problem;
use crate::clock;

/// The maximum length of an invalid name in an error, in bytes.
const SHOWN: usize = 80;

/// The headers of an error that stay; its length is another.
const KEPT: [HeaderName; 4] = [
    header::CONNECTION,
    header::RETRY_AFTER,
    header::ALLOW,
    header::WWW_AUTHENTICATE,
];

/// Gives errors that have not reached a handler the form of the API that the path belongs to: unknown paths, tokens, limits.
pub(in super::super) async fn of_dialect(request: Request, next: Next) -> Response {
    let is_v1 = request.uri().path().starts_with("/v1/");
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<Problem>() {
        Some(problem) if !is_v1 => formed(response, problem),
        _ => response,
    }
}

/// Gives errors the form of this API, and counts the request.
pub(super) async fn translate(request: Request, next: Next) -> Response {
    let (method, began) = (request.method().clone(), clock::monotonic());
    let mut response = next.run(request).await;
    let problem = response.extensions_mut().remove::<Problem>();
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    // A part of the request that the framework has refused, such as a path that is no UTF-8.
    let refused = is_error.then(|| Problem {
        error: format!("invalid request: {}", response.status()),
        problems: Vec::new(),
    });
    if let Some(problem) = problem.or(refused) {
        response = formed(response, problem);
    }
    let took = clock::monotonic().saturating_duration_since(began);
    COUNTERS.count(&method, response.status(), took);
    response
}

/// An error in the form of this API.
fn formed(mut response: Response, problem: Problem) -> Response {
    let status = match response.status() {
        // Clients of this API know 400 only.
        StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        status => status,
    };
    let Problem { error, problems } = problem;
    let body = ErrorBody {
        error: match problems.is_empty() {
            true => error,
            false => problems.join("; "),
        },
        code: ErrorCode::of(status),
    };
    let mut headers = std::mem::take(response.headers_mut());
    let mut response = (status, Json(body)).into_response();
    for name in KEPT {
        if let Some(value) = headers.remove(&name) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// The response to a request that fails. It is boxed, as it is larger than what succeeds.
#[derive(Debug)]
pub(super) struct Rejection(Box<Response>);

impl Rejection {
    /// Its status; a 422 becomes 400 when it is sent.
    pub(super) fn status(&self) -> StatusCode {
        match self.0.status() {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            status => status,
        }
    }
}

/// Those of the daemon, with the statuses that they have when they are sent.
impl IntoResponses for Rejection {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        ApiError::responses()
    }
}

impl From<Response> for Rejection {
    fn from(response: Response) -> Self {
        Self(Box::new(response))
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        *self.0
    }
}

/// An error with a status.
pub(super) fn error(status: StatusCode, text: impl Into<String>) -> Rejection {
    problem(status, text.into(), Vec::new()).into()
}

/// 400.
pub(super) fn invalid(text: impl Into<String>) -> Rejection {
    error(StatusCode::BAD_REQUEST, text)
}

/// A refusal of the daemon.
pub(super) fn refused(refusal: Refusal) -> Rejection {
    ApiError::from(refusal).into_response().into()
}

/// A name in a path. One that is invalid does not exist, either: 404.
pub(super) fn name(kind: &str, text: &str) -> Result<Name, Rejection> {
    Name::new(text).map_err(|_| {
        let text = plain_text::line(text, SHOWN);
        error(StatusCode::NOT_FOUND, format!("{kind}/{text} not found"))
    })
}

/// The name of a VM in a path.
pub(super) fn vm_name(text: &str) -> Result<Name, Rejection> {
    name("vm", text)
}

/// The query of a request.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Rejection> {
    match Query::<T>::try_from_uri(uri) {
        Ok(Query(query)) => Ok(query),
        Err(error) => Err(invalid(error.body_text())),
    }
}

/// The body of a request; none, `null` and `{}` are the same.
pub(super) fn json<T: DeserializeOwned + Default>(body: &Bytes) -> Result<T, Rejection> {
    match body.trim_ascii() {
        b"" | b"null" => Ok(T::default()),
        text => body_as_json(text).map_err(|error| invalid(error.sentence)),
    }
}
