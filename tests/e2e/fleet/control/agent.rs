//! The agent of a test node: it reports the VMs that are bound to its node as Ready, and those that it shall not have as deleted.
//! Out of scope: running VMs.

use std::collections::BTreeMap;
use std::time::Duration;

use slicectl::api::meta::{Name, Uid};
use slicectl::api::vm::Hypervisor;
use slicectl::fleet::keys::Key;
use slicectl::fleet::kv::{Compare, Error, Op, Revision, Txn};
use slicectl::fleet::link::{Link, boottime};
use slicectl::fleet::mirror::Mirror;
use slicectl::fleet::object::{NodeStatus, Phase, Resources, VERSION, Vm, VmStatus, encode};

/// The most operations of a transaction.
const LIMIT: usize = 60;

const GIB: u64 = 1 << 30;

/// What a node with this many vCPUs reports.
fn node_status(vcpus: u64) -> NodeStatus {
    let capacity = Resources {
        vcpus,
        ram_bytes: 10_000 * GIB,
        disk_bytes: 1000 * GIB,
        isolated: 16_384,
        bridge_ports: 2000,
    };
    NodeStatus {
        labels: BTreeMap::new(),
        architecture: "x86_64".into(),
        hypervisors: vec![Hypervisor::CloudHypervisor],
        secrets: Default::default(),
        has_guard: true,
        has_agent: true,
        networks: Default::default(),
        files: [("/vmlinuz".into(), true)].into(),
        capacity,
        allocatable: capacity,
        version: "1".into(),
        format: VERSION,
        api: None,
        boot_id: "first".into(),
    }
}

/// Reports until the end.
pub async fn run(link: &Link, vcpus: u64) {
    let mut changed = link.subscribe();
    loop {
        changed.mark_unchanged();
        if let Err(error) = report(link, vcpus).await {
            println!("{}: {error}", link.node());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

async fn report(link: &Link, vcpus: u64) -> Result<(), Error> {
    let node = link.node();
    let writes = link.read(|mirror, contact| {
        let may_act = contact.may_act(boottime());
        may_act.then(|| writes(mirror, node, vcpus))
    });
    for some in writes.unwrap_or_default().chunks(LIMIT) {
        let (compares, then) = some.iter().cloned().unzip();
        let txn = Txn {
            compares,
            then,
            otherwise: Vec::new(),
        };
        link.client().txn(&txn).await?;
    }
    Ok(())
}

fn writes(mirror: &Mirror, node: &Name, vcpus: u64) -> Vec<(Compare, Op)> {
    let mut writes = Vec::new();
    if !mirror.node_statuses.contains_key(node) {
        let status = encode(&node_status(vcpus)).unwrap();
        writes.push(put(Key::NodeStatus(node.clone()), 0, status));
    }
    let reported = mirror.statuses.get(node);
    for (uid, stored) in &mirror.vms {
        let Ok(vm) = &stored.value else { continue };
        let status = reported.and_then(|it| it.get(uid));
        let before = status.and_then(|it| it.value.as_ref().ok());
        let Some(wanted) = wanted(mirror, node, vm) else {
            continue;
        };
        if before.is_none_or(|it| it.epoch < wanted.epoch || it.phase != wanted.phase) {
            let revision = status.map_or(0, |it| it.revision);
            let key = Key::VmStatus(node.clone(), *uid);
            writes.push(put(key, revision, encode(&wanted).unwrap()));
        }
    }
    for (uid, status) in reported.into_iter().flatten() {
        if !mirror.vms.contains_key(uid) {
            writes.push(delete(node, *uid, status.revision));
        }
    }
    writes
}

/// What the node reports of a VM; `None`: the object does not name it.
fn wanted(mirror: &Mirror, node: &Name, vm: &Vm) -> Option<VmStatus> {
    let binding = vm.binding.as_ref();
    let of_binding = binding.filter(|it| it.node == *node);
    let moving = binding.and_then(|it| it.moving_from.as_ref());
    let of_moving = moving.filter(|it| it.node == *node).map(|it| it.epoch);
    let mut previous = vm.previous.iter();
    let of_previous = previous.find(|it| it.node == *node).map(|it| it.epoch);
    let deleted = of_moving.or(of_previous);
    let (epoch, phase) = match (of_binding, deleted) {
        (Some(binding), _) if vm.meta.deleting => (binding.epoch, Phase::Deleted),
        (Some(binding), _) if moving.is_none() => (binding.epoch, Phase::Ready),
        (_, Some(epoch)) => (epoch, Phase::Deleted),
        _ => return None,
    };
    let group = mirror.groups.get(&vm.group);
    let group = group.and_then(|it| it.value.as_ref().ok());
    let replacement = group.and_then(|it| it.replacement);
    Some(VmStatus {
        epoch,
        phase,
        group_generation: vm.group_generation,
        address: None,
        stops_within: replacement.map(|it| it.stop_after),
        message: None,
    })
}

fn put(key: Key, revision: u64, value: Vec<u8>) -> (Compare, Op) {
    let compare = Compare::unchanged(&key, Revision(revision));
    let op = Op::Put {
        key: key.into(),
        value,
        lease: None,
    };
    (compare, op)
}

fn delete(node: &Name, uid: Uid, revision: u64) -> (Compare, Op) {
    let key = Key::VmStatus(node.clone(), uid);
    (
        Compare::unchanged(&key, Revision(revision)),
        Op::Delete(key.into()),
    )
}
