//! Cordon, drain, gone and remove.
//! Out of scope: what the scheduler does then.

use slicectl::api::view::{Applied, FleetNodeState, NodeAction};
use slicectl::clock;
use slicectl::fleet::keys::Key;
use slicectl::fleet::kv::Client;
use slicectl::fleet::object::{MovingFrom, Phase, PreviousCopy};
use slicectl::fleet::verbs::{self, Error, Snapshot};
use test_support::kernel;

use super::super::lab::Lab;
use super::{admin, applied, bind, join, name, node_status, put, report};

async fn act(client: &Client, node: &str, action: NodeAction) -> Result<Applied, Error> {
    verbs::act_on_node(client, &name(node), action, clock::now()).await
}

async fn states(client: &Client, node: &str) -> Vec<FleetNodeState> {
    let snapshot = Snapshot::read(client).await.unwrap();
    let list = verbs::nodes(&snapshot, Some(&name(node)));
    list.items[0].states.clone()
}

#[test]
fn a_node_is_cordoned_drained_and_released() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let missing = act(&client, "node-a", NodeAction::Cordon).await;
        assert!(matches!(missing, Err(Error::NotFound(_))), "{missing:?}");
        join(&client, "node-a").await;
        let cordon = act(&client, "node-a", NodeAction::Cordon).await;
        assert_eq!(cordon.unwrap(), Applied::Configured);
        let again = act(&client, "node-a", NodeAction::Cordon).await;
        assert_eq!(again.unwrap(), Applied::Unchanged);
        let drain = NodeAction::Drain { delete_local: true };
        act(&client, "node-a", drain).await.unwrap();
        assert_eq!(
            states(&client, "node-a").await,
            [
                FleetNodeState::Ready,
                FleetNodeState::SchedulingDisabled,
                FleetNodeState::Draining
            ]
        );
        act(&client, "node-a", NodeAction::Uncordon).await.unwrap();
        assert_eq!(states(&client, "node-a").await, [FleetNodeState::Ready]);
        let node = admin(&client, "node-a").await.unwrap();
        assert!(!node.unschedulable && node.drain.is_none());
    });
}

#[test]
fn vms_that_a_drain_leaves_are_listed_with_the_reason() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let text = "config: {host_groups: [
            {name: db, image: /i, persistent: true, network: {mode: isolated}},
            {name: web, network: {mode: isolated}}]}\n";
        applied(&client, text).await;
        join(&client, "node-a").await;
        for group in ["db", "web"] {
            let vm = bind(&client, group, 1, Some("node-a")).await;
            report(&client, &vm, "node-a", 1, Phase::Ready).await;
        }
        let drain = NodeAction::Drain {
            delete_local: false,
        };
        act(&client, "node-a", drain).await.unwrap();
        let read = async || {
            let snapshot = Snapshot::read(&client).await.unwrap();
            verbs::node_vms(snapshot, &name("node-a"), clock::now()).unwrap()
        };
        let vms = read().await;
        let reason = |name: &str| {
            let vm = vms.iter().find(|vm| vm.name.as_str() == name);
            vm.expect("the VM").stays.clone().unwrap_or_default()
        };
        assert!(reason("db-1").contains("persistent disk"), "{vms:?}");
        // No other node exists.
        assert!(!reason("web-1").is_empty(), "{vms:?}");
        let snapshot = Snapshot::read(&client).await.unwrap();
        let node = &verbs::nodes(&snapshot, None).items[0];
        assert_eq!((node.vms, node.used.vcpus), (2, 4));
        // What a node has written stops no other one.
        let key = "/slice/v1/nodestatus/node-c";
        client.put(key, "?", None).await.unwrap();
        assert_eq!(read().await, vms);
        client.delete(key).await.unwrap();
        // While a value of the fleet cannot be read, the scheduler plans nothing.
        client.put("/slice/v1/groups/web", "?", None).await.unwrap();
        let vms = read().await;
        let all = vms.iter().all(|vm| {
            let reason = vm.stays.as_deref().unwrap_or_default();
            reason.contains("/slice/v1/groups/web cannot be read")
        });
        assert!(all && vms.len() == 2, "{vms:?}");
        // A VM that cannot be read may be on the node.
        client.put("/slice/v1/vms/x", "?", None).await.unwrap();
        let snapshot = Snapshot::read(&client).await.unwrap();
        let error = verbs::node_vms(snapshot, &name("node-a"), clock::now()).unwrap_err();
        assert!(
            error.to_string().contains("/slice/v1/vms/x cannot be read"),
            "{error}"
        );
    });
}

#[test]
fn a_node_with_a_lease_is_not_gone_unless_forced() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        join(&client, "node-a").await;
        let gone = NodeAction::Gone { force: false };
        let error = act(&client, "node-a", gone).await.unwrap_err().to_string();
        assert!(error.contains("renews its lease"), "{error}");
        assert_eq!(admin(&client, "node-a").await, None);
        let forced = NodeAction::Gone { force: true };
        act(&client, "node-a", forced).await.unwrap();
        let first = admin(&client, "node-a").await.unwrap().gone.unwrap();
        assert_eq!(first.boot_id.as_deref(), Some("boot-1"));
        // The same statement is not made twice; after another boot it is another one.
        client.delete(Key::Alive(name("node-a"))).await.unwrap();
        let again = act(&client, "node-a", gone).await;
        assert_eq!(again.unwrap(), Applied::Unchanged);
        let key = Key::NodeStatus(name("node-a"));
        put(&client, key.clone(), &node_status("boot-2")).await;
        act(&client, "node-a", gone).await.unwrap();
        let second = admin(&client, "node-a").await.unwrap().gone.unwrap();
        assert_eq!(second.boot_id.as_deref(), Some("boot-2"));
        assert_eq!(
            states(&client, "node-a").await,
            [FleetNodeState::Unknown, FleetNodeState::Gone]
        );
        // Which boot is gone must be known.
        client.put(key, "{}", None).await.unwrap();
        let error = act(&client, "node-a", gone).await.unwrap_err().to_string();
        assert!(
            error.contains("the status of node/node-a cannot be read"),
            "{error}"
        );
        act(&client, "node-a", NodeAction::Uncordon).await.unwrap();
        assert_eq!(admin(&client, "node-a").await.unwrap().gone, None);
    });
}

#[test]
fn a_node_is_removed_when_it_has_no_vm_and_does_not_renew_its_lease() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let remove = async || act(&client, "node-a", NodeAction::Remove).await;
        let refused = async |expected: &str| {
            let error = remove().await.expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        };
        assert!(matches!(remove().await, Err(Error::NotFound(_))));
        applied(
            &client,
            "config: {host_groups: [{name: web, network: {mode: isolated}}]}\n",
        )
        .await;
        join(&client, "node-a").await;
        join(&client, "node-b").await;
        act(&client, "node-a", NodeAction::Cordon).await.unwrap();
        refused("renews its lease").await;
        client.delete(Key::Alive(name("node-a"))).await.unwrap();
        // A VM that may be on it: by its binding, while it is moved, or as a previous copy.
        let mut vm = bind(&client, "web", 1, Some("node-a")).await;
        report(&client, &vm, "node-a", 1, Phase::Ready).await;
        refused("1 VMs may be on node/node-a, such as vm/web-1").await;
        let mut binding = vm.binding.take().expect("a binding");
        vm.previous.push(PreviousCopy {
            node: name("node-a"),
            epoch: 1,
            resources: binding.resources,
            keep: false,
        });
        put(&client, Key::Vm(vm.meta.uid), &vm).await;
        refused("1 VMs may be on node/node-a").await;
        vm.previous.clear();
        binding.moving_from = Some(MovingFrom {
            node: name("node-a"),
            epoch: 1,
            resources: binding.resources,
            delete_disk: false,
        });
        binding.node = name("node-b");
        vm.binding = Some(binding.clone());
        put(&client, Key::Vm(vm.meta.uid), &vm).await;
        refused("1 VMs may be on node/node-a").await;
        client
            .put(
                "/slice/v1/vms/00000000-0000-0000-0000-000000000001",
                "?",
                None,
            )
            .await
            .unwrap();
        binding.moving_from = None;
        vm.binding = Some(binding);
        put(&client, Key::Vm(vm.meta.uid), &vm).await;
        refused("cannot be read").await;
        client
            .delete("/slice/v1/vms/00000000-0000-0000-0000-000000000001")
            .await
            .unwrap();
        assert_eq!(remove().await.unwrap(), Applied::Deleted);
        for prefix in ["nodes/node-a", "nodestatus/node-a", "status/node-a/"] {
            let left = lab.ctl(&format!("get --prefix --keys-only /slice/v1/{prefix}"));
            assert_eq!(left.trim(), "", "{prefix}");
        }
        assert_eq!(states(&client, "node-b").await, [FleetNodeState::Ready]);
        assert!(matches!(remove().await, Err(Error::NotFound(_))));
    });
}
