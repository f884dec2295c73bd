//! What is scheduled.
//! Out of scope: faults of etcd and of nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use slicectl::api::network::{BridgeSpec, NetworkSpec};
use slicectl::fleet::keys::Key;
use slicectl::fleet::object::{Group, NodeSubnet, Subnets};
use test_support::kernel;

use super::super::lab::PATIENCE;
use super::fleet::{Fleet, LONG, counts, group, until};

#[test]
fn of_200_vms_for_190_slots_190_are_bound_once_and_10_are_pending_with_a_reason() {
    kernel::private(async {
        let fleet = Fleet::start([64, 63, 63]).await;
        fleet.put_group(&group("web", 120)).await;
        fleet.put_group(&group("db", 80)).await;
        let vms = fleet.bound(190).await;
        let (nodes, names) = counts(&vms);
        assert_eq!(names, 200);
        assert_eq!(nodes.values().copied().collect::<Vec<_>>(), [64, 63, 63]);
        let pending: Vec<_> = vms.iter().filter(|vm| vm.binding.is_none()).collect();
        assert_eq!(pending.len(), 10);
        for vm in pending {
            let reason = vm.pending.as_deref().unwrap();
            assert_eq!(reason, "0/3 nodes are available: 3 insufficient vCPUs.");
        }
        assert!(vms.iter().all(|vm| vm.epoch <= 1), "bound once");

        // Slots become free.
        let mut db = group("db", 80);
        db.meta.uid = vms
            .iter()
            .find(|vm| vm.group == db.meta.name)
            .unwrap()
            .group_uid;
        db.spec.count = 60;
        db.meta.generation = 1;
        fleet.put_group(&db).await;
        let vms = fleet.bound(180).await;
        assert_eq!(counts(&vms).1, 180);
        let leader = fleet.leader().await;
        let status = fleet.nodes[leader].control.status();
        assert_eq!(status.last_error, None);
        assert_eq!(status.leader.as_deref(), Some(fleet.nodes[leader].name()));
    });
}

#[test]
fn a_value_that_cannot_be_decoded_stops_planning_until_it_is_corrected() {
    kernel::private(async {
        let fleet = Fleet::start([20, 20, 20]).await;
        fleet.put_group(&group("web", 2)).await;
        fleet.bound(2).await;
        let leader = fleet.leader().await;
        let key = "/slice/v1/groups/broken";
        fleet.client.put(key, "{", None).await.unwrap();
        let control = &fleet.nodes[leader].control;
        let reason = until("a reason", PATIENCE, || control.status().not_planned).await;
        assert!(
            reason.starts_with(&format!(
                "nothing is planned, because {key} cannot be decoded"
            )),
            "{reason}"
        );
        fleet.put_group(&group("db", 5)).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(fleet.vms().await.len(), 2);
        fleet.client.delete(key).await.unwrap();
        fleet.bound(7).await;
        assert_eq!(control.status().not_planned, None);
    });
}

/// A group in bridge mode with subnets for two nodes.
fn bridge_group(name: &str, count: u32) -> Group {
    let mut group = group(name, count);
    group.spec.template.network = NetworkSpec::Bridge(BridgeSpec {
        bridge: "br0".into(),
        tap_prefix: "t".into(),
        gateway: None,
        addresses: Default::default(),
        antispoof: true,
        isolate_ports: false,
        max_connections: None,
        tap_owner: Default::default(),
    });
    group.placement.subnets = Some(Subnets {
        pool: "10.9.0.0/23".parse().unwrap(),
        prefix_len: 24,
    });
    group
}

#[test]
fn what_etcd_refuses_keeps_no_other_step_from_being_written() {
    kernel::private(async {
        let fleet = Fleet::start([20, 20, 20]).await;
        // The schedulers may not write subnets.
        let role = "role grant-permission control --prefix";
        fleet.lab.ctl(&format!("{role} read /slice/v1/"));
        for kind in [
            "groups/",
            "vms/",
            "nodes/",
            "nodestatus/",
            "alive/",
            "status/",
            "election",
        ] {
            fleet.lab.ctl(&format!("{role} readwrite /slice/v1/{kind}"));
        }
        let leader = fleet.leader().await;
        fleet.put_group(&bridge_group("br", 2)).await;
        fleet.put_group(&group("web", 5)).await;
        fleet.bound(7).await;
        let control = &fleet.nodes[leader].control;
        let error = until("the refusal", PATIENCE, || control.status().last_error).await;
        assert!(error.contains("cannot assign subnet br: "), "{error}");
        assert!(error.contains("denies"), "{error}");
        fleet.put_group(&group("later", 3)).await;
        fleet.bound(10).await;
        fleet
            .lab
            .ctl(&format!("{role} readwrite /slice/v1/ranges/"));
        let no_error = || control.status().last_error.is_none().then_some(());
        until("no error", PATIENCE, no_error).await;
        let page = std::num::NonZeroU32::new(100).unwrap();
        let ranges = fleet.client.range("/slice/v1/ranges/", None, page).await;
        assert!(!ranges.unwrap().kvs.is_empty());
    });
}

#[test]
fn nodes_get_subnets_of_a_bridge_group_and_lose_them_with_the_group() {
    kernel::private(async {
        let fleet = Fleet::start([3, 3, 3]).await;
        let mut web = bridge_group("web", 9);
        fleet.put_group(&web).await;
        let vms = fleet.bound(6).await;
        let mut subnets = BTreeSet::new();
        for node in counts(&vms).0.keys() {
            let key = Key::Range(web.meta.name.clone(), node.parse().unwrap());
            let found = fleet.client.get(key).await.unwrap().1.unwrap();
            let range: NodeSubnet = slicectl::fleet::object::decode(&found.value).unwrap();
            assert!(range.subnet.contains(range.gateway));
            subnets.insert(range.subnet.to_string());
        }
        assert_eq!(subnets.len(), 2);
        let pending = vms.iter().find_map(|vm| vm.pending.as_deref()).unwrap();
        assert_eq!(
            pending,
            "0/3 nodes are available: 2 insufficient vCPUs, 1 no free subnet."
        );
        web.meta.deleting = true;
        fleet.put_group(&web).await;
        let begin = std::time::Instant::now();
        while fleet.exists(Key::Group(web.meta.name.clone())).await {
            assert!(begin.elapsed() < LONG);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let page = std::num::NonZeroU32::new(100).unwrap();
        for prefix in ["/slice/v1/ranges/", "/slice/v1/vms/"] {
            let rest = fleet.client.range(prefix, None, page).await.unwrap();
            assert_eq!(rest.kvs, [], "{prefix}");
        }
    });
}
