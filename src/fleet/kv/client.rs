//! Sends requests: deadline, failover, authentication, repetition.
//! Out of scope: the requests ([`super::ops`], [`super::lease`], [`super::txn`], [`super::watch`]).

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::answer::{self, Failure, refused};
use super::config::{Config, ConfigError, Credentials};
use super::connection::{Endpoint, Exchange, SendError, Token};
use super::endpoints::{Limits, Order};
use super::error::{Cause, Code, Error, Malformed};
use super::message::{AuthenticateRequest, AuthenticateResponse, Request};
use super::tls;
use super::url::Url;
use crate::clock;

/// The largest response, in bytes. A page of a list that is larger is read in smaller pages.
pub(super) const MAX_RESPONSE: usize = 16 << 20;

/// The pause between two rounds over all endpoints.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// A client of one cluster. Clones share connections, token and the order of endpoints.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    endpoints: Vec<Arc<Endpoint>>,
    order: Order,
    credentials: Option<Credentials>,
    /// One task authenticates, the others wait for its token.
    token: tokio::sync::Mutex<Option<Token>>,
    deadline: Duration,
    watch_check_interval: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.shared;
        f.debug_struct("Client")
            .field("endpoints", &shared.endpoints)
            .field("user", &shared.credentials.as_ref().map(|c| &c.user))
            .finish_non_exhaustive()
    }
}

/// How the response to a request is read.
pub(super) trait Reading: Sync {
    /// What is read.
    type Output: Send;

    /// Reads the response of an endpoint.
    fn read(
        &self,
        endpoint: &Arc<Endpoint>,
        exchange: Exchange,
    ) -> impl Future<Output = Result<Self::Output, Failure>> + Send;
}

/// Reads a whole response: one message of this type.
struct Whole<T> {
    request: Request,
    message: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned + Send> Reading for Whole<T> {
    type Output = Answer<T>;

    async fn read(
        &self,
        endpoint: &Arc<Endpoint>,
        exchange: Exchange,
    ) -> Result<Answer<T>, Failure> {
        let url = &endpoint.url;
        let read = endpoint.read(exchange, MAX_RESPONSE).await;
        let (status, body) = read.map_err(|cause| match cause {
            Cause::Malformed(Malformed::TooLong(limit)) if !self.request.is_write() => {
                Failure::Final(Error::TooLarge {
                    endpoint: url.clone(),
                    request: self.request,
                    limit,
                })
            }
            cause => Failure::Unknown(cause),
        })?;
        if !status.is_success() {
            return Err(refused(url, self.request, status.as_u16(), &body));
        }
        let message = serde_json::from_slice(&body);
        // A stream that has begun with success may contain an error in place of its message.
        let message = message.map_err(|error| {
            let of_stream = answer::of_stream(url, self.request, &body);
            of_stream.unwrap_or_else(|| Failure::Unknown(Malformed::Json(error).into()))
        })?;
        Ok(Answer {
            message,
            endpoint: url.clone(),
        })
    }
}

/// A message with the endpoint that has sent it.
pub(super) struct Answer<T> {
    pub(super) message: T,
    pub(super) endpoint: Url,
}

impl Client {
    /// A client with these settings. Reads the files of certificates; connects with the first request.
    ///
    /// # Errors
    /// The settings are not valid, or a file cannot be read.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        config.check()?;
        let tls = tls::client_config(config)?;
        let urls = config.endpoints.iter().cloned();
        let endpoints: Vec<_> = urls
            .map(|url| Arc::new(Endpoint::new(url, tls.clone())))
            .collect();
        Ok(Self {
            shared: Arc::new(Shared {
                order: Order::new(endpoints.len()),
                endpoints,
                credentials: config.credentials.clone(),
                token: tokio::sync::Mutex::new(None),
                deadline: config.deadline,
                watch_check_interval: config.watch_check_interval,
            }),
        })
    }

    /// The members, as configured.
    pub fn endpoints(&self) -> impl Iterator<Item = &Url> {
        self.shared.endpoints.iter().map(|endpoint| &endpoint.url)
    }

    /// This endpoint has failed: it is tried last from now on.
    pub(super) fn demote(&self, failed: &Arc<Endpoint>) {
        let mut endpoints = self.shared.endpoints.iter();
        if let Some(at) = endpoints.position(|endpoint| Arc::ptr_eq(endpoint, failed)) {
            self.shared.order.demote(at);
        }
    }

    pub(super) fn watch_check_interval(&self) -> Duration {
        self.shared.watch_check_interval
    }

    /// Sends a request and reads its response.
    pub(super) async fn call<T: DeserializeOwned + Send>(
        &self,
        request: Request,
        message: &impl Serialize,
    ) -> Result<Answer<T>, Error> {
        let reading = Whole {
            request,
            message: PhantomData,
        };
        let body = serde_json::to_vec(message)?;
        self.perform(request, body.into(), &reading).await
    }

    /// Sends a request to one endpoint after the other until one answers, or until the deadline.
    pub(super) async fn perform<R: Reading>(
        &self,
        request: Request,
        body: Bytes,
        reading: &R,
    ) -> Result<R::Output, Error> {
        let deadline = clock::monotonic() + self.shared.deadline;
        loop {
            let mut last = None;
            let mut is_permanent = true;
            let order = self.shared.order.current();
            for (tried, index) in order.iter().enumerate() {
                let limits = Limits::share(clock::monotonic(), deadline, order.len() - tried);
                let endpoint = &self.shared.endpoints[*index];
                let attempt = self.attempt(endpoint, request, &body, reading, limits);
                let failure = match attempt.await {
                    Ok(output) => return Ok(output),
                    Err(failure) => failure,
                };
                if matches!(failure, Failure::NotApplied(_) | Failure::Unknown(_)) {
                    self.shared.order.demote(*index);
                }
                let cause = retriable(failure, endpoint, request)?;
                is_permanent &= cause.is_permanent();
                last = Some((endpoint.url.clone(), cause));
            }
            let is_over = clock::monotonic() + ROUND_PAUSE >= deadline;
            match last {
                Some((endpoint, cause)) if is_permanent || is_over => {
                    return Err(Error::Unreachable { endpoint, cause });
                }
                _ => tokio::time::sleep(ROUND_PAUSE).await,
            }
        }
    }

    /// Sends a request to this endpoint alone, within the deadline.
    pub(super) async fn call_at<T: DeserializeOwned + Send>(
        &self,
        endpoint: &Arc<Endpoint>,
        request: Request,
        message: &impl Serialize,
    ) -> Result<T, Error> {
        let reading = Whole {
            request,
            message: PhantomData,
        };
        let body = serde_json::to_vec(message)?.into();
        let now = clock::monotonic();
        let limits = Limits::share(now, now + self.shared.deadline, 1);
        let attempt = self.attempt(endpoint, request, &body, &reading, limits);
        match attempt.await {
            Ok(answer) => Ok(answer.message),
            Err(failure) => {
                let cause = retriable(failure, endpoint, request)?;
                let endpoint = endpoint.url.clone();
                Err(Error::Unreachable { endpoint, cause })
            }
        }
    }

    /// Sends a request to one endpoint. A token that is not accepted is replaced once.
    async fn attempt<R: Reading>(
        &self,
        endpoint: &Arc<Endpoint>,
        request: Request,
        body: &Bytes,
        reading: &R,
        limits: Limits,
    ) -> Result<R::Output, Failure> {
        let mut refused = None;
        loop {
            let token = self.token(endpoint, refused.as_ref(), limits);
            let token = within(limits.attempt, token, Failure::NotApplied).await?;
            let sent = exchange(endpoint, request, token.as_ref(), body, reading, limits).await;
            match sent {
                Err(Failure::InvalidToken(_)) if token.is_some() && refused.is_none() => {
                    refused = token;
                }
                Err(Failure::InvalidToken(error)) => return Err(Failure::Final(error)),
                Err(Failure::Unknown(cause @ Cause::Timeout(_))) => {
                    self.forget(token.as_ref());
                    return Err(Failure::Unknown(cause));
                }
                sent => return sent,
            }
        }
    }

    /// Authenticates before the next request. A token has the index of the log at which it was issued, and a member waits until it has
    /// reached that: after a cluster was restored or replaced, for ever.
    fn forget(&self, token: Option<&Token>) {
        // Otherwise another task authenticates now.
        if let Ok(mut current) = self.shared.token.try_lock()
            && current.as_ref() == token
        {
            *current = None;
        }
    }

    /// The token of the user, another one than `refused`; `None` without a user.
    async fn token(
        &self,
        endpoint: &Arc<Endpoint>,
        refused: Option<&Token>,
        limits: Limits,
    ) -> Result<Option<Token>, Failure> {
        let Some(credentials) = &self.shared.credentials else {
            return Ok(None);
        };
        let mut current = self.shared.token.lock().await;
        if current.is_none() || current.as_ref() == refused {
            *current = None;
            *current = Some(authenticate(endpoint, credentials, limits).await?);
        }
        Ok(current.clone())
    }
}

/// Obtains a token. An attempt has no effect, so its failure is that of a request that was not sent.
async fn authenticate(
    endpoint: &Arc<Endpoint>,
    credentials: &Credentials,
    limits: Limits,
) -> Result<Token, Failure> {
    let request = Request::Authenticate;
    let message = AuthenticateRequest {
        name: &credentials.user,
        password: credentials.password.expose(),
    };
    let body = serde_json::to_vec(&message).map_err(|error| Failure::Final(error.into()))?;
    let reading = Whole::<AuthenticateResponse> {
        request,
        message: PhantomData,
    };
    let answer = exchange(endpoint, request, None, &body.into(), &reading, limits).await;
    let answer = answer.map_err(|failure| concealed(failure, endpoint, credentials))?;
    Token::new(&answer.message.token).map_err(|error| Failure::NotApplied(error.into()))
}

/// The failure of an authentication, without what a server may have repeated of the request.
fn concealed(failure: Failure, endpoint: &Endpoint, credentials: &Credentials) -> Failure {
    let password = credentials.password.expose();
    let hidden = Cause::Etcd {
        code: Code::Unknown,
        message: "the message contains the password and is not shown".to_owned(),
    };
    let endpoint = endpoint.url.clone();
    let is_shown =
        |shown: &dyn fmt::Display| password.is_empty() || !shown.to_string().contains(password);
    match failure {
        Failure::Unknown(cause) | Failure::NotApplied(cause) if is_shown(&cause) => {
            Failure::NotApplied(cause)
        }
        Failure::Unknown(_) | Failure::NotApplied(_) => Failure::NotApplied(hidden),
        Failure::Final(error) | Failure::InvalidToken(error) if is_shown(&error) => {
            Failure::Final(error)
        }
        Failure::Final(_) | Failure::InvalidToken(_) => Failure::Final(Error::Unauthenticated {
            endpoint,
            cause: hidden,
        }),
    }
}

/// Sends a request with this token and reads the response.
async fn exchange<R: Reading>(
    endpoint: &Arc<Endpoint>,
    request: Request,
    token: Option<&Token>,
    body: &Bytes,
    reading: &R,
    limits: Limits,
) -> Result<R::Output, Failure> {
    let connecting = async { endpoint.sender().await.map_err(Failure::NotApplied) };
    let sender = within(limits.attempt, connecting, Failure::NotApplied).await?;
    // A write that is sent is not repeated elsewhere: it may use all of the time.
    let end = match request.is_write() {
        true => limits.deadline,
        false => limits.attempt,
    };
    let answering = async {
        let sent = endpoint.send(sender, request, token, body.clone()).await;
        let exchange = sent.map_err(|error| match error {
            SendError::NotSent(cause) => Failure::NotApplied(cause),
            SendError::Lost(cause) => Failure::Unknown(cause),
        })?;
        reading.read(endpoint, exchange).await
    };
    within(end, answering, Failure::Unknown).await
}

/// The result, or this failure at the end of the time.
async fn within<T>(
    end: Instant,
    work: impl Future<Output = Result<T, Failure>>,
    late: impl FnOnce(Cause) -> Failure,
) -> Result<T, Failure> {
    let time = end.saturating_duration_since(clock::monotonic());
    match tokio::time::timeout(time, work).await {
        Ok(result) => result,
        Err(_) => Err(late(Cause::Timeout(time))),
    }
}

/// The cause of a failure after which the request can be sent again.
///
/// # Errors
/// It cannot be sent again: every endpoint would answer the same, or it may have been applied.
fn retriable(failure: Failure, endpoint: &Endpoint, request: Request) -> Result<Cause, Error> {
    match failure {
        Failure::NotApplied(cause) => Ok(cause),
        Failure::Unknown(cause) if !request.is_write() => Ok(cause),
        Failure::Unknown(cause) => Err(Error::OutcomeUnknown {
            endpoint: endpoint.url.clone(),
            request,
            cause,
        }),
        Failure::Final(error) | Failure::InvalidToken(error) => Err(error),
    }
}
