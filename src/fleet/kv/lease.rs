//! Leases: keys that end unless they are renewed.
//! Out of scope: when a lease is renewed.
//!
//! # Why
//! A renewal that is confirmed is not contact to the majority: a leader that was deposed confirms renewals until it learns of it. Only a
//! list or a write after the renewal shows that the majority answers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::Client;
use super::error::Error;
use super::message::{HeaderMessage, HeaderResponse, Int, Request, int};
use super::types::{Header, LeaseGrant, LeaseId};

#[derive(Serialize)]
struct GrantRequest {
    #[serde(rename = "TTL")]
    ttl: Int<u64>,
}

#[derive(Deserialize)]
struct LeaseResponse {
    header: HeaderMessage,
    #[serde(rename = "ID", deserialize_with = "int")]
    id: i64,
    #[serde(rename = "TTL", default, deserialize_with = "int")]
    ttl: u32,
}

#[derive(Serialize)]
struct LeaseRequest {
    #[serde(rename = "ID")]
    id: Int<i64>,
}

/// A message of a stream.
#[derive(Deserialize)]
struct Streamed<T> {
    result: T,
}

impl Client {
    /// Creates a lease. The time to live is rounded up to seconds.
    ///
    /// # Errors
    /// [`Error`]. A lease that was granted although the answer is lost ends by itself.
    pub async fn grant(&self, ttl: Duration) -> Result<LeaseGrant, Error> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let message = GrantRequest {
            ttl: Int(seconds.max(1)),
        };
        let request = Request::LeaseGrant;
        let response = self.call::<LeaseResponse>(request, &message).await?.message;
        Ok(LeaseGrant {
            header: response.header.into(),
            id: LeaseId(response.id),
            ttl: Duration::from_secs(response.ttl.into()),
        })
    }

    /// Renews a lease: the time that it has from now on; `None` if it has ended.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<(Header, Option<Duration>), Error> {
        let message = LeaseRequest { id: Int(lease.0) };
        let request = Request::LeaseKeepAlive;
        let answer = self.call::<Streamed<LeaseResponse>>(request, &message);
        let response = answer.await.map_err(|error| named(error, lease))?;
        let LeaseResponse { header, ttl, .. } = response.message.result;
        let remaining = (ttl > 0).then(|| Duration::from_secs(ttl.into()));
        Ok((header.into(), remaining))
    }

    /// Ends a lease, and its keys with it. `None` if it had ended before.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn revoke(&self, lease: LeaseId) -> Result<Option<Header>, Error> {
        let message = LeaseRequest { id: Int(lease.0) };
        let request = Request::LeaseRevoke;
        match self.call::<HeaderResponse>(request, &message).await {
            Ok(answer) => Ok(Some(answer.message.header.into())),
            // Also the answer to the second attempt of this request.
            Err(Error::LeaseNotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The error, with the lease that it is about.
pub(super) fn named(error: Error, id: LeaseId) -> Error {
    match error {
        Error::LeaseNotFound { endpoint, .. } => Error::LeaseNotFound {
            endpoint,
            lease: Some(id),
        },
        error => error,
    }
}
