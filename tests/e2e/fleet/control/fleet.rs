//! Three members, three nodes, and what tests do with the objects.
//! Out of scope: single nodes ([`super::node`]).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use slicectl::api::host_group::HostGroupSpec;
use slicectl::api::manifest::{Source, parse};
use slicectl::api::meta::{Meta, Name, Timestamp};
use slicectl::fleet::keys::Key;
use slicectl::fleet::kv::{Client, EtcdKey};
use slicectl::fleet::object::{Group, Placement, Vm, encode};

use super::super::lab::{Lab, PATIENCE};
use super::node::TestNode;

/// For what waits for the end of a lease: those of a leader and of a node end after 15 s and 40 s.
pub const LONG: Duration = Duration::from_secs(100);

/// A cluster with nodes `n1` to `n3`, all of which may lead.
pub struct Fleet {
    // Before the members, on which they depend.
    pub nodes: Vec<TestNode>,
    pub client: Client,
    pub lab: Lab,
}

impl Fleet {
    /// All nodes have contact, and one leads. `vcpus`: of each node.
    pub async fn start(vcpus: [u64; 3]) -> Self {
        let lab = Lab::start();
        let numbers = 1..=3_u8;
        let nodes = numbers.zip(vcpus);
        let nodes = nodes.map(|(number, vcpus)| TestNode::start(&lab, number, vcpus));
        let nodes: Vec<TestNode> = nodes.collect();
        let fleet = Self {
            client: lab.client("control"),
            nodes,
            lab,
        };
        fleet.leader().await;
        for node in &fleet.nodes {
            until("contact", PATIENCE, || node.may_act().then_some(())).await;
        }
        fleet
    }

    /// The node that leads; waits for an election.
    pub async fn leader(&self) -> usize {
        until("a leader", LONG, || {
            self.nodes.iter().position(TestNode::leads)
        })
        .await
    }

    /// A node that leads and is not this one.
    pub async fn leader_except(&self, other: usize) -> usize {
        until("another leader", LONG, || {
            let leader = self.nodes.iter().position(TestNode::leads);
            leader.filter(|leader| *leader != other)
        })
        .await
    }

    /// Writes a group, as the API does.
    pub async fn put_group(&self, group: &Group) {
        let key = Key::Group(group.meta.name.clone());
        let value = encode(group).unwrap();
        let begin = Instant::now();
        while let Err(error) = self.client.put(&key, value.clone(), None).await {
            assert!(begin.elapsed() < PATIENCE, "{error}");
        }
    }

    /// All VMs, as etcd has them.
    pub async fn vms(&self) -> Vec<Vm> {
        let begin = Instant::now();
        loop {
            let page = std::num::NonZeroU32::new(1000).unwrap();
            match self.client.range("/slice/v1/vms/", None, page).await {
                Ok(listing) => {
                    let values = listing.kvs.iter();
                    let decode = |it: &slicectl::fleet::kv::KeyValue| {
                        slicectl::fleet::object::decode(&it.value).unwrap()
                    };
                    return values.map(decode).collect();
                }
                Err(error) => assert!(begin.elapsed() < PATIENCE, "{error}"),
            }
        }
    }

    /// The VMs, when this many are bound.
    pub async fn bound(&self, count: usize) -> Vec<Vm> {
        let begin = Instant::now();
        loop {
            let vms = self.vms().await;
            let bound = vms.iter().filter(|vm| vm.binding.is_some()).count();
            if bound == count {
                return vms;
            }
            let statuses: Vec<_> = self.nodes.iter().map(|it| it.control.status()).collect();
            assert!(
                begin.elapsed() < LONG,
                "{bound} of {count} VMs are bound: {statuses:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether a key exists.
    pub async fn exists(&self, key: impl Into<EtcdKey>) -> bool {
        self.client.get(key).await.unwrap().1.is_some()
    }
}

/// Looks until `look` finds something.
#[track_caller]
pub fn until<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let begin = Instant::now();
    async move {
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(
                begin.elapsed() < patience,
                "{what}: not within {patience:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A group of VMs with 1 vCPU.
pub fn group(name: &str, count: u32) -> Group {
    let now = Timestamp::UNIX_EPOCH;
    let text = "config: {host_groups: [{name: web, count: 0, vcpu: 1, ram_mb: 1024, hypervisor: cloud-hypervisor, kernel_file: /vmlinuz, network: {mode: isolated}}]}";
    let manifest = parse(&Source {
        name: "group.yaml".into(),
        text: text.into(),
    });
    let manifest = manifest.expect("a manifest");
    Group {
        meta: Meta::new(Name::new(name).unwrap(), now),
        template_generation: 1,
        spec: HostGroupSpec {
            count,
            ..manifest[0].spec.clone()
        },
        placement: Placement {
            max_unavailable: 1,
            ..Placement::default()
        },
        replacement: None,
    }
}

/// The number of VMs by node, and that of different pairs of group and index.
pub fn counts(vms: &[Vm]) -> (BTreeMap<String, usize>, usize) {
    let mut nodes = BTreeMap::new();
    for binding in vms.iter().filter_map(|vm| vm.binding.as_ref()) {
        *nodes.entry(binding.node.to_string()).or_default() += 1;
    }
    let mut names: Vec<_> = vms.iter().map(|vm| (&vm.group, vm.index)).collect();
    names.sort();
    names.dedup();
    (nodes, names.len())
}
