//! What the certificate of a node authorises, and its settings as they change.
//! Out of scope: certificates that are refused ([`super::refused`]).

use std::fs;

use slicectl::api::meta::Uid;
use slicectl::fleet::keys;
use slicectl::fleet::object::{self, Vm};
use test_support::harness::group;
use test_support::kernel;

use super::{B, Fleet, VM, text, url, with_fleet};
use crate::api_listener::configure;

/// The status of a request with the certificate of node-a at node-b, and the response.
fn as_node_a(fleet: &Fleet, method: &str, path: &str, vm: Option<&str>) -> (u16, String) {
    let settings = fs::read_to_string(fleet.file("sliced.yaml")).expect("settings");
    let value = |key: &str| {
        let (_, rest) = settings.split_once(&format!(" {key}: ")).expect(key);
        rest.split(',').next().expect("a path").to_owned()
    };
    let header = vm.map_or_else(String::new, |vm| format!("-H 'slice-forwarded-vm: {vm}'"));
    let answer = kernel::run(&format!(
        "curl -sS -m 20 -X {method} --cacert {} --cert {} --key {} {header} -w '\\n%{{http_code}}' '{}{path}'",
        value("ca"),
        value("cert"),
        value("key"),
        url(B)
    ));
    let (body, status) = answer.trim_end().rsplit_once('\n').expect("a status");
    (status.parse().expect("a number"), body.to_owned())
}

/// The uid of the object of the VM in the fleet.
fn uid(fleet: &Fleet, vm: &str) -> Uid {
    let page = 1000.try_into().expect("not 0");
    let listing = fleet.client.range(keys::VMS, None, page);
    let listing = fleet.runtime.block_on(listing).expect("a list");
    let vms = listing
        .kvs
        .iter()
        .map(|kv| object::decode::<Vm>(&kv.value).expect("a VM"));
    let mut named = vms.filter(|found| found.meta.name.as_str() == vm);
    named.next().expect("the VM").meta.uid
}

#[test]
fn the_certificate_of_a_node_authorises_no_other_route_than_those_that_nodes_forward() {
    with_fleet(|fleet| {
        let document: serde_json::Value =
            serde_json::from_slice(&slicectl::wire::openapi()).expect("a document");
        let mut refused = 0;
        for (path, item) in document["paths"].as_object().expect("paths") {
            // Those that name a VM follow.
            if path.contains("{vm}") || path == "/v1/events" {
                continue;
            }
            let concrete = path.replace("{kind}", "hostgroup").replace(['{', '}'], "");
            for method in item.as_object().expect("methods").keys() {
                let method = method.to_uppercase();
                let (status, body) = as_node_a(fleet, &method, &concrete, None);
                assert_eq!(status, 403, "{method} {concrete}: {body}");
                assert!(
                    body.contains("the certificate of a node does not authorise"),
                    "{body}"
                );
                refused += 1;
            }
        }
        assert!(refused > 40, "{refused}");
        for path in ["/", "/app.js", "/nowhere", "/v1/objects/vm", "/v1/watch"] {
            let (status, body) = as_node_a(fleet, "GET", path, None);
            assert_eq!(status, 403, "{path}: {body}");
        }
        assert_eq!(as_node_a(fleet, "GET", "/v1/events", None).0, 200);
        // The VM that is meant, another one of its name, and none.
        let path = format!("/v1/objects/vm/{VM}");
        let uid = uid(fleet, VM).to_string();
        assert_eq!(as_node_a(fleet, "GET", &path, Some(&uid)).0, 200);
        let other = Uid::random().to_string();
        let (status, body) = as_node_a(fleet, "GET", &path, Some(&other));
        assert_eq!(status, 404, "{body}");
        let (status, body) = as_node_a(fleet, "GET", &path, None);
        assert_eq!(status, 403, "{body}");
        assert!(body.contains("slice-forwarded-vm"), "{body}");
    });
}

#[test]
fn a_command_does_not_reach_another_vm_that_has_the_name() {
    with_fleet(|fleet| {
        // A VM of node-b itself, and one of the fleet that node-b does not have.
        let path = fleet
            .b
            .write("ghost.yaml", &group("ghost", 1, "169.254.104.0/22", ""));
        fleet.b.ctl(&format!("apply -f {path}"));
        fleet.b.until("the local VM", || {
            let output = fleet.b.try_ctl("get vm ghost-1");
            output.status.success().then_some(())
        });
        fleet.bind("ghost-1", "node-b");
        fleet.a.until("node-a forwards the request", || {
            let error = text(&fleet.run(&["get", "vm", "ghost-1"]).stderr);
            error.contains("on node node-b").then_some(())
        });
        for arguments in [
            &["get", "vm", "ghost-1"][..],
            &["describe", "vm", "ghost-1"],
            &["logs", "ghost-1"],
            &["vm", "stop", "ghost-1"],
            &["vm", "exec", "ghost-1", "--uid", "0", "--", "true"],
        ] {
            let error = fleet.fails(arguments);
            assert!(
                error.contains("vm/ghost-1 not found on node node-b"),
                "{arguments:?}: {error}"
            );
        }
        fleet.b.ctl("get vm ghost-1");
    });
}

#[test]
fn settings_of_the_certificates_apply_without_a_restart() {
    with_fleet(|fleet| {
        let settings =
            fs::read_to_string(fleet.b.dir.path().join("sliced.yaml")).expect("settings");
        let pid = fleet.b.pid();
        let works = |what: &str| {
            fleet.b.until(what, || {
                fleet.run(&["logs", VM]).status.success().then_some(())
            });
        };
        // Another list of revoked certificates.
        let revoked = fleet.b.dir.path().join("revoked.pem");
        fleet
            .lab
            .pki
            .revoke(&revoked, std::slice::from_ref(&fleet.serial_a));
        let crl = fleet.b.dir.path().join("crl.pem").display().to_string();
        let other = settings.replace(&crl, &revoked.display().to_string());
        configure(&fleet.b, &other);
        fleet.b.until("the other list applies", || {
            let error = text(&fleet.run(&["logs", VM]).stderr);
            error.contains("it is revoked").then_some(())
        });
        configure(&fleet.b, &settings);
        works("the first list applies");
        // Without `fleet:`, no node is accepted and connections of nodes end.
        let marker = fleet.file("runs");
        let script = format!("touch {}; exec sleep 1000", marker.display());
        let arguments = ["vm", "exec", VM, "--uid", "0", "--", "sh", "-c", &script];
        let mut running = fleet.ctl(&arguments).spawn().expect("slicectl");
        fleet
            .b
            .until("the command runs", || marker.exists().then_some(()));
        let (api, _) = settings.split_once("fleet:").expect("fleet");
        configure(&fleet.b, api);
        let status = fleet.b.until("the connection ends", || {
            running.try_wait().expect("its status")
        });
        assert!(!status.success());
        fleet.fails(&["logs", VM]);
        // Files that cannot be read accept none either.
        let missing = settings.replace(&crl, "/nowhere/crl.pem");
        configure(&fleet.b, &missing);
        fleet.b.until("it is reported", || {
            let messages = fleet.b.messages("host", "ApiListenerFailed");
            let mut messages = messages.iter();
            messages.any(|it| it.contains("fleet.crl")).then_some(())
        });
        fleet.fails(&["logs", VM]);
        configure(&fleet.b, &settings);
        works("fleet: is back");
        assert_eq!(fleet.b.pid(), pid);
    });
}
