//! Secrets: `/v1/secrets`, and `/secrets` of the REST API. The handlers are those of each API that has secrets: their paths differ, their bodies and statuses do not.
//! Out of scope: storing them ([`crate::secrets`]).
//!
//! A response never contains a value, and neither does the message of an error, nor an event.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::backend::Backend;
use super::extract::{Extract, body_as_json};
use super::problem::problem;
use super::shared::{ApiError, AppState};
use crate::api::secret::{InvalidSecretName, SecretName, SecretRequest, SecretView};

/// 400, unlike other invalid requests: clients of published APIs expect it.
fn invalid(error: String) -> Response {
    problem(StatusCode::BAD_REQUEST, error, Vec::new())
}

fn name(text: &str) -> Result<SecretName, String> {
    text.parse()
        .map_err(|error: InvalidSecretName| error.to_string())
}

/// The error of the parser may contain a value, so it is not passed on.
fn request(body: &Bytes) -> Result<SecretRequest, String> {
    if matches!(body.trim_ascii(), b"" | b"null") {
        return Ok(SecretRequest::default());
    }
    body_as_json(body).map_err(|error| {
        let place = error.place;
        format!(
            "invalid body: {place}: expected an object with name, data, permissions, uid and gid"
        )
    })
}

fn refused(error: impl Into<ApiError>) -> Response {
    error.into().into_response()
}

/// `GET /v1/secrets`.
#[utoipa::path(get, path = "/secrets", tag = "secrets", responses(ApiError, (status = 200, body = Vec<SecretView>)))]
pub(super) async fn list<B: Backend>(State(state): AppState<B>) -> Result<Response, Response> {
    let secrets = state.backend.secrets().await.map_err(refused)?;
    Ok(Json(secrets).into_response())
}

/// `POST /v1/secrets`.
#[utoipa::path(post, path = "/secrets", tag = "secrets", request_body = SecretRequest, responses(ApiError,
    (status = 201, body = SecretView),
    (status = 409, description = "It exists"),
))]
pub(super) async fn create<B: Backend>(
    State(state): AppState<B>,
    body: Bytes,
) -> Result<Response, Response> {
    let request = request(&body).map_err(invalid)?;
    let name = name(request.name.as_deref().unwrap_or_default()).map_err(invalid)?;
    let change = request.change().map_err(invalid)?;
    let created = state.backend.create_secret(name, change).await;
    let created = created.map_err(refused)?;
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

/// `PATCH /v1/secrets/{name}`.
#[utoipa::path(patch, path = "/secrets/{name}", tag = "secrets",
    request_body(content = Option<SecretRequest>), responses(ApiError,
    (status = 200, body = SecretView),
))]
pub(super) async fn update<B: Backend>(
    State(state): AppState<B>,
    Extract(Path(secret)): Extract<Path<String>>,
    body: Bytes,
) -> Result<Response, Response> {
    let change = request(&body).and_then(|request| request.change());
    let change = change.map_err(invalid)?;
    let name = name(&secret).map_err(invalid)?;
    let updated = state.backend.update_secret(name, change).await;
    Ok(Json(updated.map_err(refused)?).into_response())
}

/// `DELETE /v1/secrets/{name}`.
#[utoipa::path(delete, path = "/secrets/{name}", tag = "secrets", responses(ApiError,
    (status = 200, description = "It is deleted"),
))]
pub(super) async fn delete<B: Backend>(
    State(state): AppState<B>,
    Extract(Path(secret)): Extract<Path<String>>,
) -> Result<Response, Response> {
    let name = name(&secret).map_err(invalid)?;
    let deleted = state.backend.delete_secret(name).await;
    deleted.map_err(refused)?;
    Ok(StatusCode::OK.into_response())
}
