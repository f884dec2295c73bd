//! Requests of other nodes: who asks, and what is refused.
//! Out of scope: certificates ([`super::tls`]); the limits.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::registry::PeerConnection;
use super::subject::node_of;
use super::tls::Role;
use super::{ANSWERED_BY, FORWARDED_BY, FORWARDED_USER, FORWARDED_VM, Peers};
use crate::api::plain_text;
use crate::wire::caller::Caller;
use crate::wire::problem::problem;
use crate::wire::user::User;

/// The maximum length of a user, in bytes.
const USER_LIMIT: usize = 200;

/// The user of a request of another node.
#[derive(Clone, Debug)]
pub(in crate::wire) struct Forwarded {
    /// For limits.
    pub(in crate::wire) user: User,
    /// For events.
    pub(in crate::wire) caller: Caller,
}

impl Peers {
    /// The node at the other end of a connection, after its handshake; `None` without a certificate, or with that of no node: then a token
    /// is required.
    ///
    /// # Errors
    /// The connection must be closed: the certificate is no longer valid.
    pub(in crate::wire) fn accepted(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<Option<Arc<PeerConnection>>, super::Refused> {
        let (Some(fleet), Some([own, ..])) = (&self.fleet, chain) else {
            return Ok(None);
        };
        if node_of(own).is_err() {
            return Ok(None);
        }
        let chain = chain.unwrap_or_default();
        let registered = fleet
            .connections()
            .register(chain, Role::Client, &self.stop, || fleet.tls());
        registered.map(Some)
    }

    /// The user of a request; `None` if its connection is not that of a node.
    ///
    /// # Errors
    /// The response: 403 if the node is gone, or if the headers of a node come from something else.
    pub(in crate::wire) fn forwarded(
        &self,
        peer: Option<&PeerConnection>,
        headers: &HeaderMap,
    ) -> Result<Option<Forwarded>, Box<Response>> {
        let refuse = |error: String| Box::new(problem(StatusCode::FORBIDDEN, error, Vec::new()));
        let Some(peer) = peer else {
            let found = [FORWARDED_BY, FORWARDED_USER, FORWARDED_VM]
                .into_iter()
                .find(|name| headers.contains_key(*name));
            return match found {
                None => Ok(None),
                Some(name) => Err(refuse(format!(
                    "the header {name} is accepted only from nodes of the fleet, by their certificates"
                ))),
            };
        };
        let node = &peer.node;
        if self.fleet.as_ref().is_none_or(|fleet| fleet.is_gone(node)) {
            return Err(refuse(format!(
                "node {node} is gone: its requests are refused"
            )));
        }
        let mut names = headers.get_all(FORWARDED_BY).into_iter();
        let is_other = |name: &HeaderValue| name.as_bytes() != node.as_str().as_bytes();
        if names.any(is_other) {
            return Err(refuse(format!(
                "the header {FORWARDED_BY} has another name than the certificate, which is that of node {node}"
            )));
        }
        let user = headers
            .get(FORWARDED_USER)
            .and_then(|user| user.to_str().ok());
        let user = match user {
            Some(user) => format!("{} on node {node}", plain_text::line(user, USER_LIMIT)),
            None => format!("node {node}"),
        };
        let mut hasher = DefaultHasher::new();
        user.hash(&mut hasher);
        Ok(Some(Forwarded {
            user: User::Forwarded(hasher.finish()),
            caller: Caller::Forwarded(user.into()),
        }))
    }

    /// Adds the name of this node to a response for another node.
    pub(in crate::wire) fn sign(&self, response: &mut Response) {
        let own = self.fleet.as_ref().and_then(|fleet| fleet.tls());
        let own = own.and_then(|own| HeaderValue::try_from(own.node().as_str()).ok());
        if let Some(own) = own {
            let name = HeaderName::from_static(ANSWERED_BY);
            response.headers_mut().insert(name, own);
        }
    }
}
