//! Runs a key: the host network, a group, a VM (bring-up or teardown of its stages), or an orphan.
//! Out of scope: when a key is run ([`crate::runtime`]).
//!
//! # Why
//! A VM is one key, not one key per stage: its stages depend on each other, so separate runs would wait for each other, and a run of the
//! whole pipeline enters the VM's namespace once. Each stage still has its own plan and status, and is acquired in its own transaction.

mod adopt;
pub mod agents;
mod bridge;
mod bring_up;
mod cni;
pub mod conflicting_writer;
mod connections;
mod enforce;
mod flows;
mod groups;
mod host_network;
mod isolated;
mod labelled;
mod orphans;
mod pending;
mod plugin_rules;
mod power;
mod preview;
pub mod processes;
mod provision;
mod remove_orphans;
mod reports;
mod seen_rules;
mod step;
mod tear_down;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use parking_lot::Mutex;
use tracing::{debug, warn};

use crate::api::condition::{Reason, Status};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::{Name, Uid};
use crate::api::network::{Connection, NetworkSpec};
use crate::api::stage::Stage;
use crate::api::vm::Vm;
use crate::api::vmm_ids::IdRange;
use crate::clock;
use crate::cni::Runtime;
use crate::engine::conflicting_writer::ConflictingWriters;
use crate::engine::flows::Flows;
use crate::engine::processes::Processes;
use crate::host::Error;
use crate::host::iptables::Backend;
use crate::host::iptables::foreign::ForwardChains;
use crate::host::netlink::Handle;
use crate::host::netns::Netns;
use crate::host::routing_rule::RoutingRule;
use crate::host::rule::TableName;
use crate::owner::{self, Instance, Label, RunDir};
use crate::reconcile::Probe;
use crate::reconcile::checkpoint;
use crate::reconcile::firewall::isolated::IsolatedFirewall;
use crate::reconcile::fresh::Cached;
use crate::reconcile::group::{BlockedReason, Claims};
use crate::reconcile::host_network::{Refusals, Refused};
use crate::reconcile::net::isolated::IsolatedNet;
use crate::runtime::controller::Enqueuer;
use crate::runtime::queue::{Lane, Outcome};
use crate::secrets::Secrets;
use crate::store::{self, Store, Txn};

pub use enforce::Enforcement;
pub use orphans::Orphan;
pub use power::update_checkpoint;
pub use preview::Preview;
pub use remove_orphans::Removals;
pub use seen_rules::VerifiedRules;

/// What a run reconciles.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The host's rules and bridges.
    HostNetwork,
    /// A group.
    Group(Name),
    /// A VM.
    Vm(Uid),
    /// Resources on the host that carry our label and that no object references.
    Orphan(Label),
}

/// Access to the host's kernel interfaces.
#[derive(Clone)]
pub struct HostContext {
    /// The network namespace that the daemon was started in.
    pub host_netns: Netns,
    /// Netlink sockets in it.
    pub netlink: Handle,
    /// The kernel interface that the host's iptables uses (legacy or nf_tables).
    pub backend: Backend,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// Reconciles keys. It holds the store, the host context and what was observed in earlier runs.
pub struct Engine {
    /// The instance that owns the resources.
    pub instance: Instance,
    /// The directory for state that is valid until the host reboots.
    pub run_dir: RunDir,
    /// Persistent state.
    pub store: Store,
    /// Kernel interfaces of the host.
    pub host: HostContext,
    /// VMM processes.
    pub processes: Processes,
    /// Address ranges claimed on this host.
    pub claims: Claims,
    /// Enqueues keys.
    pub waker: Enqueuer<Key>,
    /// Called before each step.
    pub probe: Probe,
    /// Repairs that conflicting writers revert.
    pub conflicting_writers: ConflictingWriters,
    /// Why groups are blocked, apart from the state of their VMs.
    pub blocked_reasons: Mutex<HashMap<Name, BlockedReason>>,
    /// Number of steps carried out on the host so far.
    pub step_count: AtomicU64,
    /// Groups that are enqueued when the readiness of one of their VMs changes.
    pub waiting_groups: Mutex<HashSet<Name>>,
    /// Runs the plugins of CNI networks.
    pub cni: Runtime,
    /// CNI VMs for which CHECK was called since the start or the last resync.
    pub cni_checked: Mutex<HashSet<Uid>>,
    /// Chains of CNI plugins that had rules at the last observation.
    pub plugin_rules: Mutex<HashSet<(TableName, String)>>,
    /// User IDs that VMMs run as.
    pub vmm_ids: IdRange,
    /// User IDs in the file of the fleet's guard when this daemon started: not assigned again.
    pub guarded_users: BTreeSet<u32>,
    /// Generations of the isolated VMs' rules that were verified.
    pub verified_rules: VerifiedRules,
    /// Number of packets beyond the connection limit that each isolated VM's rules had dropped at the last observation.
    pub isolated_refused_packets: Mutex<HashMap<Uid, u64>>,
    /// Number of packets beyond the connection limit that were dropped for bridge VMs.
    pub bridge_refused_packets: Refusals,
    /// Number of entries in the host's connection tracking table, by address.
    pub entries: Cached<HashMap<Ipv4Addr, u32>>,
    /// Host properties that the rules were computed from.
    pub host_properties: Mutex<Option<HostProperties>>,
    /// Foreign chains that forwarded packets traverse.
    pub forward_chains: Arc<ForwardChains>,
    /// The next observation reads the host's tables completely: at the start and at every resync.
    pub read_all_tables: AtomicBool,
    /// The requirements that the host's rules last met when they were read back, and whether they are known to be in place.
    pub enforcement: Enforcement,
    /// Deletes the host's connection tracking entries of VMs that are gone.
    pub flows: Flows,
    /// VMs that were run when the host network did not meet their requirements.
    pub waiting_for_host_network: Mutex<HashSet<Uid>>,
    /// Whether the agents of guests answer.
    pub agents: agents::Agents,
    /// The secrets that guests may get.
    pub secrets: Arc<Secrets>,
    /// Requests that wait for the removal of orphans.
    pub removals: Removals,
}

/// The size of the host's connection tracking table, the networks of its links, foreign bridges, and foreign routing rules.
type HostProperties = (
    Option<u32>,
    BTreeSet<Ipv4Network>,
    BTreeSet<String>,
    Vec<RoutingRule>,
);

/// The link in the host namespace that belongs to a VM.
pub struct HostLink {
    /// Its name.
    pub link: String,
    /// It has been created.
    pub exists: bool,
}

/// Delay before the next run when a retry with backoff would not help.
const SLOW_RETRY: Duration = Duration::from_secs(30);

/// A VM with a younger lease counts as being created.
const NEW_VM_AGE: Duration = Duration::from_secs(3);

/// As [`SLOW_RETRY`], for the host network, which every VM depends on.
const HOST_NETWORK_RETRY: Duration = Duration::from_secs(5);

/// The readiness of a VM, which its group may wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Readiness {
    ready: bool,
    settled: bool,
}

impl Readiness {
    fn of(world: &store::World, vm: &Vm) -> Self {
        Self {
            ready: world.is_ready(vm),
            settled: world.is_settled(vm),
        }
    }
}

impl Engine {
    /// Runs one key. `failures`: number of failed runs before this one, without a success between.
    pub async fn run(self: Arc<Self>, key: Key, failures: u32) -> Outcome {
        let outcome = match &key {
            Key::HostNetwork => Box::pin(self.run_host_network()).await,
            Key::Group(name) => self.run_group(name).await,
            Key::Vm(uid) => self.run_vm(*uid, failures).await,
            Key::Orphan(label) => Box::pin(self.run_orphan(label)).await,
        };
        outcome.unwrap_or_else(|error| {
            warn!(?key, %error, "failed to persist state");
            Outcome::Failed
        })
    }

    /// Enqueues the keys of all objects: any of them may have changed.
    pub fn enqueue_all(&self) {
        self.read_all_tables.store(true, Ordering::Relaxed);
        for key in self.keys() {
            self.waker.enqueue(key);
        }
    }

    /// Enqueues the keys of all objects at low priority: no change is known.
    pub fn enqueue_all_low_priority(&self) {
        self.read_all_tables.store(true, Ordering::Relaxed);
        for key in self.keys() {
            self.waker.enqueue_low_priority(key);
        }
    }

    /// The lane of a key. Existing VMs, which are repaired or get another policy, do not wait for thousands of others that are created
    /// or deleted. The kernel reports the creation of a VM in several messages: while these may arrive, the VM stays in the bulk lane,
    /// or each message would cause a run of this VM before the next VM is created.
    pub fn lane(&self, key: &Key) -> Lane {
        let now = clock::now();
        let is_bulk = self.store.read(|world| match key {
            Key::HostNetwork => false,
            Key::Orphan(_) => true,
            Key::Group(name) => world.vms_of(name).next().is_none(),
            Key::Vm(uid) => world.vm(*uid).is_none_or(|vm| {
                // The checkpoint from when the stage was last True. In each mode one of the two stages has one.
                let has_checkpoint = |stage| {
                    world
                        .status(*uid, stage)
                        .is_some_and(|status| status.checkpoint.is_some())
                };
                let lease = world.status(*uid, Stage::Lease);
                let is_young = lease.is_none_or(|status| now < status.condition.since + NEW_VM_AGE);
                vm.meta.deleting
                    || is_young
                    || !(has_checkpoint(Stage::Net) || has_checkpoint(Stage::Firewall))
            }),
        });
        match is_bulk {
            true => Lane::Bulk,
            false => Lane::Prompt,
        }
    }

    /// Enqueues the keys of all objects and resets their backoff: what failed may succeed now.
    pub fn enqueue_all_fresh(&self) {
        self.read_all_tables.store(true, Ordering::Relaxed);
        for key in self.keys() {
            self.waker.enqueue_fresh(key);
        }
    }

    fn keys(&self) -> Vec<Key> {
        self.store.read(|world| {
            let groups = world
                .groups()
                .map(|group| Key::Group(group.meta.name.clone()));
            let vms = world.vms().map(|vm| Key::Vm(vm.meta.uid));
            [Key::HostNetwork]
                .into_iter()
                .chain(groups)
                .chain(vms)
                .collect()
        })
    }

    /// Whether every VM is Ready or stopped as specified, every group has its VMs, and the host network is converged.
    pub fn all_ready(&self) -> bool {
        self.store.read(|world| {
            let host_network = world.host_network_status();
            let host_network_converged = host_network.is_some_and(|network_status| {
                network_status.is_converged(&world.host_requirements())
            });
            host_network_converged
                && world
                    .vms()
                    .all(|vm| world.is_settled(vm) && world.is_observed(vm))
                && world.groups().all(|group| {
                    let vms = world.vms_of(&group.meta.name).count();
                    !group.meta.deleting && vms == group.size()
                })
        })
    }

    /// The link in the host namespace that belongs to a VM. None: there is no such VM.
    pub fn host_link(&self, uid: Uid) -> Option<HostLink> {
        self.store.read(|world| {
            let vm = world.vm(uid)?;
            let status = world.status(uid, Stage::Net);
            let link = match (&vm.spec.network, checkpoint::connection(status)) {
                (NetworkSpec::Bridge(bridge), _) => bridge.tap(vm.index),
                (
                    NetworkSpec::Cni(_),
                    Some(Connection {
                        host_link: Some(link),
                        ..
                    }),
                ) => link,
                (NetworkSpec::Isolated(_) | NetworkSpec::Cni(_), _) => {
                    owner::vm_names(&self.instance, uid).host_link
                }
            };
            let exists = status.is_some_and(|status| status.acquired);
            Some(HostLink { link, exists })
        })
    }

    async fn run_vm(&self, uid: Uid, failures: u32) -> Result<Outcome, store::Error> {
        let Some(vm) = self.store.read(|world| world.vm(uid).cloned()) else {
            self.conflicting_writers.remove(uid);
            self.verified_rules.forget(uid);
            self.bridge_refused_packets.remove(uid);
            self.enforcement.forget(uid);
            let mut refused = self.isolated_refused_packets.lock();
            refused.remove(&uid);
            return Ok(Outcome::Converged);
        };
        let before = self.store.read(|world| Readiness::of(world, &vm));
        self.report_creation(&vm);
        let outcome = match vm.meta.deleting {
            true => Box::pin(self.tear_down(&vm)).await?,
            false => Box::pin(self.bring_up(&vm, failures)).await?,
        };
        let after = self
            .store
            .read(|world| world.vm(uid).map(|vm| Readiness::of(world, vm)));
        if after.is_some_and(|after| after.ready) && !before.ready {
            debug!(vm = %vm.meta.name, "ready");
            let object = ObjectRef::vm(&vm.meta.name);
            self.record_event(
                EventType::Normal,
                &object,
                EventReason::Ready,
                "VM is ready",
            );
        }
        if after != Some(before) && self.group_waits(&vm.group) {
            self.waker.enqueue(Key::Group(vm.group.clone()));
        }
        Ok(outcome)
    }

    /// The checkpoint of a VM's stage, stored when the stage was last Ready.
    fn checkpoint(&self, uid: Uid, stage: Stage) -> Option<String> {
        self.store.read(|world| {
            world
                .status(uid, stage)
                .and_then(|status| status.checkpoint.clone())
        })
    }

    async fn set_condition(
        &self,
        vm: &Vm,
        stage: Stage,
        found: (Status, Reason, String),
    ) -> Result<(), store::Error> {
        let now = clock::now();
        let (uid, generation) = (vm.meta.uid, vm.meta.generation);
        self.write(|txn| txn.set_condition(uid, stage, found, generation, now))
            .await
    }

    async fn write<T>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, store::Error>,
    ) -> Result<T, store::Error> {
        self.store.write(change).await
    }

    fn record_event(
        &self,
        event_type: EventType,
        object: &ObjectRef,
        reason: impl Into<EventReason>,
        message: &str,
    ) {
        let events = self.store.events();
        events.note(clock::now(), event_type, object, reason, message);
    }

    /// Number of packets beyond the connection limit that were dropped for a bridge VM, in all and since the last call.
    async fn observe_bridge_refused_packets(
        &self,
        vm: (Uid, Ipv4Addr, bool),
    ) -> Result<Refused, Error> {
        let (home, now) = (&self.host.host_netns, clock::monotonic());
        self.bridge_refused_packets
            .observe(home, &self.instance, vm, now)
            .await
    }

    /// Number of entries in the host's connection tracking table, by address. The result may be as old as `age`.
    async fn host_conntrack_entries(
        &self,
        max_age: Duration,
    ) -> Result<Arc<HashMap<Ipv4Addr, u32>>, Error> {
        let read = async || self.host.host_netns.run(connections::entries).await;
        let found = self.entries.get(max_age, clock::monotonic(), read).await;
        Ok(found?.1)
    }

    /// The reconciler of the Net stage in isolated mode, for one run.
    fn net(&self) -> IsolatedNet {
        IsolatedNet::new(self.host.host_netns.clone(), self.host.netlink.clone())
    }

    /// The reconciler of the Firewall stage in isolated mode.
    fn isolated_firewall_reconciler(&self) -> IsolatedFirewall {
        IsolatedFirewall {
            backend: self.host.backend.clone(),
            home: self.host.host_netns.clone(),
        }
    }
}
