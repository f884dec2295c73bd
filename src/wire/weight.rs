//! The resources that a request needs, by its method, path and query.
//! Out of scope: the limits ([`super::admission`]).

use axum::extract::Request;
use axum::http::Method;

use super::compat;

/// The resources that a request needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    Light,
    /// Parses manifests or observes the whole host.
    Heavy,
    /// Lists objects.
    List,
    /// Is a stream (`watch`, or `follow=true`).
    Stream,
    /// Is forwarded to an agent, with limits of its own ([`super::agents`]).
    Agent,
}

/// The resources that this request needs.
pub(super) fn weight(request: &Request) -> Weight {
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or_default();
    let is_stream = query.split('&').any(|pair| pair == "follow=true");
    let is_get = request.method() == Method::GET;
    match path.strip_prefix("/v1/").unwrap_or_default() {
        _ if compat::is_agent_path(path) => Weight::Agent,
        _ if compat::is_list_of_agents(path) => Weight::List,
        "apply" | "diff" | "names" | "gc" | "doctor" => Weight::Heavy,
        rest if is_agent_path(rest) => Weight::Agent,
        "watch" | "fleet/events" if is_get => Weight::Stream,
        _ if is_stream && is_get => Weight::Stream,
        rest if rest.starts_with("objects/") && is_get => Weight::List,
        "fleet/apply" | "fleet/diff" => Weight::Heavy,
        // Each reads all objects of the fleet.
        rest if rest.starts_with("fleet/") && is_get => Weight::List,
        _ => Weight::Light,
    }
}

/// Whether this is the path of a request to an agent, without `/v1/`.
fn is_agent_path(path: &str) -> bool {
    let mut parts = path.splitn(4, '/');
    parts.next() == Some("vms") && parts.nth(1) == Some("agent") && parts.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_requests_to_agents_are_told_from_those_of_the_api() {
        for (path, expected) in [
            ("vms/a/agent/exec", true),
            ("vms/a/agent/exec/ex_1/logs", true),
            ("vms/a/agent/", true),
            ("vms/a/agent", false),
            ("vms/a/stop", false),
            ("vms/a/agents/exec", false),
            ("objects/vm/agent/x", false),
        ] {
            assert_eq!(is_agent_path(path), expected, "{path}");
        }
    }
}
