//! The objects of the fleet as they were listed and watched.
//! Out of scope: requests.

use std::collections::BTreeMap;

use super::keys::Key;
use super::kv::{Batch, EtcdKey, Event, KeyValue, LeaseId, Listing};
use super::object::{DecodeError, Group, Node, NodeStatus, NodeSubnet, Vm, VmStatus, decode};
use super::schedule::view::Stored;
use crate::api::meta::{Name, Uid};

#[cfg(test)]
mod tests;

/// An object, or why its value cannot be decoded.
pub type Decoded<T> = Stored<Result<T, DecodeError>>;

/// All objects at one revision.
#[derive(Debug, Default)]
pub struct Mirror {
    /// The revision; 0: nothing was listed yet. All changes up to it are in the mirror.
    pub revision: u64,
    /// Groups by name.
    pub groups: BTreeMap<Name, Decoded<Group>>,
    /// VMs by uid.
    pub vms: BTreeMap<Uid, Decoded<Vm>>,
    /// What administrators specify of nodes.
    pub nodes: BTreeMap<Name, Decoded<Node>>,
    /// What nodes report of themselves.
    pub node_statuses: BTreeMap<Name, Decoded<NodeStatus>>,
    /// The keys `alive/<node>`, with their leases.
    pub alive: BTreeMap<Name, Stored<Option<LeaseId>>>,
    /// The revisions at which keys `alive/<node>` were deleted since the list: a key that was deleted, written and deleted again between two
    /// looks at the mirror has another one.
    pub alive_deleted: BTreeMap<Name, u64>,
    /// What nodes report of VMs.
    pub statuses: BTreeMap<Name, BTreeMap<Uid, Decoded<VmStatus>>>,
    /// The subnets of groups in bridge mode, by group and node.
    pub ranges: BTreeMap<Name, BTreeMap<Name, Decoded<NodeSubnet>>>,
    /// The key of the leader.
    pub election: Option<Stored<Election>>,
}

/// The key of the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Election {
    /// The name of the leader's node.
    pub node: String,
    /// The revision at which it was elected.
    pub create_revision: u64,
    /// The lease of the key.
    pub lease: Option<LeaseId>,
}

impl Mirror {
    /// The objects of a list.
    pub fn of(listing: &Listing) -> Self {
        let mut mirror = Self {
            revision: listing.revision.0,
            ..Self::default()
        };
        for kv in &listing.kvs {
            mirror.put(kv);
        }
        mirror
    }

    /// Applies changes; returns whether an object has changed. Changes that are not later than the mirror have no effect.
    pub fn apply(&mut self, batch: &Batch) -> bool {
        let mut is_changed = false;
        for event in &batch.events {
            let revision = event.mod_revision().0;
            if revision <= self.revision {
                continue;
            }
            is_changed |= match event {
                Event::Put { kv } => self.put(kv),
                Event::Delete { key, .. } => self.delete(key, revision),
            };
        }
        // Of a part of a transaction, the rest follows: `next` is then the revision of the transaction.
        self.revision = self.revision.max(batch.next.0.saturating_sub(1));
        is_changed
    }

    /// The values that cannot be decoded, with their keys.
    pub fn undecodable(&self) -> impl Iterator<Item = (Key, &DecodeError)> {
        let groups = errors(&self.groups).map(|(name, error)| (Key::Group(name.clone()), error));
        let vms = errors(&self.vms).map(|(uid, error)| (Key::Vm(*uid), error));
        let nodes = errors(&self.nodes).map(|(name, error)| (Key::Node(name.clone()), error));
        let node_statuses =
            errors(&self.node_statuses).map(|(name, error)| (Key::NodeStatus(name.clone()), error));
        let statuses = self.statuses.iter().flat_map(|(node, statuses)| {
            errors(statuses).map(|(uid, error)| (Key::VmStatus(node.clone(), *uid), error))
        });
        let ranges = self.ranges.iter().flat_map(|(group, ranges)| {
            errors(ranges).map(|(node, error)| (Key::Range(group.clone(), node.clone()), error))
        });
        let objects = groups.chain(vms).chain(nodes);
        objects.chain(node_statuses).chain(statuses).chain(ranges)
    }

    fn put(&mut self, kv: &KeyValue) -> bool {
        // Keys of other programs and of other versions.
        let Some(key) = kv.key.parse() else {
            return false;
        };
        match key {
            Key::Group(name) => put(&mut self.groups, name, kv),
            Key::Vm(uid) => put(&mut self.vms, uid, kv),
            Key::Node(node) => put(&mut self.nodes, node, kv),
            Key::NodeStatus(node) => put(&mut self.node_statuses, node, kv),
            Key::Alive(node) => store(&mut self.alive, node, kv, |kv| kv.lease),
            Key::VmStatus(node, uid) => put(self.statuses.entry(node).or_default(), uid, kv),
            Key::Range(group, node) => put(self.ranges.entry(group).or_default(), node, kv),
            Key::Election => self.put_election(kv),
        }
    }

    fn put_election(&mut self, kv: &KeyValue) -> bool {
        let revision = kv.mod_revision.0;
        let stored = self.election.as_ref();
        if stored.is_some_and(|stored| stored.revision >= revision) {
            return false;
        }
        self.election = Some(Stored {
            revision,
            value: Election {
                node: String::from_utf8_lossy(&kv.value).into_owned(),
                create_revision: kv.create_revision.0,
                lease: kv.lease,
            },
        });
        true
    }

    fn delete(&mut self, key: &EtcdKey, revision: u64) -> bool {
        let Some(key) = key.parse() else {
            return false;
        };
        match key {
            Key::Group(name) => delete(&mut self.groups, &name, revision),
            Key::Vm(uid) => delete(&mut self.vms, &uid, revision),
            Key::Node(node) => delete(&mut self.nodes, &node, revision),
            Key::NodeStatus(node) => delete(&mut self.node_statuses, &node, revision),
            Key::Alive(node) => {
                let is_deleted = delete(&mut self.alive, &node, revision);
                if is_deleted {
                    self.alive_deleted.insert(node, revision);
                }
                is_deleted
            }
            Key::VmStatus(node, uid) => delete_below(&mut self.statuses, &node, &uid, revision),
            Key::Range(group, node) => delete_below(&mut self.ranges, &group, &node, revision),
            Key::Election => {
                let stored = self.election.as_ref();
                let is_deleted = stored.is_some_and(|stored| stored.revision < revision);
                if is_deleted {
                    self.election = None;
                }
                is_deleted
            }
        }
    }
}

fn errors<K, T>(map: &BTreeMap<K, Decoded<T>>) -> impl Iterator<Item = (&K, &DecodeError)> {
    map.iter()
        .filter_map(|(key, stored)| Some((key, stored.value.as_ref().err()?)))
}

fn put<K: Ord, T: serde::de::DeserializeOwned>(
    map: &mut BTreeMap<K, Decoded<T>>,
    key: K,
    kv: &KeyValue,
) -> bool {
    store(map, key, kv, |kv| decode(&kv.value))
}

fn store<K: Ord, V>(
    map: &mut BTreeMap<K, Stored<V>>,
    key: K,
    kv: &KeyValue,
    value: impl FnOnce(&KeyValue) -> V,
) -> bool {
    let revision = kv.mod_revision.0;
    let stored = map.get(&key);
    if stored.is_some_and(|stored| stored.revision >= revision) {
        return false;
    }
    let value = value(kv);
    map.insert(key, Stored { revision, value });
    true
}

fn delete<K: Ord, V>(map: &mut BTreeMap<K, Stored<V>>, key: &K, revision: u64) -> bool {
    let stored = map.get(key);
    stored.is_some_and(|stored| stored.revision < revision) && map.remove(key).is_some()
}

fn delete_below<A: Ord, B: Ord, V>(
    map: &mut BTreeMap<A, BTreeMap<B, Stored<V>>>,
    first: &A,
    second: &B,
    revision: u64,
) -> bool {
    let Some(inner) = map.get_mut(first) else {
        return false;
    };
    let is_deleted = delete(inner, second, revision);
    if inner.is_empty() {
        map.remove(first);
    }
    is_deleted
}
