//! The examples of the OpenAPI document are recorded answers (`tests/e2e/contract/recorded.rs`), and fit their schemas.
//! Out of scope: the answers of today.

use std::fs;

use serde_json::Value;
use test_support::openapi::{Answer, DOCUMENT, check};

use super::endpoints::operations;
use super::source::root;

/// A request that only a group in bridge mode answers.
const NOT_RECORDED: [&str; 1] = ["GET /v1/route/{group}"];

/// Requests that only a node of a fleet answers; `tests/e2e/fleet/verbs` checks the answers.
const OF_A_FLEET: &str = " /v1/fleet/";

#[test]
fn the_examples_of_the_document_are_recorded_and_fit_their_schemas() {
    let recorded = fs::read_to_string(root().join("tests/goldens/api.json")).expect("answers");
    let recorded: Value = serde_json::from_str(&recorded).expect("JSON");
    let mut count = 0;
    for (request, answers) in recorded.as_object().expect("an object") {
        let (method, path) = request.split_once(' ').expect("a method and a path");
        let bodies = answers.as_object().expect("statuses").iter();
        let bodies = bodies.flat_map(|(status, bodies)| {
            let bodies = bodies.as_object().expect("bodies").iter();
            bodies.map(move |(content_type, body)| (status, content_type, body))
        });
        for (status, content_type, body) in bodies {
            let text = match (content_type.as_str(), body) {
                ("application/json", _) => body.to_string(),
                // Of many lines, one is an example of their schema.
                ("application/x-ndjson", _) => format!("{body}\n"),
                (_, Value::String(text)) => text.clone(),
                _ => panic!("{request}: {content_type}"),
            };
            let answer = Answer {
                status: status.parse().expect("a status"),
                content_type: Some(content_type),
                body: text.as_bytes(),
            };
            check(method, path, answer).unwrap_or_else(|error| panic!("{request}: {error}"));
            let operation = &DOCUMENT["paths"][path][method.to_lowercase()];
            let example = &operation["responses"][status]["content"][content_type]["example"];
            assert_eq!(example, body, "{request} {status}");
            count += 1;
        }
    }
    assert!(count > 50, "{count}");
    // What is answered with JSON has an example, but where no test can receive it.
    for (request, operation) in operations() {
        let responses = operation["responses"].as_object().expect("responses");
        for (status, response) in responses
            .iter()
            .filter(|(status, _)| status.as_str() < "300")
        {
            let media = &response["content"]["application/json"];
            if media.is_object() && request != "GET /openapi.json" {
                let has_example = !media["example"].is_null();
                assert!(
                    has_example
                        || NOT_RECORDED.contains(&request.as_str())
                        || request.contains(OF_A_FLEET),
                    "{request} {status}"
                );
            }
        }
    }
}
