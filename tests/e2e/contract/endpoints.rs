//! What is answered without a guest: the daemon, groups, lists, and every error.
//! Out of scope: guests.

use serde_json::{Value, json};

use super::{assert_error, with_slots};

#[test]
fn the_daemon_describes_itself_as_clients_expect_it() {
    with_slots(|harness, api| {
        let health = api.get("/healthz");
        assert_eq!((health.status, health.text().as_str()), (200, "OK"));
        assert_eq!(api.send("HEAD", "/healthz", None).status, 200);
        let info = api.get("/info");
        assert_eq!(info.status, 200);
        let info = info.json();
        assert_eq!(info["platform"], "linux");
        let arch = info["arch"].as_str().expect("a text");
        assert!(["amd64", "arm64"].contains(&arch), "{arch}");
        assert!(info["version"].is_string() && info["git_commit"].is_string());

        let groups = api.get("/hostgroup").json();
        assert_eq!(
            groups,
            json!([{"name": "sandbox", "count": 1, "ram_bytes": 128 << 20, "cpus": 1, "gpu_count": 0, "arch": arch}])
        );
        let nodes = api.get("/nodes").json();
        assert_eq!(nodes, api.get("/hostgroup/sandbox/nodes").json());
        let node = &nodes[0];
        assert_eq!(node["hostname"], "sandbox-1");
        assert_eq!(node["hostgroup"], "sandbox");
        assert_eq!(node["tags"], json!([]), "a list is never null");
        assert_eq!(node["status"], "Running");
        assert_eq!(node["persistent"], false);
        let ip: std::net::Ipv4Addr = node["ip"].as_str().expect("a text").parse().expect("plain");
        assert_eq!(harness.place("sandbox-1").ip, ip.to_string());
        let created = node["created_at"].as_str().expect("a text");
        assert!(created.parse::<jiff::Timestamp>().is_ok(), "{created}");
        assert!(node.get("last_agent_call").is_none());

        let metrics = api.get("/metrics");
        assert!(
            metrics
                .header("content-type")
                .is_some_and(|it| it.starts_with("text/plain"))
        );
        let text = metrics.text();
        for line in [
            "slicer_vm_running{host_group=\"sandbox\",api=\"false\",state=\"running\"} 1",
            "slicer_api_requests_total{method=\"GET\",code=\"200\"}",
            "slicer_api_request_duration_seconds_count",
            "slicer_system_memory_total_bytes",
            "slicer_system_load_avg_15",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    });
}

#[test]
fn a_group_that_is_added_while_the_daemon_runs_is_there_at_once() {
    with_slots(|harness, api| {
        let manifest = test_support::harness::group("late", 0, "169.254.104.0/22", "");
        harness.apply(&manifest);
        let names: Vec<Value> = api
            .get("/hostgroup")
            .json()
            .as_array()
            .expect("a list")
            .clone();
        let names: Vec<_> = names.iter().map(|group| group["name"].clone()).collect();
        assert_eq!(names, ["late", "sandbox"]);
        assert_eq!(api.get("/hostgroup/late/nodes").json(), json!([]));
        assert_eq!(api.post("/hostgroup/late/nodes", &json!({})).status, 200);
    });
}

#[test]
fn every_error_is_one_sentence_in_json_with_the_status_that_clients_expect() {
    with_slots(|harness, api| {
        let many: Vec<String> = (0..65).map(|number| number.to_string()).collect();
        let many = json!({ "tags": many }).to_string();
        let create = "/hostgroup/sandbox/nodes";
        // Method, path, body, status, part of the sentence.
        let table: [(&str, &str, Option<&str>, u16, &str); 61] = [
            ("GET", "/vm/%FF", None, 400, "invalid request"),
            ("GET", "/nowhere", None, 404, "path /nowhere not found"),
            ("GET", "/vm/sandbox-1/nothing", None, 404, "not found"),
            ("GET", "/vm/sandbox-1/fs/nothing", None, 404, "not found"),
            ("POST", "/vm/sandbox-1/commit", None, 404, "not found"),
            ("GET", "/vm/commits", None, 404, "not found"),
            ("GET", "/proxy/v1/clients", None, 404, "not found"),
            ("GET", "/hostgroup/sandbox/other", None, 404, "not found"),
            (
                "GET",
                "/hostgroup/sandbox/nodes%3Ftag=a%26tag_prefix=b",
                None,
                400,
                "expected one of them",
            ),
            ("PUT", "/nodes", None, 405, "does not support method PUT"),
            (
                "GET",
                "/hostgroup/other/nodes",
                None,
                404,
                "hostgroup/other not found",
            ),
            ("GET", "/hostgroup/-/nodes", None, 404, "not found"),
            (
                "GET",
                "/nodes?tag=a&tag_prefix=b",
                None,
                400,
                "expected one of them",
            ),
            ("GET", "/vm/other", None, 404, "vm/other not found"),
            ("GET", "/vm/a%0Ab", None, 404, "not found"),
            ("GET", "/vm/other/tags", None, 404, "vm/other not found"),
            ("GET", "/vm/other/logs", None, 404, "vm/other not found"),
            ("GET", "/vm/other/health", None, 404, "vm/other not found"),
            ("GET", "/node/other/stats", None, 404, "vm/other not found"),
            (
                "POST",
                "/vm/other/exec?cmd=id",
                None,
                404,
                "vm/other not found",
            ),
            ("POST", "/vm/other/pause", None, 404, "vm/other not found"),
            ("POST", "/vm/other/resume", None, 404, "vm/other not found"),
            (
                "POST",
                "/vm/other/shutdown",
                None,
                404,
                "vm/other not found",
            ),
            (
                "POST",
                "/vm/other/relaunch",
                None,
                404,
                "vm/other not found",
            ),
            ("POST", "/vm/other/suspend", None, 404, "vm/other not found"),
            (
                "POST",
                "/vm/sandbox-1/suspend",
                None,
                501,
                "snapshots are not supported",
            ),
            (
                "POST",
                "/vm/sandbox-1/restore?wait=agent",
                None,
                501,
                "snapshots are not supported",
            ),
            (
                "PATCH",
                "/vm/other/tags",
                Some("{}"),
                404,
                "vm/other not found",
            ),
            (
                "PATCH",
                "/vm/sandbox-1/tags",
                Some(r#"{"add":["a"]}"#),
                409,
                "it has no tags",
            ),
            (
                "DELETE",
                "/hostgroup/sandbox/nodes/other",
                None,
                404,
                "vm/other not found",
            ),
            (
                "DELETE",
                "/hostgroup/other/nodes/sandbox-1",
                None,
                404,
                "not found in hostgroup/other",
            ),
            (
                "DELETE",
                "/hostgroup/sandbox/nodes/sandbox-1",
                None,
                403,
                "is protected",
            ),
            // Guests without a VMM of the daemon.
            ("GET", "/vm/sandbox-1/health", None, 400, "has no agent"),
            ("GET", "/vm/sandbox-1/logs", None, 409, "hypervisor is none"),
            (
                "POST",
                "/vm/sandbox-1/exec?cmd=id",
                None,
                409,
                "has no agent",
            ),
            ("GET", "/vm/sandbox-1/cp?path=/", None, 409, "has no agent"),
            (
                "POST",
                "/vm/sandbox-1/pause",
                None,
                409,
                "hypervisor is none",
            ),
            (
                "POST",
                "/vm/sandbox-1/shutdown",
                None,
                409,
                "hypervisor is none",
            ),
            (
                "POST",
                "/vm/sandbox-1/shutdown?action=burn",
                None,
                400,
                "invalid action",
            ),
            (
                "POST",
                "/vm/sandbox-1/shutdown",
                Some(r#"{"action":"burn"}"#),
                400,
                "invalid action",
            ),
            (
                "POST",
                "/vm/sandbox-1/relaunch",
                None,
                409,
                "hypervisor is none",
            ),
            ("GET", "/vm/sandbox-1/logs?lines=x", None, 400, "invalid"),
            // Creation.
            (
                "POST",
                "/hostgroup/other/nodes",
                Some("{}"),
                404,
                "hostgroup/other not found",
            ),
            ("POST", create, Some("["), 400, "invalid body"),
            ("POST", create, Some(r#"{"cpus":2}"#), 400, "at most 1"),
            ("POST", create, Some(r#"{"cpus":-1}"#), 400, "invalid body"),
            (
                "POST",
                create,
                Some(r#"{"ram_bytes":1073741824}"#),
                400,
                "at most 128 MiB",
            ),
            (
                "POST",
                create,
                Some(r#"{"gpu_count":1}"#),
                400,
                "gpu_count is not supported",
            ),
            (
                "POST",
                create,
                Some(r#"{"disk_image":"x"}"#),
                400,
                "disk_image is not supported",
            ),
            (
                "POST",
                create,
                Some(r#"{"import_user":"x"}"#),
                400,
                "import_user is not supported",
            ),
            (
                "POST",
                create,
                Some(r#"{"ip":"169.254.100.9"}"#),
                400,
                "cannot choose ip",
            ),
            (
                "POST",
                create,
                Some(r#"{"tags":["a\nb"]}"#),
                400,
                "invalid tags",
            ),
            (
                "POST",
                create,
                Some(r#"{"tags":["name=Not a label"]}"#),
                400,
                "invalid tags",
            ),
            (
                "POST",
                create,
                Some(r#"{"tags":["name=sandbox-9"]}"#),
                400,
                "have such names",
            ),
            (
                "POST",
                create,
                Some(r#"{"tags":["name=sandbox-bcdfg"]}"#),
                400,
                "have such names",
            ),
            ("POST", create, Some(&many), 400, "at most 64"),
            (
                "POST",
                create,
                Some(r#"{"network":{"allow":["x y"]}}"#),
                400,
                "invalid network.allow",
            ),
            (
                "POST",
                create,
                Some(r#"{"secrets":["none"]}"#),
                400,
                "secret \"none\" not found",
            ),
            (
                "POST",
                create,
                Some(r#"{"ssh_keys":["x"]}"#),
                400,
                "invalid ssh_keys",
            ),
            (
                "POST",
                "/hostgroup/sandbox/nodes?wait=agent",
                Some("{}"),
                400,
                "has no agent",
            ),
            (
                "POST",
                "/hostgroup/sandbox/nodes?wait=soon",
                Some("{}"),
                400,
                "invalid wait",
            ),
        ];
        for (method, path, body, status, sentence) in table {
            eprintln!("{method} {path} {body:?}");
            assert_error(&api.send(method, path, body), status, sentence);
        }
        assert_eq!(harness.vms(), ["sandbox-1"], "nothing was created");
        let large = vec![b' '; 2 << 20];
        let answer = api.send_bytes("POST", create, Some(&large));
        assert_error(&answer.expect("an answer"), 413, "larger than");
    });
}

#[test]
fn a_request_to_shut_down_ends_the_daemon_and_keeps_the_vms() {
    with_slots(|harness, api| {
        let ip = harness.place("sandbox-1").ip;
        let answer = api.send("POST", "/daemon/shutdown", None);
        assert_eq!((answer.status, answer.text().as_str()), (202, ""));
        harness.until("the daemon ends", || {
            api.send_bytes("GET", "/healthz", None)
                .is_none()
                .then_some(())
        });
        harness.restart();
        assert_eq!(api.get("/nodes").json()[0]["ip"], ip);
    });
}

#[test]
fn the_openapi_document_describes_the_routes() {
    with_slots(|_, api| {
        let document = api.get("/openapi.json");
        assert_eq!(document.header("content-type"), Some("application/json"));
        let document = document.json();
        assert!(
            document["openapi"]
                .as_str()
                .is_some_and(|it| it.starts_with("3."))
        );
        assert!(document["paths"]["/hostgroup/{group}/nodes"]["post"].is_object());
    });
}
