//! The OpenAPI document of all requests.
//! Out of scope: the handlers, which have the attributes that it is made of.
//!
//! What requests have in common is added here and not repeated in attributes: the parameters of paths, the errors that are answered before
//! a handler is called, the bodies of errors, ids, and examples. Requests that both APIs have are described once.

use std::sync::LazyLock;

use axum::http::StatusCode;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::error_body::ErrorBody;
use super::{compat, fleet, peer, v1, watch};
use crate::api::view::Problem;
use crate::guest::protocol::{Health, Stats};

/// Answers that a daemon has sent, by request and status; a test records them.
const RECORDED: &str = include_str!("../../tests/goldens/api.json");

/// The paths of `/v1`, and the schemas that no attribute names.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "sliced",
        description = "MicroVMs of one host: create, use and delete them. `/v1` is the API of slicectl; all other paths are those of Slicer. \
            Errors are JSON objects with one sentence. A listener on a Unix socket may need no token."
    ),
    paths(
        v1::version,
        v1::apply,
        v1::diff,
        v1::names,
        v1::objects,
        v1::object,
        v1::delete,
        v1::scale,
        v1::add_vm,
        v1::remove_vm,
        v1::power,
        v1::metrics,
        v1::usage,
        v1::events,
        peer::events::events,
        watch::watch,
        v1::logs,
        v1::write_console,
        v1::gc,
        v1::doctor,
        v1::explain,
        v1::route,
        fleet::status,
        fleet::accept,
        fleet::apply,
        fleet::diff,
        fleet::groups,
        fleet::group,
        fleet::delete_group,
        fleet::scale,
        fleet::vms,
        fleet::vm,
        fleet::nodes,
        fleet::node,
        fleet::node_action,
        fleet::node_vms,
        fleet::subnets,
    ),
    components(schemas(Problem, ErrorBody, Health, Stats))
)]
struct V1;

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| match document() {
    Ok(document) => Bytes::from(document.to_string()),
    Err(error) => {
        tracing::error!(%error, "cannot encode the document");
        Bytes::new()
    }
});

/// The text of the document.
pub fn text() -> Bytes {
    DOCUMENT.clone()
}

fn document() -> serde_json::Result<Value> {
    let mut document = V1::openapi();
    document.merge(compat::openapi::Document::openapi());
    let mut document = serde_json::to_value(document)?;
    let recorded: Value = serde_json::from_str(RECORDED)?;
    document["components"]["securitySchemes"] =
        json!({"bearer": {"type": "http", "scheme": "bearer"}});
    document["security"] = json!([{"bearer": []}]);
    let Value::Object(paths) = document["paths"].take() else {
        return Ok(document);
    };
    let mut all = Map::new();
    for (path, item) in with_copies(paths) {
        let Value::Object(mut item) = item else {
            continue;
        };
        for (method, operation) in &mut item {
            complete(method, &path, operation);
            add_examples(operation, &recorded[request(method, &path)], "");
            if let Some(original) = original_of(&path) {
                add_examples(operation, &recorded[request(method, &original)], ERRORS);
            }
        }
        all.insert(path, item.into());
    }
    document["paths"] = all.into();
    Ok(document)
}

/// The paths, and those of `/v1` that have the same handlers.
fn with_copies(mut paths: Map<String, Value>) -> Map<String, Value> {
    let copies: Vec<_> = paths
        .iter()
        .filter_map(|(path, item)| Some((copy_of(path)?, item.clone())))
        .collect();
    paths.extend(copies);
    for (at_agent, summary, body) in [
        (
            "health",
            "The state of the agent.",
            json!({"application/json": {"schema": reference("Health")}}),
        ),
        (
            "stats",
            "Figures of the guest.",
            json!({"application/json": {"schema": reference("Stats")}}),
        ),
        (
            "userdata/logs",
            "The output of the userdata.",
            json!({"application/octet-stream": {"schema": {"type": "string"}}}),
        ),
        ("sftp", "Version 3 of SFTP, as a WebSocket.", Value::Null),
    ] {
        let path = format!("/v1/vms/{{vm}}/agent/{at_agent}");
        // Their errors are those of every request to an agent.
        let errors = &paths["/v1/vms/{vm}/agent/shell"]["get"]["responses"];
        let mut responses = errors.clone();
        if let (Value::Object(responses), false) = (&mut responses, body.is_null()) {
            responses.remove("101");
            responses.remove("426");
            responses.insert(
                "200".to_owned(),
                json!({"description": "", "content": body}),
            );
        }
        let operation = json!({"tags": ["v1"], "summary": summary, "responses": responses});
        paths.insert(path, json!({"get": operation}));
    }
    paths
}

/// The path at `/v1` with the same handler as this one.
fn copy_of(path: &str) -> Option<String> {
    if path.starts_with("/secrets") {
        return Some(format!("/v1{path}"));
    }
    let at_agent = path.strip_prefix("/vm/{vm}/")?;
    compat::is_agent_path(path).then(|| format!("/v1/vms/{{vm}}/agent/{at_agent}"))
}

/// The path of which this one is a copy.
fn original_of(path: &str) -> Option<String> {
    let at_agent = path.strip_prefix("/v1/vms/{vm}/agent/");
    let of_agent = at_agent.map(|rest| format!("/vm/{{vm}}/{rest}"));
    of_agent
        .or_else(|| path.strip_prefix("/v1").map(str::to_owned))
        .filter(|original| copy_of(original).as_deref() == Some(path))
}

fn is_v1(path: &str) -> bool {
    path.starts_with("/v1/")
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

/// Adds what the attributes of an operation do not repeat.
fn complete(method: &str, path: &str, operation: &mut Value) {
    let id = path.replace(['{', '}'], "").replace(['/', '-', '.'], "_");
    operation["operationId"] = format!("{method}{id}").into();
    if is_v1(path) {
        operation["tags"] = json!(["v1"]);
    }
    let names = path
        .split('{')
        .skip(1)
        .filter_map(|rest| rest.split('}').next());
    let of_path = names.map(|name| {
        let (description, example) = described(name);
        let mut parameter = json!({"name": name, "in": "path", "required": true, "description": description, "schema": {"type": "string"}});
        if !example.is_empty() {
            parameter["example"] = example.into();
        }
        parameter
    });
    let mut parameters: Vec<Value> = of_path.collect();
    if let Value::Array(others) = operation["parameters"].take() {
        parameters.extend(others);
    }
    let has_token = operation.get("security").is_none();
    let has_body = operation.get("requestBody").is_some();
    let has_input = has_body || !parameters.is_empty();
    if let Value::Object(responses) = &mut operation["responses"] {
        let reads_json = operation_reads_json(path, has_body);
        for (status, occurs) in [
            (StatusCode::BAD_REQUEST, has_input),
            (StatusCode::UNAUTHORIZED, has_token),
            (StatusCode::FORBIDDEN, true),
            (StatusCode::NOT_FOUND, path.contains('{')),
            (StatusCode::PAYLOAD_TOO_LARGE, has_body),
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, reads_json),
            (StatusCode::UNPROCESSABLE_ENTITY, reads_json),
            (StatusCode::TOO_MANY_REQUESTS, has_token),
            (StatusCode::SERVICE_UNAVAILABLE, true),
        ] {
            if occurs {
                let response = || json!({"description": ""});
                responses.entry(status.as_str()).or_insert_with(response);
            }
        }
        if !is_v1(path) {
            // As `compat` translates it.
            responses.remove(StatusCode::UNPROCESSABLE_ENTITY.as_str());
            responses
                .entry(StatusCode::BAD_REQUEST.as_str())
                .or_insert_with(|| json!({"description": ""}));
        }
        for (status, response) in responses {
            complete_response(path, status, response);
        }
    }
    match parameters.is_empty() {
        true => drop(operation.as_object_mut().map(|it| it.remove("parameters"))),
        false => operation["parameters"] = parameters.into(),
    }
}

/// Whether the body of a request must be declared as JSON.
fn operation_reads_json(path: &str, has_body: bool) -> bool {
    let is_other = ["/v1/secrets", "/v1/vms/", "/v1/console/"];
    has_body && is_v1(path) && !is_other.iter().any(|start| path.starts_with(start))
}

fn complete_response(path: &str, status: &str, response: &mut Value) {
    let is_error = status >= "400";
    if is_error {
        let schema = match is_v1(path) {
            true => "Problem",
            false => "ErrorBody",
        };
        response["content"] = json!({"application/json": {"schema": reference(schema)}});
    }
    if response["description"] == "" {
        let found = StatusCode::from_bytes(status.as_bytes()).ok();
        let text = match status {
            "400" => "The request is invalid",
            "401" => "There is no valid token",
            "403" => "The user may not do this",
            "404" => "It does not exist",
            "409" => "The state of the object does not permit it",
            "410" => "It is no longer there",
            "413" => "The body is too large",
            "415" => "The body is not declared as JSON",
            "422" => "A value is invalid",
            "429" => "There were too many requests without a valid token",
            "500" => "The daemon or the agent failed",
            "503" => "A limit is reached; try again",
            _ => found
                .and_then(|it| it.canonical_reason())
                .unwrap_or_default(),
        };
        response["description"] = text.into();
    }
}

/// The description of a parameter of a path, and an example.
fn described(parameter: &str) -> (&'static str, &'static str) {
    match parameter {
        "vm" => ("The VM", "sandbox-1"),
        "group" => ("The group", "sandbox"),
        "id" => ("The id of the command", "ex_0123456789abcdef"),
        "kind" => ("hostgroup, vm or lease", "vm"),
        "verb" => ("pause, resume, restart, stop or start", "start"),
        _ => ("The name", ""),
    }
}

/// A method and a path, as answers are recorded.
fn request(method: &str, path: &str) -> String {
    format!("{} {path}", method.to_uppercase())
}

/// The first status of an error.
const ERRORS: &str = "400";

/// Adds what was answered to this request, by status and content type; before the status `end`, if there is one.
fn add_examples(operation: &mut Value, recorded: &Value, end: &str) {
    for (status, bodies) in recorded.as_object().into_iter().flatten() {
        if !end.is_empty() && status.as_str() >= end {
            continue;
        }
        let response = operation["responses"].get_mut(status);
        let Some(content) = response.and_then(|it| it.get_mut("content")) else {
            continue;
        };
        for (content_type, body) in bodies.as_object().into_iter().flatten() {
            if let Some(media) = content.get_mut(content_type) {
                media["example"] = body.clone();
            }
        }
    }
}
