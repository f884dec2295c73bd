//! Where VMs are, from the objects of the fleet.
//! Out of scope: files, requests.

use super::*;
use crate::api::meta::{Meta, Timestamp, Uid};
use crate::fleet::object::{self, Binding, Gone, Node, NodeStatus, Resources, Vm};
use crate::fleet::schedule::view::Stored;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn stored<T>(value: T) -> Stored<T> {
    Stored { revision: 1, value }
}

fn add_vm(mirror: &mut Mirror, vm: &str, node: Option<&str>, is_deleting: bool) -> Uid {
    let mut meta = Meta::new(name(vm), Timestamp::UNIX_EPOCH);
    meta.deleting = is_deleting;
    let uid: Uid = meta.uid;
    let vm = Vm {
        meta,
        group: name("g"),
        group_uid: uid,
        index: 1,
        group_generation: 1,
        binding: node.map(|node| Binding {
            node: name(node),
            epoch: 1,
            group_generation: 1,
            resources: Resources::default(),
            moving_from: None,
        }),
        epoch: 1,
        previous: Vec::new(),
        refusals: Vec::new(),
        pending: Some("no node has 4 vcpus".to_owned()),
    };
    mirror.vms.insert(uid, stored(Ok(vm)));
    uid
}

fn status(boot_id: &str) -> NodeStatus {
    NodeStatus {
        labels: Default::default(),
        architecture: "x86_64".to_owned(),
        hypervisors: Vec::new(),
        secrets: Default::default(),
        has_guard: true,
        has_agent: true,
        networks: Default::default(),
        files: Default::default(),
        capacity: Resources::default(),
        allocatable: Resources::default(),
        version: "1.2.3".to_owned(),
        format: 1,
        api: Some("https://b:8080".to_owned()),
        boot_id: boot_id.to_owned(),
    }
}

#[test]
fn a_vm_is_where_it_is_bound() {
    let mut mirror = Mirror::default();
    add_vm(&mut mirror, "g-1", Some("node-a"), false);
    let second = add_vm(&mut mirror, "g-2", Some("node-b"), false);
    add_vm(&mut mirror, "g-3", Some("node-c"), false);
    add_vm(&mut mirror, "g-4", None, false);
    add_vm(&mut mirror, "g-5", None, true);
    add_vm(&mut mirror, "g-6", Some("node-a"), true);
    let sixth = add_vm(&mut mirror, "g-6", Some("node-b"), false);
    mirror
        .node_statuses
        .insert(name("node-b"), stored(Ok(status("x"))));
    let found = |vm: &str| whereabouts(&mirror, &name("node-a"), &name(vm));
    let at_b = Place {
        node: name("node-b"),
        url: Some("https://b:8080".to_owned()),
        version: "1.2.3".to_owned(),
    };
    assert_eq!(found("g-1"), None);
    assert_eq!(found("g-2"), Some(Whereabouts::At(at_b.clone(), second)));
    let Some(Whereabouts::At(at_c, _)) = found("g-3") else {
        panic!("a node without a status");
    };
    assert_eq!((at_c.url, at_c.version.as_str()), (None, ""));
    let pending = Whereabouts::Pending(Some("no node has 4 vcpus".to_owned()));
    assert_eq!(found("g-4"), Some(pending));
    assert_eq!(found("g-5"), None);
    assert_eq!(found("g-6"), Some(Whereabouts::At(at_b, sixth)));
    assert_eq!(found("g-9"), None);
}

#[test]
fn a_node_is_gone_until_it_has_started_again() {
    let mut mirror = Mirror::default();
    let b = name("node-b");
    assert!(!is_gone(&mirror, &b));
    mirror.nodes.insert(b.clone(), stored(Ok(Node::default())));
    mirror
        .node_statuses
        .insert(b.clone(), stored(Ok(status("one"))));
    assert!(!is_gone(&mirror, &b));
    let gone = Node {
        gone: Some(Gone {
            at: Timestamp::UNIX_EPOCH,
            boot_id: Some("one".to_owned()),
        }),
        ..Node::default()
    };
    mirror.nodes.insert(b.clone(), stored(Ok(gone)));
    assert!(is_gone(&mirror, &b));
    mirror
        .node_statuses
        .insert(b.clone(), stored(Ok(status("two"))));
    assert!(!is_gone(&mirror, &b));
}

#[test]
fn a_node_whose_values_cannot_be_decoded_stays_gone() {
    let gone = |boot_id: Option<&str>| Node {
        gone: Some(Gone {
            at: Timestamp::UNIX_EPOCH,
            boot_id: boot_id.map(str::to_owned),
        }),
        ..Node::default()
    };
    let b = name("node-b");
    let undecodable = || object::decode::<NodeStatus>(b"{");
    for (admin, status, expected) in [
        (Ok(gone(Some("one"))), Some(undecodable()), true),
        (Ok(gone(None)), Some(undecodable()), true),
        (Ok(gone(Some("one"))), None, true),
        (Ok(gone(None)), None, true),
        (Ok(gone(None)), Some(Ok(status("one"))), false),
        // It may state that the node is gone.
        (object::decode::<Node>(b"{"), Some(Ok(status("one"))), true),
        (Ok(Node::default()), Some(undecodable()), false),
    ] {
        let mut mirror = Mirror::default();
        let shown = format!("{admin:?} {status:?}");
        mirror.nodes.insert(b.clone(), stored(admin));
        if let Some(status) = status {
            mirror.node_statuses.insert(b.clone(), stored(status));
        }
        assert_eq!(is_gone(&mirror, &b), expected, "{shown}");
    }
}
