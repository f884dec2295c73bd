//! The table of endpoints in `src/wire/mod.rs` and the router list the same methods and paths.
//! Out of scope: what they answer.

use std::collections::BTreeSet;
use std::fs;

use super::source::root;

/// A method and a path, such as `GET /v1/version`.
type Endpoints = BTreeSet<String>;

/// The rows of the table. `[/{name}]` is an optional part.
fn documented() -> Endpoints {
    let text = fs::read_to_string(root().join("src/wire/mod.rs")).expect("the module");
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
fn routed() -> Endpoints {
    let text = fs::read_to_string(root().join("src/wire/server.rs")).expect("the module");
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
    let (documented, routed) = (documented(), routed());
    assert!(routed.len() > 15, "{routed:#?}");
    assert_eq!(documented, routed);
}
