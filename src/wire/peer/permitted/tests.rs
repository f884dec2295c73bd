//! Each route of the API, with the certificate of a node; and VMs that have only the name of the one that is meant.
//! Out of scope: the router, and what the requests do (`tests/e2e/fleet/remote`).

use std::collections::BTreeSet;

use axum::http::HeaderValue;

use super::super::tests::pki::{Ca, name};
use super::super::tests::{Known, peers};
use super::*;

/// All that a node may ask. Everything else is refused, also routes that are added later.
const PERMITTED: &[&str] = &[
    "DELETE /hostgroup/{group}/nodes/{vm}",
    "DELETE /v1/objects/{kind}/{name}",
    "DELETE /v1/vms/{vm}",
    "DELETE /v1/vms/{vm}/agent/exec/{id}",
    "DELETE /v1/vms/{vm}/agent/fs/remove",
    "DELETE /vm/{vm}/exec/{id}",
    "DELETE /vm/{vm}/fs/remove",
    "GET /node/{vm}/stats",
    "GET /v1/events",
    "GET /v1/explain/{vm}",
    "GET /v1/logs/{vm}",
    "GET /v1/metrics/{vm}",
    "GET /v1/objects/{kind}/{name}",
    "GET /v1/usage/{vm}",
    "GET /v1/vms/{vm}/agent/cp",
    "GET /v1/vms/{vm}/agent/exec",
    "GET /v1/vms/{vm}/agent/exec/{id}",
    "GET /v1/vms/{vm}/agent/exec/{id}/logs",
    "GET /v1/vms/{vm}/agent/exec/{id}/wait-exit",
    "GET /v1/vms/{vm}/agent/forward",
    "GET /v1/vms/{vm}/agent/fs/readdir",
    "GET /v1/vms/{vm}/agent/fs/stat",
    "GET /v1/vms/{vm}/agent/fs/watch",
    "GET /v1/vms/{vm}/agent/health",
    "GET /v1/vms/{vm}/agent/sftp",
    "GET /v1/vms/{vm}/agent/shell",
    "GET /v1/vms/{vm}/agent/stats",
    "GET /v1/vms/{vm}/agent/userdata/logs",
    "GET /v1/watch",
    "GET /vm/{vm}",
    "GET /vm/{vm}/cp",
    "GET /vm/{vm}/exec",
    "GET /vm/{vm}/exec/{id}",
    "GET /vm/{vm}/exec/{id}/logs",
    "GET /vm/{vm}/exec/{id}/wait-exit",
    "GET /vm/{vm}/forward",
    "GET /vm/{vm}/fs/readdir",
    "GET /vm/{vm}/fs/stat",
    "GET /vm/{vm}/fs/watch",
    "GET /vm/{vm}/health",
    "GET /vm/{vm}/logs",
    "GET /vm/{vm}/shell",
    "GET /vm/{vm}/tags",
    "PATCH /vm/{vm}/tags",
    "POST /v1/console/{vm}",
    "POST /v1/vms/{vm}/agent/cp",
    "POST /v1/vms/{vm}/agent/exec",
    "POST /v1/vms/{vm}/agent/exec/{id}/kill",
    "POST /v1/vms/{vm}/agent/fs/mkdir",
    "POST /v1/vms/{vm}/{verb}",
    "POST /vm/{vm}/cp",
    "POST /vm/{vm}/exec",
    "POST /vm/{vm}/exec/{id}/kill",
    "POST /vm/{vm}/fs/mkdir",
    "POST /vm/{vm}/pause",
    "POST /vm/{vm}/relaunch",
    "POST /vm/{vm}/restore",
    "POST /vm/{vm}/resume",
    "POST /vm/{vm}/shutdown",
    "POST /vm/{vm}/suspend",
];

/// All routes with their methods: those of the OpenAPI document, which another test compares with the router.
fn routes() -> BTreeSet<(String, String)> {
    let document: serde_json::Value =
        serde_json::from_slice(&crate::wire::openapi()).expect("a document");
    let paths = document["paths"].as_object().expect("paths");
    let of_path = |(path, item): (&String, &serde_json::Value)| {
        let methods = item.as_object().expect("methods").keys();
        let path = path.clone();
        methods
            .map(|method| (method.to_uppercase(), path.clone()))
            .collect::<Vec<_>>()
    };
    paths.iter().flat_map(of_path).collect()
}

/// The pattern of the router for a path of the document.
fn pattern(path: &str) -> &str {
    match path.starts_with("/v1/vms/{vm}/agent/") {
        true => "/v1/vms/{vm}/agent/{*path}",
        false => path,
    }
}

/// Whether a node may use a route, if it names a VM where the route has a name.
fn may(method: &str, path: &str, query: &str, kind: &str) -> bool {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let concrete = path.replace("{kind}", kind).replace(['{', '}'], "");
    subject(Some(pattern(path)), &method, &concrete, query).is_some()
}

#[test]
fn the_certificate_of_a_node_authorises_requests_for_vms_and_for_events_and_no_other_route() {
    let all = routes();
    assert!(all.len() > 100, "{}", all.len());
    let found: BTreeSet<String> = all
        .iter()
        .filter(|(method, path)| may(method, path, "object=vm/a-1", "vm"))
        .map(|(method, path)| format!("{method} {path}"))
        .collect();
    let expected: BTreeSet<String> = PERMITTED.iter().map(|it| (*it).to_owned()).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_route_that_may_name_something_else_is_refused_for_that() {
    for (method, path, query, kind) in [
        ("GET", "/v1/objects/{kind}/{name}", "", "hostgroup"),
        ("DELETE", "/v1/objects/{kind}/{name}", "", "hostgroup"),
        ("GET", "/v1/objects/{kind}/{name}", "", "lease"),
        ("GET", "/v1/watch", "", "vm"),
        ("GET", "/v1/watch", "object=host", "vm"),
        ("GET", "/v1/watch", "object=hostgroup/a", "vm"),
        ("GET", "/v1/watch", "object=vm/a&object=vm/b", "vm"),
        ("HEAD", "/v1/events", "", "vm"),
        ("POST", "/v1/events", "", "vm"),
        ("GET", "/v1/fleet/events", "", "vm"),
        ("GET", "/v1/objects/{kind}", "", "vm"),
        ("GET", "/v1/new", "object=vm/a", "vm"),
    ] {
        assert!(!may(method, path, query, kind), "{method} {path}?{query}");
    }
    for query in ["", "follow=true", "object=host", "object=vm/a"] {
        assert!(may("GET", "/v1/events", query, "vm"), "{query}");
    }
    assert_eq!(subject(None, &Method::GET, "/v1/vms/a", ""), None);
}

#[test]
fn the_uid_of_a_vm_is_one_valid_header() {
    let text = "6b29fc40-ca47-1067-b31d-00dd010662da";
    let found = |values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(FORWARDED_VM, HeaderValue::from_static(value));
        }
        uid(&headers).map_err(|response| response.status().as_u16())
    };
    assert_eq!(found(&[]), Ok(None));
    assert_eq!(found(&[text]), Ok(Some(text.parse().unwrap())));
    for values in [&[""][..], &["box-1"], &[text, text]] {
        assert_eq!(found(values), Err(403), "{values:?}");
    }
}

#[test]
fn a_vm_is_the_one_that_is_meant_only_with_its_uid() {
    let mut known = Known::new(Ca::new("ours").node("node-b"));
    let uid = Uid::random();
    known.vms.insert(name("web-1"), uid);
    let peers = peers(known);
    let status = |vm: &str, uid: Uid| {
        let vm = ForwardedVm {
            name: name(vm),
            uid,
        };
        let found = peers.has(Some(&vm));
        found.map_err(|response| response.status().as_u16())
    };
    assert_eq!(status("web-1", uid), Ok(()));
    // Another VM that has this name now, one of another name, and one that is not of the fleet.
    assert_eq!(status("web-1", Uid::random()), Err(404));
    assert_eq!(status("web-2", uid), Err(404));
    assert!(peers.has(None).is_ok());
}
