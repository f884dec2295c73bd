//! Extractors of requests: what is invalid is answered with a [`crate::api::view::Problem`].
//! Out of scope: the requests.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::response::Response;

use super::problem::problem;

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

impl<S: Send + Sync, T> FromRequest<S> for Extract<Json<T>>
where
    Json<T>: FromRequest<S, Rejection = JsonRejection>,
{
    type Rejection = Response;
    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        Json::<T>::from_request(request, state)
            .await
            .map(Self)
            .map_err(|why| problem(why.status(), why.body_text(), Vec::new()))
    }
}
