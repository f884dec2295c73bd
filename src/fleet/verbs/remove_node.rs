//! Removes what is stored of a node that does not belong to the fleet any more.
//! Out of scope: its VMs, which a drain moves to other nodes, or which the statement that it is gone releases.

use super::super::keys::{self, Key};
use super::super::kv::{Client, Compare, EtcdKey, MAX_OPS, Op, Txn};
use super::attempts::Attempts;
use super::snapshot::PAGE;
use super::{Error, Snapshot};
use crate::api::meta::Name;
use crate::api::view::Applied;

/// Removes the keys of a node.
///
/// # Errors
/// [`Error::NotFound`] if nothing of the node is known; [`Error::Conflict`] if it renews its lease, or a VM may be on it.
pub(super) async fn remove_node(client: &Client, name: &Name) -> Result<Applied, Error> {
    let mut attempts = Attempts::begin();
    loop {
        let snapshot = Snapshot::read(client).await?;
        check(&snapshot, name)?;
        if remove_keys(client, &snapshot, name).await? {
            return Ok(Applied::Deleted);
        }
        attempts.next().await?;
    }
}

fn check(snapshot: &Snapshot, name: &Name) -> Result<(), Error> {
    let is_known = snapshot.nodes.contains_key(name)
        || snapshot.node_statuses.contains_key(name)
        || snapshot.alive.contains(name);
    let own = [Key::Node(name.clone()), Key::NodeStatus(name.clone())].map(|key| key.to_string());
    let mut unreadable = snapshot.unreadable.iter();
    if !is_known && !unreadable.any(|it| own.contains(&it.key)) {
        return Err(Error::NotFound(format!("node/{name}")));
    }
    if snapshot.alive.contains(name) {
        return Err(Error::conflict(format!(
            "node/{name} renews its lease: remove `fleet:` from its settings, or power it off"
        )));
    }
    let mut unreadable = snapshot.unreadable.iter();
    if let Some(vm) = unreadable.find(|it| it.key.starts_with(keys::VMS)) {
        return Err(Error::conflict(format!(
            "{} cannot be read, and may be a VM on node/{name}: {}",
            vm.key, vm.error
        )));
    }
    let vms = snapshot.vms.values().map(|vm| &vm.value);
    let mut vms = vms.filter(|vm| vm.copies().any(|copy| copy.node == name));
    match (vms.next(), vms.count()) {
        (None, _) => Ok(()),
        (Some(vm), more) => Err(Error::conflict(format!(
            "{} VMs may be on node/{name}, such as vm/{}: `slicectl node drain {name}`, or `slicectl node gone {name}` if it is powered off",
            more + 1,
            vm.meta.name
        ))),
    }
}

/// What the node has written is removed before the node. `false`: something has changed meanwhile.
async fn remove_keys(client: &Client, snapshot: &Snapshot, name: &Name) -> Result<bool, Error> {
    let statuses = format!("{}{name}/", keys::STATUS);
    let statuses = client.range(statuses.as_str(), None, PAGE).await?;
    let mut keys: Vec<EtcdKey> = statuses.kvs.into_iter().map(|kv| kv.key).collect();
    let groups = snapshot.ranges.iter();
    let subnets = groups.filter(|(_, nodes)| nodes.contains_key(name));
    keys.extend(subnets.map(|(group, _)| Key::Range(group.clone(), name.clone()).into()));
    keys.push(Key::NodeStatus(name.clone()).into());
    keys.push(Key::Node(name.clone()).into());
    // Without a lease it gets no VM, and writes nothing.
    let compares = vec![Compare::absent(Key::Alive(name.clone()))];
    for keys in keys.chunks(MAX_OPS) {
        let txn = Txn {
            compares: compares.clone(),
            then: keys.iter().cloned().map(Op::Delete).collect(),
            otherwise: Vec::new(),
        };
        let response = client.txn(&txn).await;
        let response = response.map_err(|error| Error::of_change(error, "nodes"))?;
        if !response.succeeded {
            return Ok(false);
        }
    }
    Ok(true)
}
