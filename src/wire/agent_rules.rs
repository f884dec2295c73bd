//! Which methods and statuses pass between clients and agents.
//! Out of scope: forwarding ([`super::agent`]).

use std::collections::BTreeMap;

use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use utoipa::IntoResponses;
use utoipa::openapi::{self, RefOr};

use super::problem::problem;

/// The statuses of errors that an agent may answer with. Others would be taken for those of the daemon, such as 401.
pub(super) const ERRORS: [StatusCode; 15] = [
    StatusCode::BAD_REQUEST,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::CONFLICT,
    StatusCode::GONE,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::UNPROCESSABLE_ENTITY,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::NOT_IMPLEMENTED,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
    StatusCode::INSUFFICIENT_STORAGE,
];

/// The errors of requests to agents, in the OpenAPI document.
pub(super) struct AgentErrors;

impl IntoResponses for AgentErrors {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let response = || RefOr::T(openapi::Response::default());
        ERRORS
            .map(|status| (status.as_str().to_owned(), response()))
            .into()
    }
}

/// The method at the agent: it has no `HEAD`, and its body is not sent to the client.
pub(super) fn method(method: &Method) -> &Method {
    match *method {
        Method::HEAD => &Method::GET,
        _ => method,
    }
}

pub(super) fn not_allowed(request: &Request, allowed: &[Method]) -> Response {
    let (path, method) = (request.uri().path(), request.method());
    let error = format!("{path} does not support method {method}");
    let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, error, Vec::new());
    let mut names: Vec<&str> = allowed.iter().map(Method::as_str).collect();
    if allowed.contains(&Method::GET) {
        names.push("HEAD");
    }
    if let Ok(names) = HeaderValue::try_from(names.join(",")) {
        response.headers_mut().insert(header::ALLOW, names);
    }
    response
}
