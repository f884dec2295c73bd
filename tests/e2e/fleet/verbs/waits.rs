//! `wait --fleet` and `node drain` while etcd has no leader, while other commands interfere, and while values cannot be read.
//! Out of scope: what they wait for.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use slicectl::fleet::keys::Key;
use slicectl::fleet::kv::Client;
use slicectl::fleet::object::Phase;
use test_support::harness::Harness;
use test_support::{kernel, programs};

use super::super::lab::Lab;
use super::cli::{Scheduler, fleet_daemon};
use super::{bind, join, manifest, name, node_status, node_subnet, put, report, stored};

/// Starts `slicectl`.
fn start(daemon: &Harness, arguments: &str) -> Child {
    Command::new(programs::built("slicectl"))
        .args(arguments.split_whitespace())
        .env("SLICE_SOCKET", daemon.run.join("sliced.sock"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("slicectl")
}

/// A daemon with the group `web`, and a node.
async fn with_group(lab: &Lab, client: &Client) -> Harness {
    let daemon = fleet_daemon(lab, "observer", Scheduler::Off);
    let web = daemon.write("web.yaml", &manifest("web", 1, ""));
    daemon.ctl(&format!("apply --fleet -f {web}"));
    join(client, "node-a").await;
    daemon
}

fn until_draining(daemon: &Harness) {
    daemon.until("the drain", || {
        let nodes = daemon.ctl("get nodes");
        nodes.contains("Draining").then_some(())
    });
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_wait_and_a_drain_continue_when_etcd_has_a_leader_again() {
    kernel::private(async {
        let mut lab = Lab::start();
        let client = lab.client("control");
        let daemon = with_group(&lab, &client).await;
        let vm = bind(&client, "web", 1, Some("node-a")).await;
        let waiting = start(&daemon, "wait hg/web --fleet --for ready --timeout 2m");
        let draining = start(&daemon, "node drain node-a --delete-local --timeout 2m");
        until_draining(&daemon);
        // No majority: each read fails.
        let others: Vec<usize> = (0..3).filter(|member| *member != 0).collect();
        others.iter().for_each(|member| lab.kill(*member));
        let failed = daemon.try_ctl("get nodes");
        assert_eq!(failed.status.code(), Some(1), "{}", errors(&failed));
        std::thread::sleep(Duration::from_secs(2));
        others.iter().for_each(|member| lab.restart(*member));
        report(&client, &vm, "node-a", 1, Phase::Ready).await;
        let output = waiting.wait_with_output().expect("its output");
        assert!(output.status.success(), "{}", errors(&output));
        client.delete(Key::Vm(vm.meta.uid)).await.unwrap();
        let output = draining.wait_with_output().expect("its output");
        assert!(output.status.success(), "{}", errors(&output));
    });
}

#[test]
fn a_drain_fails_when_another_command_ends_it() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let daemon = with_group(&lab, &client).await;
        join(&client, "node-b").await;
        let vm = bind(&client, "web", 1, Some("node-a")).await;
        report(&client, &vm, "node-a", 1, Phase::Ready).await;
        let draining = start(&daemon, "node drain node-a --timeout 2m");
        until_draining(&daemon);
        daemon.ctl("node uncordon node-a");
        let output = draining.wait_with_output().expect("its output");
        let error = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains("node/node-a is not drained: another command has ended the drain"),
            "{error}"
        );
    });
}

#[test]
fn nothing_counts_as_deleted_or_drained_while_a_vm_cannot_be_read() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let daemon = fleet_daemon(&lab, "observer", Scheduler::Off);
        join(&client, "node-a").await;
        let key = "/slice/v1/vms/6b29fc40-ca47-1067-b31d-00dd010662da";
        client.put(key, "{", None).await.unwrap();
        for arguments in [
            "node drain node-a --timeout 30s",
            "wait hg/web --fleet --for delete --timeout 30s",
            "wait vm/web-1 --fleet --for delete --timeout 30s",
            "wait vm/web-1 vm/web-2 --fleet --for delete --timeout 30s",
            "get vms --fleet",
            "get vm/web-1 --fleet",
        ] {
            let refused = daemon.refused(arguments, 1);
            let expected = format!("{key} cannot be read");
            assert!(refused.contains(&expected), "{arguments}: {refused}");
        }
        client.delete(key).await.unwrap();
        daemon.ctl("wait hg/web vm/web-1 --fleet --for delete --timeout 30s");
        daemon.ctl("node drain node-a --timeout 30s");
        // A status proves nothing about the object of the VM.
        let status = "/slice/v1/nodestatus/node-b";
        client.put(status, "{", None).await.unwrap();
        daemon.ctl("wait hg/web --fleet --for delete --timeout 30s");
        let web = daemon.write("web.yaml", &manifest("web", 1, ""));
        daemon.ctl(&format!("apply --fleet -f {web}"));
        bind(&client, "web", 1, Some("node-a")).await;
        let late = daemon.refused("wait hg/web --fleet --for delete --timeout 1s", 1);
        assert!(
            late.contains("; vm/web-1 on node node-a Scheduled"),
            "{late}"
        );
    });
}

#[test]
fn a_group_that_was_made_again_is_not_deleted_and_not_waited_for() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let daemon = fleet_daemon(&lab, "observer", Scheduler::Off);
        let web = daemon.write("web.yaml", &manifest("web", 1, ""));
        daemon.ctl(&format!("apply --fleet -f {web}"));
        let deleting = start(&daemon, "delete hg/web --fleet --wait --timeout 1m");
        daemon.until("the request", || {
            let group = daemon.ctl("describe hg/web --fleet");
            group.contains("Deleting:            true").then_some(())
        });
        // The scheduler removes it, and another user makes it again.
        client.delete(Key::Group(name("web"))).await.unwrap();
        daemon.ctl(&format!("apply --fleet -f {web}"));
        let output = deleting.wait_with_output().expect("its output");
        assert!(output.status.success(), "{}", errors(&output));
        assert!(!stored(&client, "web").await.unwrap().meta.deleting);
    });
}

#[test]
fn a_route_contains_nothing_that_a_node_reports_but_an_address() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let daemon = fleet_daemon(&lab, "observer", Scheduler::Off);
        let urls = [
            "https://192.0.2.7:8080",
            "https://192.0.2.7;poweroff:8080",
            "https://192.0.2.7 dev lo\npoweroff\n:8080",
            "https://$(poweroff)",
        ];
        for (index, url) in urls.iter().enumerate() {
            let node = name(&format!("node-{index}"));
            let mut status = node_status("boot-1");
            status.api = Some((*url).to_owned());
            put(&client, Key::NodeStatus(node.clone()), &status).await;
            let subnet = node_subnet(&format!("10.64.{index}.0/24"));
            put(&client, Key::Range(name("web"), node), &subnet).await;
        }
        let output = daemon.ctl("fleet subnets");
        let commands: Vec<&str> = output
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        assert_eq!(
            commands,
            ["ip route replace 10.64.0.0/24 via 192.0.2.7  # hostgroup/web on node/node-0"]
        );
        assert!(!output.contains("poweroff"), "{output}");
    });
}
