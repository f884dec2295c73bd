//! Answers that are examples in the OpenAPI document: `tests/goldens/api.json`. Their shapes are those of today's answers; `BLESS=1` records
//! them again, without what is random.
//! Out of scope: what the answers mean.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use test_support::harness::{Harness, slots};
use test_support::openapi;

use super::client::Api;
use super::with_agent;

/// The longest list and text of an example.
const ITEMS: usize = 2;
const TEXT: usize = 200;

/// Sends requests and keeps the answers.
struct Recorder<'a> {
    api: &'a Api,
    /// What is replaced in texts.
    names: Vec<(String, &'static str)>,
    answers: Map<String, Value>,
}

impl Recorder<'_> {
    #[track_caller]
    fn send(&mut self, expected: u16, request: &str, body: Option<&Value>) -> Value {
        let (method, path) = request.split_once(' ').expect("a method and a path");
        let body = body.map(Value::to_string);
        let answer = self.api.send(method, path, body.as_deref());
        assert_eq!(answer.status, expected, "{request}: {answer:?}");
        let content_type = answer.header("content-type").unwrap_or_default().to_owned();
        let content = match content_type.as_str() {
            "application/json" => answer.json(),
            "application/x-ndjson" => answer.lines().last().cloned().unwrap_or_default(),
            _ => return Value::Null,
        };
        let template = openapi::template(path).expect("a path of the document");
        let of_request = &mut self
            .answers
            .entry(format!("{method} {template}"))
            .or_insert(json!({}));
        let kept = &mut of_request[expected.to_string()][&content_type];
        if kept.is_null() {
            *kept = sanitised(&self.names, "", &content);
        }
        content
    }

    #[track_caller]
    fn get(&mut self, path: &str) -> Value {
        self.send(200, &format!("GET {path}"), None)
    }

    #[track_caller]
    fn post(&mut self, expected: u16, path: &str, body: &Value) -> Value {
        self.send(expected, &format!("POST {path}"), Some(body))
    }
}

/// The value without times, ids and names that are random.
fn sanitised(names: &[(String, &'static str)], key: &str, value: &Value) -> Value {
    let counted = ["pid", "tap", "netns", "digest", "mac", "host_link"];
    match value {
        Value::String(text) if text.parse::<jiff::Timestamp>().is_ok() => {
            json!("2026-01-02T03:04:05.678901234Z")
        }
        Value::String(text) if uuid::Uuid::parse_str(text).is_ok() => {
            json!("61f70711-4049-4b44-a633-a5cd2d2ed748")
        }
        Value::String(_) if key == "exec_id" => json!("ex_0123456789abcdef"),
        Value::String(_) if key == "resource_version" => json!("0123456789abcdef-42"),
        Value::String(_) if counted.contains(&key) => json!("random"),
        Value::Number(_) if counted.contains(&key) => json!(1234),
        Value::String(text) => {
            let replaced = names
                .iter()
                .fold(text.clone(), |text, (name, by)| text.replace(name, by));
            let parts = replaced.split('/').filter(|part| !part.starts_with(".tmp"));
            let text = parts.collect::<Vec<_>>().join("/");
            json!(text.chars().take(TEXT).collect::<String>())
        }
        Value::Array(items) => items
            .iter()
            .take(ITEMS)
            .map(|item| sanitised(names, key, item))
            .collect(),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| (key.clone(), sanitised(names, key, value)));
            Value::Object(fields.collect())
        }
        other => other.clone(),
    }
}

/// Its keys and types.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(_) => json!("boolean"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("text"),
        Value::Array(items) => items.iter().take(1).map(shape).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| (key.clone(), shape(value)))
            .collect(),
    }
}

fn of_daemon(to: &mut Recorder, harness: &Harness) {
    // The group with guests has the other range.
    let slots = |count, network| slots(count, network).replace("169.254.100.0", "169.254.104.0");
    let manifest = slots(1, "allow: [10.0.0.0/8]");
    let sources = json!({"sources": [{"name": "sandbox.yaml", "text": manifest}]});
    let changed =
        json!({"sources": [{"name": "sandbox.yaml", "text": slots(2, "drop: [10.0.0.0/8]")}]});
    to.post(200, "/v1/apply", &sources);
    to.post(200, "/v1/names", &sources);
    harness.until("its VM is ready", || {
        let vm = harness.get("vm sandbox-1");
        (vm["status"]["ready"] == true).then_some(())
    });
    to.post(200, "/v1/diff", &changed);
    to.post(
        422,
        "/v1/apply",
        &json!({"sources": [{"name": "a.yaml", "text": "config: 1"}]}),
    );
    to.post(422, "/v1/apply", &json!({"sources": 1}));
    for path in [
        "/info",
        "/hostgroup",
        "/v1/version",
        "/v1/objects/vm",
        "/v1/objects/vm/sandbox-1",
        "/v1/doctor",
        "/v1/events?object=vm/sandbox-1",
        "/v1/explain/sandbox-1?packet=1.2.3.4:443/tcp",
    ] {
        to.get(path);
    }
    to.send(404, "GET /v1/objects/vm/nobody", None);
    to.send(422, "GET /v1/objects/pod", None);
    to.send(410, "GET /v1/watch?since=0123456789abcdef-1", None);
    to.post(200, "/v1/gc?dry_run=true", &json!({}));
    to.post(201, "/v1/groups/sandbox/vms", &json!({"name": "extra"}));
    to.post(200, "/v1/groups/sandbox/vms", &json!({"name": "extra"}));
    to.post(
        409,
        "/v1/groups/sandbox/vms",
        &json!({"name": "extra", "tags": {"job": "42"}}),
    );
    to.send(
        200,
        "PUT /v1/groups/sandbox/scale",
        Some(&json!({"count": 1})),
    );
    to.send(409, "DELETE /v1/vms/sandbox-1", None);
    let secret = json!({"name": "token", "data": "aHVudGVyMg=="});
    to.post(201, "/secrets", &secret);
    to.post(409, "/secrets", &secret);
    to.get("/secrets");
    to.send(
        200,
        "PATCH /secrets/token",
        Some(&json!({"permissions": "0644"})),
    );
    to.send(404, "PATCH /secrets/other", Some(&json!({})));
}

fn of_vms(to: &mut Recorder, vm: &str) {
    for path in ["/nodes", "/hostgroup/box/nodes", "/nodes/stats"] {
        to.get(path);
    }
    for path in ["", "/tags", "/logs", "/health"] {
        to.get(&format!("/vm/{vm}{path}"));
    }
    to.get(&format!("/node/{vm}/stats"));
    to.get(&format!("/v1/metrics/{vm}"));
    to.get(&format!("/v1/usage/{vm}"));
    to.get(&format!("/v1/vms/{vm}/agent/health"));
    to.get(&format!("/v1/vms/{vm}/agent/stats"));
    to.send(
        200,
        &format!("PATCH /vm/{vm}/tags"),
        Some(&json!({"add": ["job=42"]})),
    );
    to.send(404, "GET /vm/nobody", None);
    to.send(501, &format!("POST /vm/{vm}/suspend"), None);
    to.send(501, &format!("POST /vm/{vm}/restore"), None);
    let created = to.post(200, "/hostgroup/box/nodes", &json!({"tags": ["name=web"]}));
    to.post(409, "/hostgroup/box/nodes", &json!({"tags": ["name=web"]}));
    to.post(400, "/hostgroup/box/nodes", &json!({"cpus": "many"}));
    let other = created["hostname"].as_str().expect("a name");
    to.names.push((other.to_owned(), "box-q7w2n"));
    to.send(200, &format!("DELETE /hostgroup/box/nodes/{other}"), None);
    to.send(403, "DELETE /hostgroup/sandbox/nodes/sandbox-1", None);
}

fn of_guests(to: &mut Recorder, vm: &str) {
    let exec = format!("/vm/{vm}/exec");
    let none = Value::Null;
    to.post(200, &format!("{exec}?cmd=echo&args=hello"), &none);
    to.post(
        200,
        &format!("{exec}?cmd=echo&args=hello&buffered=true"),
        &none,
    );
    to.post(400, &exec, &none);
    let started = to.post(
        201,
        &format!("{exec}?cmd=sleep&args=60&background=true"),
        &none,
    );
    let id = started["exec_id"].as_str().expect("an id").to_owned();
    to.get(&exec);
    to.get(&format!("{exec}/{id}"));
    to.send(409, &format!("DELETE {exec}/{id}"), None);
    to.post(
        200,
        &format!("{exec}/{id}/kill"),
        &json!({"signal": "KILL"}),
    );
    to.get(&format!("{exec}/{id}/wait-exit?timeout=10"));
    to.get(&format!("{exec}/{id}/logs"));
    to.send(200, &format!("DELETE {exec}/{id}"), None);
    to.send(410, &format!("GET {exec}/{id}"), None);
    to.get(&format!("/vm/{vm}/fs/stat?path=/proc/self/status"));
    to.get(&format!(
        "/vm/{vm}/fs/readdir?path={}/docs/reference",
        env!("CARGO_MANIFEST_DIR")
    ));
    to.send(404, &format!("GET /vm/{vm}/fs/stat?path=/nowhere"), None);
    to.send(426, &format!("GET /vm/{vm}/shell"), None);
}

fn of_power(to: &mut Recorder, vm: &str) {
    to.send(200, &format!("POST /v1/vms/{vm}/pause"), None);
    to.send(409, &format!("GET /vm/{vm}/health"), None);
    to.send(200, &format!("POST /vm/{vm}/resume"), None);
    to.send(409, &format!("POST /vm/{vm}/relaunch"), None);
    to.send(200, &format!("POST /vm/{vm}/shutdown"), None);
    to.send(200, &format!("POST /vm/{vm}/relaunch"), None);
}

#[test]
fn the_examples_of_the_document_are_answers_of_today() {
    with_agent(|harness, api, vm| {
        let dir = harness.dir.path().display().to_string();
        let tests = env!("CARGO_TARGET_TMPDIR").to_owned();
        let root = env!("CARGO_MANIFEST_DIR").to_owned();
        let names = vec![
            (vm.to_owned(), "box-x4k2p"),
            (dir, "/etc/slice"),
            (tests, "/usr/lib"),
            (root, "/usr/lib"),
        ];
        let mut to = Recorder {
            api,
            names,
            answers: Map::new(),
        };
        of_daemon(&mut to, harness);
        of_vms(&mut to, vm);
        of_guests(&mut to, vm);
        of_power(&mut to, vm);
        let found = Value::Object(to.answers);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/api.json");
        if std::env::var_os("BLESS").is_some() {
            let text = serde_json::to_string_pretty(&found).expect("JSON");
            fs::write(&path, text + "\n").expect("written");
        }
        let recorded = fs::read_to_string(&path).expect("answers");
        let recorded: Value = serde_json::from_str(&recorded).expect("JSON");
        let recorded = recorded.as_object().expect("an object");
        let found = found.as_object().expect("an object");
        assert!(
            recorded.keys().eq(found.keys()),
            "BLESS=1 records: {:?} {:?}",
            recorded.keys(),
            found.keys()
        );
        for (request, answers) in found {
            assert_eq!(
                shape(answers),
                shape(&recorded[request]),
                "{request}: BLESS=1 records it"
            );
        }
    });
}
