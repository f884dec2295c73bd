//! Responses with lines of JSON.
//! Out of scope: what they contain.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::Serialize;

use super::shared::Shared;

/// A response with the stream as lines of JSON. It ends when the daemon stops, so that a watch does not delay the stop.
pub(super) fn lines<B, T: Serialize + Send + 'static>(
    state: &Shared<B>,
    items: impl Stream<Item = T> + Send + 'static,
) -> Response {
    encoded_lines(state, items.filter_map(|item| async move { line(&item) }))
}

/// As [`lines`], with lines that are encoded already.
pub(super) fn encoded_lines<B>(
    state: &Shared<B>,
    lines: impl Stream<Item = Bytes> + Send + 'static,
) -> Response {
    let body = lines
        .take_until(state.stop.clone().cancelled_owned())
        .map(Ok::<_, Infallible>);
    let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (content_type, Body::from_stream(body)).into_response()
}

fn line(item: &impl Serialize) -> Option<Bytes> {
    let mut text = serde_json::to_vec(item)
        .inspect_err(|error| tracing::error!(%error, "cannot encode a response as JSON"))
        .ok()?;
    text.push(b'\n');
    Some(text.into())
}
