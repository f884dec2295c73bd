//! `slicectl` with a daemon that is a node of a fleet. Objects of the scheduler and of nodes are written by the tests.
//! Out of scope: what the requests do (`changes`, `reads`, `nodes`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use slicectl::fleet::keys::Key;
use slicectl::fleet::object::Phase;
use test_support::harness::Harness;
use test_support::kernel;

use crate::contract::client::Api;

use super::super::lab::{Lab, password};
use super::super::pki::Validity;
use super::{admin, bind, join, manifest, name, node_subnet, put, report, stored};

/// Whether the scheduler of a daemon runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scheduler {
    On,
    Off,
}

/// A running `sliced` that is this node of the fleet of the lab, with the user `control`.
pub fn fleet_daemon(lab: &Lab, node: &str, scheduler: Scheduler) -> Harness {
    let mut harness = Harness::new("slice");
    let file = harness.dir.path().join("password");
    fs::write(&file, password("control")).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a mode");
    let identity = lab.pki.client("control", Validity::Now);
    fs::set_permissions(&identity.key, fs::Permissions::from_mode(0o600)).expect("a mode");
    let endpoints: Vec<String> = lab.endpoints().iter().map(ToString::to_string).collect();
    let shown = |path: &Path| path.display().to_string();
    harness.write(
        "sliced.yaml",
        &format!(
            "fleet:\n  endpoints: [{}]\n  ca: {}\n  cert: {}\n  key: {}\n  node: {node}\n  user: control\n  password_file: {}\n  control: {}\n",
            endpoints.join(", "),
            shown(&lab.pki.ca()),
            shown(&identity.cert),
            shown(&identity.key),
            shown(&file),
            scheduler == Scheduler::On,
        ),
    );
    harness.start();
    harness
}

#[test]
fn groups_vms_and_nodes_of_a_fleet_are_managed_from_any_node() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let daemon = fleet_daemon(&lab, "observer", Scheduler::Off);
        let web = daemon.write(
            "web.yaml",
            &manifest("web", 2, ", placement: {strategy: pack}"),
        );
        // On one host, the placement has no effect.
        let refused = daemon.refused(&format!("apply -f {web}"), 1);
        assert!(
            refused.contains("placement: has no effect on one host: apply it with --fleet"),
            "{refused}"
        );
        let diff = daemon.ctl(&format!("diff --fleet -f {web}"));
        assert!(diff.contains("Plan: 2 to add"), "{diff}");
        let applied = daemon.ctl(&format!("apply --fleet -f {web}"));
        assert_eq!(applied, "hostgroup/web created\n");
        let applied = daemon.ctl(&format!("apply --fleet -f {web}"));
        assert_eq!(applied, "hostgroup/web unchanged\n");
        join(&client, "node-a").await;
        let vm = bind(&client, "web", 1, Some("node-a")).await;
        report(&client, &vm, "node-a", 1, Phase::Ready).await;
        bind(&client, "web", 2, None).await;
        let vms = daemon.ctl("get vms --fleet");
        let rows: Vec<Vec<&str>> = vms
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows[0][..5], ["NAME", "GROUP", "NODE", "STATUS", "IP"]);
        assert_eq!(
            rows[1][..5],
            ["web-1", "web", "node-a", "Ready", "169.254.1.2"]
        );
        assert_eq!(rows[2][..4], ["web-2", "web", "<none>", "Pending"]);
        let wide = daemon.ctl("get vm web-2 --fleet -o wide");
        assert!(wide.contains("no node has the resources"), "{wide}");
        let one: serde_json::Value =
            serde_json::from_str(&daemon.ctl("get vm/web-1 --fleet -o json")).unwrap();
        assert_eq!(
            (&one["kind"], &one["node"]),
            (&"Vm".into(), &"node-a".into())
        );
        assert_eq!(daemon.ctl("get nodes node-a -o name"), "node/node-a\n");
        assert_eq!(
            daemon.ctl("get hg --fleet -o jsonpath={.items[*].status.ready}"),
            "1\n"
        );
        let node = daemon.ctl("describe node/node-a");
        assert!(
            node.contains("Allocatable:         8 vcpus, 16GiB memory"),
            "{node}"
        );
        let described = daemon.ctl("describe vm/web-2 --fleet");
        assert!(
            described.contains("Message:             no node has the resources"),
            "{described}"
        );
        let late = daemon.refused("wait hg/web --fleet --for ready --timeout 1s", 1);
        assert!(
            late.contains("1 of 2 VMs are ready")
                && late.contains("vm/web-2 Pending: no node has the resources"),
            "{late}"
        );
        // Each answer fits the document of the API.
        let api = Api::of(&daemon);
        for (path, status) in [
            ("/v1/fleet/status", 200),
            ("/v1/fleet/groups", 200),
            ("/v1/fleet/groups/web", 200),
            ("/v1/fleet/groups/none", 404),
            ("/v1/fleet/vms", 200),
            ("/v1/fleet/vms/web-1", 200),
            ("/v1/fleet/nodes", 200),
            ("/v1/fleet/nodes/node-a", 200),
            ("/v1/fleet/nodes/node-a/vms", 200),
            ("/v1/fleet/nodes/A", 422),
            ("/v1/fleet/subnets", 200),
        ] {
            assert_eq!(api.get(path).status, status, "{path}");
        }
        let action = serde_json::json!({"action": "cordon"});
        let node = "/v1/fleet/nodes/node-a";
        assert_eq!(api.post(node, &action).status, 200);
        let action = serde_json::json!({"action": "explode"});
        assert!((400..500).contains(&api.post(node, &action).status));
        daemon.ctl("node uncordon node-a");
        daemon.ctl("wait vm/web-1 --fleet --for ready");
        assert_eq!(
            daemon.ctl("scale hg web --fleet --count 3"),
            "hostgroup/web configured\n"
        );
        assert_eq!(
            daemon.ctl("delete hostgroup/web --fleet"),
            "hostgroup/web deletion requested\n"
        );
        assert!(stored(&client, "web").await.unwrap().meta.deleting);
        // The scheduler would remove it.
        client.delete(Key::Group(name("web"))).await.unwrap();
        daemon.ctl("wait hg/web --fleet --for delete");
        for (words, status, expected) in [
            ("get vm/none --fleet", 1, "vm/none not found"),
            ("get vms --fleet -w", 2, "-w is not supported"),
            ("get leases --fleet", 2, "without --fleet"),
            ("delete vm/web-1 --fleet", 2, "only host groups"),
            (
                "delete hg/web --fleet --force",
                2,
                "--force is not supported",
            ),
            ("wait hg/web --fleet --for stopped", 2, "ready or deleted"),
            ("delete hg/web --fleet", 1, "hostgroup/web not found"),
        ] {
            let refused = daemon.refused(words, status);
            assert!(refused.contains(expected), "{words}: {refused}");
        }
    });
}

#[test]
fn nodes_are_cordoned_drained_and_stated_to_be_gone() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let daemon = fleet_daemon(&lab, "observer", Scheduler::Off);
        let db = daemon.write(
            "db.yaml",
            "config: {host_groups: [{name: db, image: /i, persistent: true, network: {mode: isolated}}]}\n",
        );
        daemon.ctl(&format!("apply --fleet -f {db}"));
        join(&client, "node-b").await;
        let vm = bind(&client, "db", 1, Some("node-b")).await;
        report(&client, &vm, "node-b", 1, Phase::Ready).await;
        assert_eq!(
            daemon.ctl("node cordon node/node-b"),
            "node/node-b cordoned\n"
        );
        assert_eq!(daemon.ctl("node cordon node-b"), "node/node-b unchanged\n");
        let refused = daemon.refused("node drain node-b --timeout 1m", 1);
        for expected in [
            "vm/db-1 stays: it is not moved: it has a persistent disk",
            "node/node-b is not drained",
            "slicectl node uncordon node-b",
        ] {
            assert!(refused.contains(expected), "{refused}");
        }
        let nodes = daemon.ctl("get nodes");
        assert!(
            nodes.contains("Ready,SchedulingDisabled,Draining"),
            "{nodes}"
        );
        let drained = daemon.ctl("node drain node-b --delete-local --timeout 0s");
        assert_eq!(drained, "node/node-b drain requested\n");
        // What the scheduler and the node would do.
        client.delete(Key::Vm(vm.meta.uid)).await.unwrap();
        let drained = daemon.ctl("node drain node-b");
        assert!(drained.starts_with("node/node-b drained"), "{drained}");
        let refused = daemon.refused("node gone node-b", 2);
        assert!(refused.contains("expected --yes"), "{refused}");
        let refused = daemon.refused("node gone node-b --yes", 1);
        assert!(refused.contains("renews its lease"), "{refused}");
        client.delete(Key::Alive(name("node-b"))).await.unwrap();
        assert_eq!(daemon.ctl("node gone node-b -y"), "node/node-b gone\n");
        assert_eq!(
            daemon.ctl("node uncordon node-b"),
            "node/node-b uncordoned\n"
        );
        assert_eq!(admin(&client, "node-b").await, Some(Default::default()));
        let refused = daemon.refused("node cordon none", 1);
        assert!(refused.contains("node/none not found"), "{refused}");
    });
}

#[test]
fn a_group_of_a_fleet_runs_on_its_nodes_until_it_is_deleted() {
    kernel::private(async {
        let lab = Lab::start();
        let daemon = fleet_daemon(&lab, "node-a", Scheduler::On);
        let web = daemon.write("web.yaml", &manifest("web", 2, ""));
        let applied = daemon.ctl(&format!("apply --fleet -f {web} --wait"));
        assert!(applied.contains("hostgroup/web ready (in "), "{applied}");
        let vms = daemon.ctl("get vms --fleet --no-headers");
        for vm in ["web-1", "web-2"] {
            let row = vms.lines().find(|line| line.starts_with(vm));
            let row: Vec<&str> = row.expect(vm).split_whitespace().collect();
            assert_eq!(row[1..4], ["web", "node-a", "Ready"], "{vms}");
        }
        let nodes = daemon.ctl("get nodes --no-headers");
        let row: Vec<&str> = nodes.split_whitespace().collect();
        assert_eq!(row[..3], ["node-a", "Ready", "2"], "{nodes}");
        let status = daemon.ctl("fleet status");
        assert!(
            status.contains("Contact:             True (Connected)"),
            "{status}"
        );
        assert!(status.contains("Leader:              node-a"), "{status}");
        daemon.ctl("scale hg/web --fleet --count 3 --wait");
        // There is no other node.
        let refused = daemon.refused("node drain node-a --timeout 1m", 1);
        assert!(refused.contains("3 VMs stay"), "{refused}");
        daemon.ctl("node uncordon node-a");
        let deleted = daemon.ctl("delete hostgroup/web --fleet --wait");
        assert!(deleted.contains("hostgroup/web deleted (in "), "{deleted}");
        assert_eq!(daemon.ctl("get vms --fleet"), "");
        assert!(daemon.vms().is_empty());
    });
}

#[test]
fn the_connection_to_the_fleet_is_shown() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        client.put(Key::Election, "node-b", None).await.unwrap();
        let daemon = fleet_daemon(&lab, "observer", Scheduler::Off);
        let status = daemon.ctl("fleet status");
        for expected in [
            "Node:                observer",
            "Leader:              node-b",
            "https://10.77.0.",
        ] {
            assert!(status.contains(expected), "{status}");
        }
        let refused = daemon.refused("fleet accept --yes", 1);
        assert!(
            refused.contains("there is no cluster to accept"),
            "{refused}"
        );
        let key = Key::Range(name("web"), name("node-b"));
        put(&client, key, &node_subnet("10.64.1.0/24")).await;
        let subnets = daemon.ctl("fleet subnets");
        assert!(
            subnets.contains(
                "# 10.64.1.0/24 of hostgroup/web: the API of node/node-b has no IPv4 address"
            ),
            "{subnets}"
        );
        // A text of another node cannot control the terminal.
        client
            .put(Key::Election, "\u{1b}[2Jx\n", None)
            .await
            .unwrap();
        let status = daemon.ctl("fleet status");
        assert!(!status.contains('\u{1b}'), "{status:?}");
    });
}

#[test]
fn a_daemon_without_a_fleet_says_so() {
    test_support::harness::with_daemon(|daemon| {
        let web = daemon.write("web.yaml", &manifest("web", 1, ""));
        for words in [
            format!("apply --fleet -f {web}"),
            format!("diff --fleet -f {web}"),
            "get vms --fleet".to_owned(),
            "get nodes".to_owned(),
            "describe node/a".to_owned(),
            "delete hg/web --fleet".to_owned(),
            "scale hg/web --fleet --count 1".to_owned(),
            "wait hg/web --fleet --for ready".to_owned(),
            "node cordon a".to_owned(),
            "node drain a".to_owned(),
            "node gone a -y".to_owned(),
            "fleet status".to_owned(),
            "fleet accept -y".to_owned(),
            "fleet subnets".to_owned(),
        ] {
            let refused = daemon.refused(&words, 1);
            let expected =
                "this daemon is not part of a fleet: set fleet: in /etc/slice/sliced.yaml";
            assert!(refused.contains(expected), "{words}: {refused}");
        }
        // A group of a fleet in the manifest directory is an error, and creates no VM.
        daemon.save("web.yaml", &manifest("web", 1, ", placement: {}"));
        daemon.until("the problem of the file", || {
            let messages = daemon.messages("manifest/web.yaml", "ManifestInvalid");
            let expected =
                "config.host_groups[0].placement: has no effect on one host: apply it with --fleet";
            messages
                .iter()
                .any(|message| message.contains(expected))
                .then_some(())
        });
        assert!(daemon.vms().is_empty());
    });
}
