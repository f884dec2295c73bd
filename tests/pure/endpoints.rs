//! The table of endpoints of each API and its router list the same methods and paths, and so does the OpenAPI document.
//! Out of scope: what they answer.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::source::root;

/// A method and a path, such as `GET /v1/version`.
type Endpoints = BTreeSet<String>;

/// The rows of the table. `[/{name}]` is an optional part.
fn documented(module: &str) -> Endpoints {
    let text = fs::read_to_string(root().join(module)).expect("the module");
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | `"));
    let requests = rows.filter_map(|row| row.split(['`', '?']).next());
    let mut found = Endpoints::new();
    for request in requests {
        match request.split_once('[') {
            None => {
                found.insert(request.to_owned());
            }
            Some((whole, part)) => {
                found.insert(whole.to_owned());
                found.insert(format!("{whole}{}", part.trim_end_matches(']')));
            }
        }
    }
    found
}

/// The calls of `.route(path, get(…).delete(…))`.
fn routed(module: &str) -> Endpoints {
    let text = fs::read_to_string(root().join(module)).expect("the module");
    let mut found = Endpoints::new();
    for call in text.split(".route(").skip(1) {
        let mut parts = call.splitn(3, '"');
        let (path, methods) = (parts.nth(1).expect("a path"), parts.next().unwrap_or(""));
        let methods = methods.split("\n        .").next().unwrap_or(methods);
        for method in ["any", "get", "post", "put", "patch", "delete"] {
            if methods.contains(&format!("{method}(")) {
                found.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    found
}

#[test]
fn the_table_of_endpoints_and_the_router_agree() {
    for (table, router, least) in [
        ("src/wire/mod.rs", "src/wire/server.rs", 15),
        ("src/wire/compat/mod.rs", "src/wire/compat/mod.rs", 40),
        ("src/wire/ui/mod.rs", "src/wire/ui/mod.rs", 4),
    ] {
        let (documented, routed) = (documented(table), routed(router));
        assert!(routed.len() > least, "{routed:#?}");
        assert_eq!(documented, routed);
    }
}

#[test]
fn the_openapi_document_describes_the_routes_of_the_rest_api() {
    let document: Value = serde_json::from_slice(&slicectl::wire::openapi()).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    let mut described = Endpoints::new();
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().expect("methods") {
            described.insert(format!("{} {path}", method.to_uppercase()));
            let responses = operation["responses"].as_object().expect("responses");
            assert!(
                responses
                    .keys()
                    .any(|status| status.as_str() < "400" || status == "501"),
                "{method} {path}"
            );
            assert!(
                operation["summary"].is_string() || operation["description"].is_string(),
                "{method} {path}"
            );
        }
    }
    let mut routed = routed("src/wire/compat/mod.rs");
    // The path of one client, which is no part of the API.
    assert!(routed.remove("GET /hostgroup/{group}/{nodes}"));
    assert_eq!(described, routed);
}
