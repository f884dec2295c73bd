//! Extractors of requests: what is invalid is answered with a [`crate::api::view::Problem`].
//! Out of scope: the requests.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::problem::problem;
use crate::api::json_object::JsonObject;
use crate::api::plain_text;

/// An extractor with [`crate::api::view::Problem`]s as its rejections.
pub(super) struct Extract<T>(pub(super) T);

macro_rules! extractor {
    ($extractor:ident, $rejection:ty) => {
        impl<S: Send + Sync, T> FromRequestParts<S> for Extract<$extractor<T>>
        where
            $extractor<T>: FromRequestParts<S, Rejection = $rejection>,
        {
            type Rejection = Response;
            async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
                $extractor::<T>::from_request_parts(parts, state)
                    .await
                    .map(Self)
                    .map_err(|why| problem(why.status(), why.body_text(), Vec::new()))
            }
        }
    };
}

extractor!(Query, QueryRejection);
extractor!(Path, PathRejection);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Extract<Json<T>> {
    type Rejection = Response;
    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let is_json = is_json(request.headers());
        let refuse = |status, error| problem(status, error, Vec::new());
        if !is_json {
            let error = "expected the header Content-Type: application/json".to_owned();
            return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, error));
        }
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|why| refuse(why.status(), why.body_text()))?;
        body_as_json(&body)
            .map(|value| Self(Json(value)))
            .map_err(|error| {
                let status = match error.is_data {
                    true => StatusCode::UNPROCESSABLE_ENTITY,
                    false => StatusCode::BAD_REQUEST,
                };
                refuse(status, error.sentence)
            })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE);
    let text = value.and_then(|value| value.to_str().ok());
    let essence = text.and_then(|text| text.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// Why a body is not what a request needs.
#[derive(Debug)]
pub(super) struct InvalidBody {
    /// The field, what was found and what is expected.
    pub(super) sentence: String,
    /// The field, without anything of its value: that may be a secret.
    pub(super) place: String,
    /// It is JSON, with other values than expected.
    is_data: bool,
}

/// The maximum length of an error, in bytes.
const SENTENCE: usize = 300;
/// The maximum length of the place of an error, in bytes.
const PLACE: usize = 80;

/// Parses a body.
pub(super) fn body_as_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, InvalidBody> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut deserializer);
    parsed
        .map_err(|error| {
            let path = error.path().to_string();
            (path, error.into_inner())
        })
        .and_then(|JsonObject(value)| {
            let end = deserializer.end();
            end.map(|()| value).map_err(|error| (".".to_owned(), error))
        })
        .map_err(|(path, error)| {
            let is_data = error.classify() == serde_json::error::Category::Data;
            let at = match path.as_str() {
                "." | "?" => String::new(),
                path => format!("{}: ", plain_text::line(path, PLACE)),
            };
            let text = error.to_string();
            let mut text = text.as_str();
            for cause in ["invalid type: ", "invalid value: "] {
                text = text.strip_prefix(cause).unwrap_or(text);
            }
            let found = if text.len() < error.to_string().len() {
                "found "
            } else {
                ""
            };
            let sentence = format!("invalid body: {at}{found}{text}");
            InvalidBody {
                sentence: plain_text::line(&sentence, SENTENCE).into_owned(),
                place: format!("{at}line {} column {}", error.line(), error.column()),
                is_data,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::Scale;

    #[test]
    fn the_error_of_a_body_names_the_field_and_what_was_found_and_expected() {
        for (body, sentence, is_data) in [
            (
                r#"{"count":"x"}"#,
                "count: found string \"x\", expected u32 at line 1",
                true,
            ),
            (
                r#"{"count":-1}"#,
                "count: found integer `-1`, expected u32",
                true,
            ),
            (
                r#"{"count":1e99}"#,
                "count: found floating point `1e+99`, expected u32",
                true,
            ),
            (
                r#"{"other":1}"#,
                "other: unknown field `other`, expected one of `count`",
                true,
            ),
            ("{}", "invalid body: missing field `count`", true),
            (
                "[1]",
                "invalid body: found sequence, expected an object",
                true,
            ),
            ("[", "found sequence, expected an object", true),
            (
                r#"{"count":1} x"#,
                "invalid body: trailing characters",
                false,
            ),
        ] {
            let error = body_as_json::<Scale>(body.as_bytes()).unwrap_err();
            assert!(error.sentence.contains(sentence), "{body}: {error:?}");
            assert_eq!(error.is_data, is_data, "{body}");
        }
        let deep = "[".repeat(1 << 20);
        assert!(body_as_json::<serde_json::Value>(deep.as_bytes()).is_err());
        let long = format!(r#"{{"count":"{}"}}"#, "x".repeat(1 << 16));
        let error = body_as_json::<Scale>(long.as_bytes()).unwrap_err();
        assert!(
            error.sentence.len() <= SENTENCE + 3,
            "{}",
            error.sentence.len()
        );
        assert!(!error.place.contains("xx"), "{}", error.place);
    }
}
