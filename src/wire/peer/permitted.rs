//! Which requests the certificate of a node authorises: those that other nodes forward, and nothing else.
//! Out of scope: who the node is ([`super::incoming`]); what the requests do.
//!
//! # Why
//! A node that is compromised has a valid certificate. It may use the VMs of the fleet, as all users of a node may, but not change groups,
//! read secrets or configure other hosts. A route is refused unless it names a VM ([`super::routes`]) or is that of events, so that a new
//! route is refused, too.

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;

use super::routes::named;
use super::{FORWARDED_VM, Peers};
use crate::api::meta::{Name, Uid};
use crate::wire::problem::problem;

/// The route of the events of a node, which `events --fleet` asks of each.
const EVENTS: &str = "/v1/events";

/// What a node asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    /// The events of this node, whatever they are about.
    Events,
    /// A VM.
    Vm(Name),
}

/// The VM that a request of a node is for: that of this uid, and no other one of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::wire) struct ForwardedVm {
    name: Name,
    uid: Uid,
}

/// What a node asks for; `None`: its certificate does not authorise the request. `route`: the pattern of the router; `None`: no route
/// matches.
fn subject(route: Option<&str>, method: &Method, path: &str, query: &str) -> Option<Subject> {
    let route = route?;
    if let Some((vm, _)) = named(route, path, query) {
        return Some(Subject::Vm(vm));
    }
    (route == EVENTS && method == Method::GET).then_some(Subject::Events)
}

fn refused(error: String) -> Box<Response> {
    Box::new(problem(StatusCode::FORBIDDEN, error, Vec::new()))
}

/// The VM that a request of a node is for; `None`: it is for the events of this node.
///
/// # Errors
/// The response, 403: the certificate of a node does not authorise the request, or it does not name the VM of the fleet that it is for.
pub(in crate::wire) fn permitted(request: &Request) -> Result<Option<ForwardedVm>, Box<Response>> {
    let route = request.extensions().get::<MatchedPath>();
    let (method, uri) = (request.method(), request.uri());
    let query = uri.query().unwrap_or_default();
    let route = route.map(MatchedPath::as_str);
    let Some(subject) = subject(route, method, uri.path(), query) else {
        return Err(refused(format!(
            "the certificate of a node does not authorise {method} {}: it authorises requests for VMs of the fleet, and for events",
            uri.path()
        )));
    };
    let uid = uid(request.headers())?;
    match (subject, uid) {
        (Subject::Events, _) => Ok(None),
        (Subject::Vm(name), Some(uid)) => Ok(Some(ForwardedVm { name, uid })),
        // The events of a VM that was on this node, for `events --fleet`.
        (Subject::Vm(_), None) if route == Some(EVENTS) => Ok(None),
        (Subject::Vm(name), None) => Err(refused(format!(
            "a request of a node for vm/{name} needs the header {FORWARDED_VM}: upgrade the node that has sent it"
        ))),
    }
}

/// The uid in the header; `None` without it.
fn uid(headers: &HeaderMap) -> Result<Option<Uid>, Box<Response>> {
    let mut values = headers.get_all(FORWARDED_VM).into_iter();
    let (first, more) = (values.next(), values.next());
    let uid = match (first, more) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().ok().and_then(|text| text.parse().ok()),
        (Some(_), Some(_)) => None,
    };
    uid.map(Some).ok_or_else(|| {
        refused(format!(
            "the header {FORWARDED_VM} is invalid, expected one uid"
        ))
    })
}

impl Peers {
    /// Whether this node has the VM that a request of another node is for. Called at last, immediately before the request is handled: a
    /// VM may be replaced by another one of the same name at any time.
    ///
    /// # Errors
    /// The response, 404.
    pub(in crate::wire) fn has(&self, vm: Option<&ForwardedVm>) -> Result<(), Box<Response>> {
        let Some(vm) = vm else {
            return Ok(());
        };
        let found = self.fleet.as_ref().and_then(|fleet| fleet.uid_of(&vm.name));
        if found == Some(vm.uid) {
            return Ok(());
        }
        let own = self.fleet.as_ref().and_then(|fleet| fleet.tls());
        let node = own.map_or_else(String::new, |own| format!(" on node {}", own.node()));
        let error = format!(
            "vm/{} not found{node}: it has no VM of the fleet with the uid {} that has this name",
            vm.name, vm.uid
        );
        Err(Box::new(problem(StatusCode::NOT_FOUND, error, Vec::new())))
    }
}

#[cfg(test)]
mod tests;
