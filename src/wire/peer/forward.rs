//! Forwards a request to the node of its VM, and returns the response: plain ones, streams, upgrades.
//! Out of scope: where the VM is; connections ([`super::connect`]).
//!
//! Only listed headers are forwarded, in both directions: the token of a client is not for another node. Bodies are streams with
//! back-pressure. The request ends with the connection of its client, and the connection of the client with the response.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::connect::{Connection, Link, PeerBody, connect, upgraded};
use super::failure::Failure;
use super::routes::{Patience, vm_of};
use super::{
    ANSWERED_BY, FORWARDED_BY, FORWARDED_USER, FORWARDED_VM, Fleet, Peers, Place, Whereabouts,
};
use crate::api::meta::{Name, Uid};
use crate::guest::endpoint::HeadTimeout;
use crate::wire::admission::{Client, busy};
use crate::wire::agent::{self, FORWARDED, UPGRADE, copy, upgrade_headers};
use crate::wire::agents::AgentPermit;
use crate::wire::browser;
use crate::wire::problem::problem;
use crate::wire::stoppable::StoppableBody;
use crate::wire::tunnel;
use crate::wire::v1::LOG_OFFSET;

/// How long the body of a response that ends may send nothing.
const IDLE: Duration = Duration::from_secs(60);

/// How much longer than its agent a node may take to answer: the guest may be booting.
const BOOT: Duration = Duration::from_secs(150);

/// The maximum length of the user in its header, in bytes.
const USER_LIMIT: usize = 200;

/// The headers of requests, in addition to those for agents.
const REQUEST: [HeaderName; 1] = [header::ACCEPT];
/// The headers of responses, in addition to those of agents.
const RESPONSE: [HeaderName; 4] = [
    header::RETRY_AFTER,
    header::ALLOW,
    HeaderName::from_static(LOG_OFFSET),
    header::CACHE_CONTROL,
];

/// Where a request goes.
pub(in crate::wire) struct Destination {
    vm: Name,
    whereabouts: Whereabouts,
    patience: Patience,
}

impl Peers {
    /// The other node that a request is for; `None` if it is handled here.
    pub(in crate::wire) fn destination(&self, request: &Request) -> Option<Destination> {
        let fleet = self.fleet.as_ref()?;
        let (vm, patience) = vm_of(request)?;
        let whereabouts = fleet.whereabouts(&vm)?;
        Some(Destination {
            vm,
            whereabouts,
            patience,
        })
    }

    /// Forwards a request. `is_stream`: its response does not end.
    pub(in crate::wire) async fn forward(
        &self,
        caller: &Client,
        to: Destination,
        is_stream: bool,
        request: Request,
    ) -> Response {
        let (place, uid) = match &to.whereabouts {
            Whereabouts::At(place, uid) => (place, *uid),
            Whereabouts::Pending(reason) => return pending(&to.vm, reason.as_deref()),
        };
        let Some(fleet) = &self.fleet else {
            return Failure::NoCertificates.response(&to.vm, place);
        };
        let sent = Sending {
            peers: self,
            fleet: &**fleet,
            caller,
            place,
            vm: Some(uid),
        };
        sent.run(&to.vm, to.patience, is_stream, request).await
    }

    /// Asks a node.
    ///
    /// # Errors
    /// A sentence.
    pub(super) async fn get(
        &self,
        caller: &Client,
        place: &Place,
        path: &str,
        timeouts: Timeouts,
    ) -> Result<Response, String> {
        let shown = |failure: Failure| failure.sentence(None, place);
        let fleet = self.fleet.as_deref().ok_or(Failure::NoCertificates);
        let sending = Sending {
            peers: self,
            fleet: fleet.map_err(shown)?,
            caller,
            place,
            vm: None,
        };
        let request = axum::http::Request::get(path).body(Body::empty());
        let request = request.map_err(|error| error.to_string())?;
        let limits = Limits {
            timeouts,
            permit: None,
        };
        sending.send(limits, request).await.map_err(shown)
    }
}

fn pending(vm: &Name, reason: Option<&str>) -> Response {
    let error = match reason {
        Some(reason) => format!("vm/{vm} of the fleet is on no node yet: {reason}"),
        None => format!("vm/{vm} of the fleet is on no node yet"),
    };
    problem(StatusCode::CONFLICT, error, Vec::new())
}

struct Sending<'s> {
    peers: &'s Peers,
    fleet: &'s dyn Fleet,
    caller: &'s Client,
    place: &'s Place,
    /// The uid of the VM that the request names.
    vm: Option<Uid>,
}

/// How long a node may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// Until the head of the response; `None`: as long as both sides are connected.
    pub(super) head: Option<Duration>,
    /// Between two parts of the body.
    pub(super) idle: Option<Duration>,
}

/// The limits of a request.
struct Limits {
    timeouts: Timeouts,
    permit: Option<Arc<AgentPermit>>,
}

impl Sending<'_> {
    async fn run(
        &self,
        vm: &Name,
        patience: Patience,
        is_stream: bool,
        request: Request,
    ) -> Response {
        let limits = match self.limits(vm, patience, is_stream, &request) {
            Ok(limits) => limits,
            Err(response) => return *response,
        };
        let is_of_agent = limits.permit.is_some();
        let sent = self.send(limits, request).await;
        let mut response = sent.unwrap_or_else(|failure| {
            tracing::debug!(%vm, node = %self.place.node, ?failure, "a request was not forwarded");
            failure.response(vm, self.place)
        });
        if is_of_agent && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }

    /// The limits; those of requests to agents are counted as on this node.
    fn limits(
        &self,
        vm: &Name,
        patience: Patience,
        is_stream: bool,
        request: &Request,
    ) -> Result<Limits, Box<Response>> {
        if patience != Patience::Stream {
            return Ok(Limits {
                timeouts: Timeouts {
                    head: patience.head(),
                    idle: (!is_stream).then_some(IDLE),
                },
                permit: None,
            });
        }
        let (endpoint, path) = agent::endpoint(request, agent::prefix(request.uri().path()))?;
        let acquired = self.peers.agents.acquire(self.caller.user, vm);
        let permit = Arc::new(acquired.map_err(|error| Box::new(busy(error)))?);
        self.caller.connection.forwards(Arc::clone(&permit));
        let head = match endpoint.head_timeout(path.query().unwrap_or_default()) {
            HeadTimeout::AfterHead(limit) => Some(limit + BOOT),
            HeadTimeout::AfterBody(_) | HeadTimeout::Never => None,
        };
        Ok(Limits {
            timeouts: Timeouts { head, idle: None },
            permit: Some(permit),
        })
    }

    async fn send(&self, limits: Limits, mut request: Request) -> Result<Response, Failure> {
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let upgrade =
            upgrade.filter(|_| browser::is_websocket(request.method(), request.headers()));
        let has_subprotocol = browser::offers_subprotocol(request.headers());
        let connection = connect(self.fleet, self.place, &self.peers.stop).await?;
        let Connection {
            mut sender,
            host,
            link,
        } = connection;
        let request = self.request(request, host, upgrade.is_some())?;
        let reads = [Method::GET, Method::HEAD].contains(request.method());
        let sending = sender.send_request(request);
        // It is sent once: a command must not be executed twice.
        let answered = match limits.timeouts.head {
            None => sending.await.map_err(Failure::from),
            Some(limit) => match tokio::time::timeout(limit, sending).await {
                Ok(answered) => answered.map_err(Failure::from),
                Err(_) => Err(Failure::HeadTimeout(limit)),
            },
        };
        let answer = answered.map_err(|failure| match reads {
            true => failure,
            false => failure.of_command(),
        })?;
        self.check(&answer)?;
        let mut response = Response::new(Body::empty());
        copy(&FORWARDED, answer.headers(), response.headers_mut());
        copy(&RESPONSE, answer.headers(), response.headers_mut());
        *response.status_mut() = answer.status();
        match (answer.status(), upgrade) {
            (StatusCode::SWITCHING_PROTOCOLS, Some(of_client)) => {
                let headers = response.headers_mut();
                copy(&UPGRADE, answer.headers(), headers);
                upgrade_headers(headers);
                if has_subprotocol {
                    let name = HeaderValue::from_static(browser::SUBPROTOCOL);
                    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, name);
                }
                self.tunnel(of_client, answer, link, limits.permit).await?;
                Ok(response)
            }
            (status, _) if status.is_informational() => Err(Failure::NoUpgrade),
            (status, Some(_)) if status.is_success() => Err(Failure::NoUpgrade),
            (_, _) => {
                let stop = link.peer.end().clone();
                let body = PeerBody::new(answer.into_body(), limits.timeouts.idle, link);
                *response.body_mut() = Body::new(StoppableBody::new(body, stop));
                Ok(response)
            }
        }
    }

    fn request(
        &self,
        request: Request,
        host: HeaderValue,
        is_upgrade: bool,
    ) -> Result<hyper::Request<Body>, Failure> {
        let own = self.fleet.tls().ok_or(Failure::NoCertificates)?;
        let own = HeaderValue::try_from(own.node().as_str());
        let own = own.map_err(|error| Failure::OwnCertificates(error.to_string()))?;
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut sent = hyper::Request::new(match is_upgrade {
            true => Body::empty(),
            false => body,
        });
        *sent.uri_mut() = path
            .parse()
            .map_err(|_| Failure::Invalid("the path is invalid".to_owned()))?;
        *sent.method_mut() = parts.method;
        let headers = sent.headers_mut();
        copy(&FORWARDED, &parts.headers, headers);
        copy(&REQUEST, &parts.headers, headers);
        if is_upgrade {
            copy(&UPGRADE, &parts.headers, headers);
            upgrade_headers(headers);
        }
        headers.insert(header::HOST, host);
        headers.insert(FORWARDED_BY, own);
        if let Some(vm) = self.vm {
            let vm = HeaderValue::try_from(vm.to_string());
            let vm = vm.map_err(|error| Failure::Invalid(error.to_string()))?;
            headers.insert(FORWARDED_VM, vm);
        }
        let user = self.caller.origin.caller().to_string();
        let is_shown = |c: &char| c.is_ascii_graphic() || *c == ' ';
        let user: String = user.chars().filter(is_shown).take(USER_LIMIT).collect();
        if let Ok(user) = HeaderValue::try_from(user) {
            headers.insert(FORWARDED_USER, user);
        }
        Ok(sent)
    }

    /// Whether the node knows that it has answered a node.
    fn check(&self, answer: &Response<Incoming>) -> Result<(), Failure> {
        match answer.headers().get(ANSWERED_BY) {
            Some(node) if node.as_bytes() == self.place.node.as_str().as_bytes() => Ok(()),
            Some(_) => Err(Failure::Invalid("it is that of another node".to_owned())),
            None => Err(Failure::TooOld),
        }
    }

    async fn tunnel(
        &self,
        of_client: OnUpgrade,
        answer: Response<Incoming>,
        link: Link,
        permit: Option<Arc<AgentPermit>>,
    ) -> Result<(), Failure> {
        let far = upgraded(answer).await?;
        let peer = Arc::clone(&link.peer);
        tokio::spawn(async move {
            tunnel::run(of_client, far, peer.end().clone()).await;
            drop((permit, link));
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
