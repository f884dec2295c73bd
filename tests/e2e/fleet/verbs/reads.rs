//! Lists of groups, VMs, nodes and subnets, joined with what nodes report.
//! Out of scope: changes.

use std::net::Ipv4Addr;

use slicectl::api::view::FleetVmState;
use slicectl::fleet::keys::Key;
use slicectl::fleet::object::Phase;
use slicectl::fleet::verbs::{self, Error, Snapshot};
use test_support::kernel;

use super::super::lab::Lab;
use super::{applied, bind, join, manifest, name, node_subnet, put, report};

#[test]
fn vms_are_listed_with_what_their_nodes_report() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        applied(&client, &manifest("web", 6, "")).await;
        join(&client, "node-a").await;
        let ready = bind(&client, "web", 1, Some("node-a")).await;
        report(&client, &ready, "node-a", 1, Phase::Ready).await;
        // A report about an earlier binding is not about this one.
        let early = bind(&client, "web", 2, Some("node-a")).await;
        report(&client, &early, "node-a", 0, Phase::Ready).await;
        let broken = bind(&client, "web", 3, Some("node-a")).await;
        report(&client, &broken, "node-a", 1, Phase::NotReady).await;
        bind(&client, "web", 4, None).await;
        // The node has no lease: what it has reported last is not known to be true.
        let lost = bind(&client, "web", 5, Some("node-b")).await;
        report(&client, &lost, "node-b", 1, Phase::Ready).await;
        let odd = bind(&client, "web", 6, Some("node-a")).await;
        let key = Key::VmStatus(name("node-a"), odd.meta.uid);
        client.put(key.clone(), "{", None).await.unwrap();
        client.put("/slice/v1/vms/x", "{}", None).await.unwrap();

        // Read by a node, which may not write.
        let snapshot = Snapshot::read(&lab.client("node-b")).await.unwrap();
        let list = verbs::vms(&snapshot, None).unwrap();
        let states: Vec<(FleetVmState, bool)> = list
            .items
            .iter()
            .map(|vm| (vm.state, vm.address.is_some()))
            .collect();
        assert_eq!(
            states,
            [
                (FleetVmState::Ready, true),
                (FleetVmState::Scheduled, false),
                (FleetVmState::NotReady, true),
                (FleetVmState::Pending, false),
                (FleetVmState::Unknown, true),
                (FleetVmState::Unknown, false),
            ]
        );
        let messages: Vec<&str> = list
            .items
            .iter()
            .map(|vm| vm.message.as_deref().unwrap_or("-"))
            .collect();
        assert_eq!(messages[..2], ["-", "-"]);
        assert_eq!(messages[2], "its kernel is missing");
        assert_eq!(messages[3], "no node has the resources");
        assert_eq!(messages[4], "node node-b does not renew its lease");
        assert!(messages[5].starts_with("its status cannot be read"));
        let keys: Vec<String> = list.unreadable.iter().map(|it| it.key.clone()).collect();
        assert_eq!(keys, [key.to_string(), "/slice/v1/vms/x".to_owned()]);

        let groups = verbs::groups(&snapshot, Some(&name("web")));
        let status = groups.items[0].status;
        assert_eq!((status.vms, status.ready, status.pending), (6, 1, 1));
        assert!(!groups.items[0].is_ready());
        let one = verbs::vms(&snapshot, Some(&name("web-4"))).unwrap();
        assert_eq!(one.items.len(), 1);
        // The VM that cannot be read may have this name.
        let absent = verbs::vms(&snapshot, Some(&name("web-9"))).unwrap_err();
        assert!(matches!(absent, Error::Conflict(_)), "{absent}");
        assert!(absent.to_string().contains("/slice/v1/vms/x"), "{absent}");
        client.delete("/slice/v1/vms/x").await.unwrap();
        let snapshot = Snapshot::read(&client).await.unwrap();
        let absent = verbs::vms(&snapshot, Some(&name("web-9"))).unwrap_err();
        assert!(matches!(absent, Error::NotFound(_)), "{absent}");
    });
}

#[test]
fn subnets_are_listed_with_the_address_of_their_node() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        join(&client, "node-a").await;
        let range = |node: &str| Key::Range(name("web"), name(node));
        for (node, subnet) in [("node-a", "10.64.1.0/24"), ("node-b", "10.64.2.0/24")] {
            put(&client, range(node), &node_subnet(subnet)).await;
        }
        client.put(range("node-c"), "10.64", None).await.unwrap();
        let list = verbs::subnets(&Snapshot::read(&client).await.unwrap());
        let found: Vec<(String, Option<Ipv4Addr>)> = list
            .items
            .iter()
            .map(|item| (item.subnet.to_string(), item.via))
            .collect();
        assert_eq!(
            found,
            [
                ("10.64.1.0/24".to_owned(), Some([192, 0, 2, 7].into())),
                ("10.64.2.0/24".to_owned(), None)
            ]
        );
        assert_eq!(list.unreadable[0].key, range("node-c").to_string());
    });
}
