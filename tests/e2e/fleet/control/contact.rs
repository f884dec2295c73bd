//! The lease of a node.
//! Out of scope: clusters that fail ([`super::cluster`]).

use std::time::Duration;

use slicectl::fleet::contact::ContactReason;
use slicectl::fleet::keys::Key;
use slicectl::fleet::link::boottime;
use test_support::kernel;

use super::super::lab::Lab;
use super::fleet::{Fleet, LONG, group, until};
use super::node::TestNode;

#[test]
fn a_key_that_was_lost_comes_back_after_the_node_has_listed_again() {
    kernel::private(async {
        let fleet = Fleet::start([4, 4, 4]).await;
        let node = &fleet.nodes[0];
        let key = Key::Alive(node.link.node().clone());
        let lease = |found: Option<slicectl::fleet::kv::KeyValue>| found.and_then(|it| it.lease);
        let (_, first) = fleet.client.get(&key).await.unwrap();
        let first = lease(first).unwrap();
        let mut before = first;
        for is_revoked in [true, false] {
            match is_revoked {
                true => drop(fleet.client.revoke(before).await.unwrap()),
                false => drop(fleet.client.delete(&key).await.unwrap()),
            }
            let reason = || {
                node.link
                    .read(|_, contact| contact.condition(boottime()).reason)
            };
            let is_lost =
                || (reason() == ContactReason::LeaseGone || !node.may_act()).then_some(());
            until("the loss is noticed", LONG, is_lost).await;
            until("contact", LONG, || node.may_act().then_some(())).await;
            let (_, found) = fleet.client.get(&key).await.unwrap();
            let after = lease(found).unwrap();
            assert_ne!(after, before);
            before = after;
        }
    });
}

#[test]
fn an_idle_node_sends_nothing_but_its_renewal() {
    kernel::private(async {
        let fleet = Fleet::start([4, 4, 4]).await;
        fleet.put_group(&group("web", 3)).await;
        fleet.bound(3).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let sent = |fleet: &Fleet| -> Vec<_> {
            let nodes = fleet.nodes.iter();
            nodes.map(|it| it.control.status().sent).collect()
        };
        let (before, revision) = (
            sent(&fleet),
            fleet.client.get(Key::Election).await.unwrap().0.revision,
        );
        tokio::time::sleep(Duration::from_secs(22)).await;
        let after = fleet.client.get(Key::Election).await.unwrap().0.revision;
        assert_eq!(after, revision, "nothing is written");
        assert_eq!(sent(&fleet), before);
        let stored = fleet.nodes[1].stored.lock().unwrap().len();
        assert!(stored <= 4, "the facts were stored {stored} times");
    });
}

#[test]
fn the_user_of_a_node_may_do_what_the_connection_of_a_node_does() {
    kernel::private(async {
        let lab = Lab::start();
        let nodes = vec![
            TestNode::start(&lab, 1, 0),
            TestNode::start_as(&lab, 2, "node-a", "node-a", 2),
            TestNode::start_as(&lab, 3, "node-b", "node-b", 2),
        ];
        let fleet = Fleet {
            client: lab.client("control"),
            nodes,
            lab,
        };
        fleet.put_group(&group("web", 4)).await;
        fleet.bound(4).await;
        let link = &fleet.nodes[0].link;
        let reported = || {
            let all: usize =
                link.read(|mirror, _| mirror.statuses.values().map(|it| it.len()).sum());
            (all == 4).then_some(())
        };
        until("the VMs are reported", LONG, reported).await;
        for node in &fleet.nodes {
            assert_eq!(node.link.last_error(), None);
            assert_eq!(node.leads(), node.name() == "n1");
        }
    });
}
