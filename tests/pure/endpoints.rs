//! The table of endpoints of each API and its router list the same methods and paths, and so does the OpenAPI document.
//! Out of scope: what they answer.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use test_support::openapi::DOCUMENT;

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

/// The methods and paths of the document.
fn described() -> Endpoints {
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    let operations = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().expect("methods").keys();
        methods.map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    operations.collect()
}

/// The operations of the document with their method and path.
pub fn operations() -> Vec<(String, &'static Value)> {
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    let operations = paths.iter().flat_map(|(path, item)| {
        let item = item.as_object().expect("methods");
        item.iter().map(move |(method, operation)| {
            (format!("{} {path}", method.to_uppercase()), operation)
        })
    });
    operations.collect()
}

#[test]
fn the_openapi_document_describes_the_routes_of_both_apis_and_no_others() {
    let mut expected = routed("src/wire/compat/mod.rs");
    // The path of one client, which is no part of the API.
    assert!(expected.remove("GET /hostgroup/{group}/{nodes}"));
    expected.extend(routed("src/wire/server.rs"));
    // What the agent has is forwarded, except what only the daemon sends.
    const AGENT: &str = "/v1/vms/{vm}/agent";
    assert!(expected.remove(&format!("ANY {AGENT}/{{*path}}")));
    let of_agent = documented("src/guest/protocol.rs");
    expected.extend(of_agent.iter().map(|request| {
        let (method, path) = request.split_once(' ').expect("a method and a path");
        format!("{method} {AGENT}{path}")
    }));
    assert!(expected.len() > 80, "{}", expected.len());
    assert_eq!(described(), expected);
}

#[test]
fn the_operations_of_the_document_are_complete() {
    let mut ids = BTreeSet::new();
    for (request, operation) in operations() {
        let responses = operation["responses"].as_object().expect("responses");
        let has_success = |status: &String| status.as_str() < "400" || status == "501";
        assert!(responses.keys().any(has_success), "{request}");
        assert!(operation["summary"].is_string(), "{request}");
        let id = operation["operationId"].as_str().expect("an id");
        assert!(ids.insert(id), "{request}: {id} twice");
        let is_v1 = request.contains(" /v1/");
        for (status, response) in responses {
            let text = response["description"].as_str();
            assert!(text.is_some_and(|it| !it.is_empty()), "{request} {status}");
            let schema = &response["content"]["application/json"]["schema"]["$ref"];
            let error = match is_v1 {
                true => "#/components/schemas/Problem",
                false => "#/components/schemas/ErrorBody",
            };
            assert_eq!(
                schema == error,
                status.as_str() >= "400",
                "{request} {status}"
            );
        }
        let parameters = operation["parameters"].as_array();
        let of_path = parameters
            .into_iter()
            .flatten()
            .filter(|it| it["in"] == "path");
        assert_eq!(of_path.count(), request.matches('{').count(), "{request}");
        let statuses: &[&str] = match request.as_str() {
            "GET /healthz" => &[],
            _ => &["401", "403", "429", "503"],
        };
        for status in statuses {
            assert!(responses.contains_key(*status), "{request} {status}");
        }
        assert_eq!(
            request == "GET /healthz",
            !operation["security"].is_null(),
            "{request}"
        );
    }
    let text = DOCUMENT.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().expect("a name");
        assert!(
            DOCUMENT["components"]["schemas"][name].is_object(),
            "{name}"
        );
    }
}

/// A handler that can fail declares all errors of its type: the attribute names the type that the signature has.
#[test]
fn the_attributes_of_handlers_name_their_types_of_errors() {
    let mut count = 0;
    for module in super::source::files("src/wire", &["rs"]) {
        let text = fs::read_to_string(&module).expect("a module");
        for block in text.split("#[utoipa::path(").skip(1) {
            let Some((attribute, rest)) = block.split_once("async fn ") else {
                continue;
            };
            let signature = rest.split(" {\n").next().unwrap_or_default();
            for error in ["ApiError", "Rejection"] {
                if signature.contains(error) {
                    assert!(
                        attribute.contains(&format!("{error},")),
                        "{}: {signature}",
                        module.display()
                    );
                    count += 1;
                }
            }
        }
    }
    assert!(count > 30, "{count}");
}
