//! All objects of the fleet at one revision.
//! Out of scope: what users see of them.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::super::keys::{self, Key};
use super::super::kv::{Client, KeyValue, Revision};
use super::super::object::{self, Group, Node, NodeStatus, NodeSubnet, Vm, VmStatus};
use super::super::schedule::view::{Contact, NodeView, Stored, View};
use super::Error;
use crate::api::meta::{Name, Timestamp, Uid};
use crate::api::view::Unreadable;

/// Keys of a page of a list. Each page has the deadline of a request.
pub(super) const PAGE: NonZeroU32 = NonZeroU32::new(1000).unwrap();

/// All objects of the fleet at one revision.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The revision.
    pub revision: Revision,
    /// Groups by name.
    pub groups: BTreeMap<Name, Stored<Group>>,
    /// VMs by uid.
    pub vms: BTreeMap<Uid, Stored<Vm>>,
    /// What administrators specify of nodes.
    pub nodes: BTreeMap<Name, Stored<Node>>,
    /// What nodes report of themselves.
    pub node_statuses: BTreeMap<Name, Stored<NodeStatus>>,
    /// The nodes that renew their leases.
    pub alive: BTreeSet<Name>,
    /// What nodes report of VMs.
    pub statuses: BTreeMap<Uid, BTreeMap<Name, Stored<VmStatus>>>,
    /// The subnets of groups in bridge mode, by group and node.
    pub ranges: BTreeMap<Name, BTreeMap<Name, NodeSubnet>>,
    /// The values that cannot be read.
    pub unreadable: Vec<Unreadable>,
}

impl Snapshot {
    /// All objects, as the majority has them.
    ///
    /// # Errors
    /// [`Error::Etcd`]
    pub async fn read(client: &Client) -> Result<Self, Error> {
        Self::of(client, keys::ROOT).await
    }

    /// The groups alone.
    ///
    /// # Errors
    /// [`Error::Etcd`]
    pub(super) async fn groups(client: &Client) -> Result<Self, Error> {
        Self::of(client, keys::GROUPS).await
    }

    /// The objects with keys that have this prefix.
    async fn of(client: &Client, prefix: &str) -> Result<Self, Error> {
        let listing = client.range(prefix, None, PAGE).await?;
        let mut snapshot = Self {
            revision: listing.revision,
            ..Self::default()
        };
        for kv in listing.kvs {
            snapshot.add(kv);
        }
        Ok(snapshot)
    }

    fn add(&mut self, kv: KeyValue) {
        match kv.key.parse() {
            Some(key) => self.add_value(key, kv),
            // A name that this version does not permit. Keys of other kinds are of a later version.
            None if is_object(kv.key.as_bytes()) => self.unreadable.push(Unreadable {
                key: kv.key.to_string(),
                error: "invalid key".to_owned(),
            }),
            None => {}
        }
    }

    fn add_value(&mut self, key: Key, kv: KeyValue) {
        match key {
            Key::Group(name) => {
                if let Some(group) = self.decode::<Group>(&kv, |group| group.meta.name == name) {
                    self.groups.insert(name, group);
                }
            }
            Key::Vm(uid) => {
                if let Some(vm) = self.decode::<Vm>(&kv, |vm| vm.meta.uid == uid) {
                    self.vms.insert(uid, vm);
                }
            }
            Key::Node(name) => {
                if let Some(node) = self.decode::<Node>(&kv, |_| true) {
                    self.nodes.insert(name, node);
                }
            }
            Key::NodeStatus(name) => {
                if let Some(status) = self.decode::<NodeStatus>(&kv, |_| true) {
                    self.node_statuses.insert(name, status);
                }
            }
            Key::Alive(name) => {
                self.alive.insert(name);
            }
            Key::VmStatus(node, uid) => {
                if let Some(status) = self.decode::<VmStatus>(&kv, |_| true) {
                    self.statuses.entry(uid).or_default().insert(node, status);
                }
            }
            Key::Range(group, node) => {
                if let Some(subnet) = self.decode::<NodeSubnet>(&kv, |_| true) {
                    let nodes = self.ranges.entry(group).or_default();
                    nodes.insert(node, subnet.value);
                }
            }
            Key::Election => {}
        }
    }

    /// The value; `None` if it is unreadable, which is noted. `is_of_key`: whether it belongs to its key.
    fn decode<T: DeserializeOwned>(
        &mut self,
        kv: &KeyValue,
        is_of_key: impl Fn(&T) -> bool,
    ) -> Option<Stored<T>> {
        let why = match object::decode::<T>(&kv.value) {
            Ok(value) if is_of_key(&value) => {
                return Some(Stored {
                    revision: kv.mod_revision.0,
                    value,
                });
            }
            Ok(_) => "the object is that of another key".to_owned(),
            Err(error) => error.to_string(),
        };
        self.unreadable.push(Unreadable {
            key: kv.key.to_string(),
            error: why,
        });
        None
    }

    /// Why the value of a key cannot be read; `None` if it can, or does not exist.
    pub(super) fn unreadable_at(&self, key: &Key) -> Option<&Unreadable> {
        let key = key.to_string();
        self.unreadable.iter().find(|value| value.key == key)
    }

    /// A value of a VM that cannot be read: which VM it is, of which group and on which node, is not known.
    pub(super) fn unreadable_vm(&self) -> Option<&Unreadable> {
        self.unreadable.iter().find(|value| value.is_vm())
    }

    /// The VMs of a group, of this group and not of an earlier one of the same name.
    pub(super) fn vms_of<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a Vm> {
        let vms = self.vms.values().map(|stored| &stored.value);
        vms.filter(|vm| vm.group == group.meta.name && vm.group_uid == group.meta.uid)
    }

    /// The nodes that have an object, a status, or a lease.
    pub(super) fn node_names(&self) -> BTreeSet<&Name> {
        let known = self.nodes.keys().chain(self.node_statuses.keys());
        known.chain(&self.alive).collect()
    }

    /// What the scheduler sees. Nodes without contact have just lost it: a plan for this view replaces nothing.
    pub(super) fn into_view(self, now: Timestamp) -> View {
        let names: BTreeSet<Name> = self.node_names().into_iter().cloned().collect();
        let (mut nodes, mut statuses) = (self.nodes, self.node_statuses);
        let nodes = names.into_iter().map(|name| {
            let view = NodeView {
                admin: nodes.remove(&name),
                status: statuses.remove(&name),
                contact: match self.alive.contains(&name) {
                    true => Contact::Alive,
                    false => Contact::Lost {
                        elapsed: Duration::ZERO,
                    },
                },
                looks: None,
            };
            (name, view)
        });
        View {
            now,
            ranges: self.ranges,
            nodes: nodes.collect(),
            groups: self.groups,
            vms: self.vms,
            statuses: self.statuses,
        }
    }
}

/// Whether a key is of a kind that this version has.
fn is_object(key: &[u8]) -> bool {
    let prefixes = [
        keys::GROUPS,
        keys::VMS,
        keys::NODES,
        keys::NODE_STATUS,
        keys::ALIVE,
        keys::STATUS,
        keys::RANGES,
    ];
    prefixes
        .iter()
        .any(|prefix| key.starts_with(prefix.as_bytes()))
}
