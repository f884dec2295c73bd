//! What is refused: other certificates, revoked nodes, a second hop, too many requests; and nodes that cannot be reached.
//! Out of scope: what commands do.

use std::fs;
use std::io::{Read, Write};
use std::process::Child;
use std::time::Duration;

use serde_json::json;

use super::{A, B, Killed, VM, text, url, with_fleet, with_fleet_of};
use crate::api_listener::configure;
use crate::api_listener::tls::{authority, save};

#[test]
fn a_listener_has_a_certificate_for_nodes_and_may_have_another_for_users() {
    with_fleet(|fleet| {
        let other = authority("users");
        let [cert, key, ca] = [
            ("tls.crt", &other.cert),
            ("tls.key", &other.key),
            ("users.pem", &other.ca),
        ]
        .map(|(name, text)| save(&fleet.b, name, text).display().to_string());
        let settings =
            fs::read_to_string(fleet.b.dir.path().join("sliced.yaml")).expect("settings");
        let api = format!("api: {{bind_address: {B}}}");
        let both = format!("api: {{bind_address: 0.0.0.0, tls: {{cert: {cert}, key: {key}}}}}");
        configure(&fleet.b, &settings.replace(&api, &both));
        let token = fleet.b.state().join("api/token");
        let of_user = format!(
            "--url https://127.0.0.1:8080 --token-file {} --ca {ca} get vms",
            token.display()
        );
        fleet.b.until("it has the other certificate", || {
            fleet.b.try_ctl(&of_user).status.success().then_some(())
        });
        fleet.succeeds(&["logs", VM]);
        // Without it, a certificate that names no host is of no use to users, and the one before is kept.
        configure(&fleet.b, &settings);
        fleet.b.until("it has that of the fleet", || {
            (!fleet.b.try_ctl(&of_user).status.success()).then_some(())
        });
        fleet.succeeds(&["logs", VM]);
        fleet.pki.node("node-b", &[]);
        fleet.b.until("it is reported", || {
            let messages = fleet.b.messages("host", "ApiListenerFailed");
            messages
                .iter()
                .any(|text| {
                    text.contains("fleet.cert: the certificate has no subject alternative names")
                })
                .then_some(())
        });
        fleet.succeeds(&["logs", VM]);
    });
}

#[test]
fn a_request_is_forwarded_once_and_its_headers_only_by_nodes() {
    with_fleet(|fleet| {
        // Each node takes the VM for one of the other.
        let ghost = json!({"vms": {"ghost-1": "node-b"}, "nodes": {"node-b": url(B)}});
        fleet.a.write("places.json", &ghost.to_string());
        let back = json!({"vms": {"ghost-1": "node-a"}, "nodes": {"node-a": url(A)}});
        fleet.b.write("places.json", &back.to_string());
        let error = fleet.fails(&["logs", "ghost-1"]);
        assert!(error.contains("vm/ghost-1 not found"), "{error}");
        let socket = fleet.a.run.join("sliced.sock");
        let request = |header: &str| {
            let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("connected");
            let text = format!(
                "GET /v1/version HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{header}\r\n\r\n"
            );
            stream.write_all(text.as_bytes()).expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            answer
        };
        let answer = request("slice-forwarded-by: node-b");
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(request("accept: */*").starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn errors_name_the_node_and_what_is_wrong() {
    with_fleet(|fleet| {
        for (node, url, expected) in [
            (
                "node-b",
                json!(null),
                "vm/box-1 is on node node-b, which has no API for other nodes",
            ),
            ("node-b", json!("http://10.66.0.1:8080"), "invalid URL"),
            (
                "node-b",
                json!("https://10.66.0.1:9"),
                "which is unreachable at https://10.66.0.1:9",
            ),
            (
                "node-c",
                json!(url(B)),
                "its certificate is that of node node-b",
            ),
        ] {
            fleet.places(json!({"vms": {VM: node}, "nodes": {node: url}}));
            let error = fleet.error();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    });
}

#[test]
fn a_node_that_is_revoked_or_gone_is_refused_and_its_connections_end() {
    with_fleet(|fleet| {
        let marker = fleet.file("runs");
        let script = format!("touch {}; exec sleep 1000", marker.display());
        let words = ["vm", "exec", VM, "--uid", "0", "--", "sh", "-c", &script];
        let start = || {
            let _ = fs::remove_file(&marker);
            let child = fleet.ctl(&words).spawn().expect("slicectl");
            fleet
                .b
                .until("the command runs", || marker.exists().then_some(()));
            child
        };
        let ends = |mut child: Child| {
            let ended = || child.try_wait().expect("its status");
            let status = fleet.b.until("the connection ends", ended);
            assert!(!status.success());
        };
        let running = start();
        let (of_a, of_b) = (fleet.file("crl.pem"), fleet.b.dir.path().join("crl.pem"));
        fleet
            .pki
            .revoke(&of_b, std::slice::from_ref(&fleet.serial_a));
        ends(running);
        let error = fleet.error();
        assert!(
            error.contains("refuses the certificate of this node: it is revoked"),
            "{error}"
        );
        fleet.pki.revoke(&of_b, &[]);
        fleet.b.until("it is accepted again", || {
            fleet.run(&["logs", VM]).status.success().then_some(())
        });
        // The other direction.
        let running = start();
        fleet
            .pki
            .revoke(&of_a, std::slice::from_ref(&fleet.serial_b));
        ends(running);
        let error = fleet.error();
        assert!(error.contains("its certificate is revoked"), "{error}");
        fleet.pki.revoke(&of_a, &[]);
        fleet.b.until("it is accepted again", || {
            fleet.run(&["logs", VM]).status.success().then_some(())
        });
        // A list that is invalid changes nothing.
        fs::write(&of_b, "nonsense").expect("written");
        std::thread::sleep(Duration::from_millis(300));
        fleet.succeeds(&["logs", VM]);
        let places = json!({
            "vms": {VM: "node-b"},
            "nodes": {"node-b": url(B)},
            "gone": ["node-a"],
        });
        fleet.b.write("places.json", &places.to_string());
        let error = fleet.error();
        assert!(error.contains("node node-a is gone"), "{error}");
    });
}

#[test]
fn requests_to_agents_of_other_nodes_are_limited_by_the_node_of_the_user() {
    with_fleet_of(Some((512, 512)), |fleet| {
        let words = ["vm", "exec", VM, "--uid", "0", "--", "sleep", "1000"];
        let mut running = Vec::new();
        // The limit is an eighth of the files, and a half of it for one VM. More, one after another: node-a has few connections.
        for _ in 0..40 {
            running.push(Killed(fleet.ctl(&words).spawn().expect("slicectl")));
            std::thread::sleep(Duration::from_millis(50));
        }
        fleet.b.until("the limit", || {
            let output = fleet.run(&["vm", "exec", VM, "--uid", "0", "--", "true"]);
            let error = text(&output.stderr);
            error
                .contains("vm/box-1 has 32 requests to agents")
                .then_some(())
        });
        drop(running);
        fleet.b.until("it is free again", || {
            let output = fleet.run(&["vm", "exec", VM, "--uid", "0", "--", "true"]);
            output.status.success().then_some(())
        });
    });
}
