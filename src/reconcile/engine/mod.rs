//! What is done for a key: the ground, a group, a VM up or down its ladder, a stray that no object wants.
//! Out of scope: when ([`crate::runtime`]).
//!
//! # Why
//! A VM is one key, not one key a rung: its rungs depend on each other, so their runs would only wait for one another, and
//! a run that climbs the whole ladder enters the VM's namespace once. Each rung still has its own plan, its own page, and
//! is taken in its own transaction.

mod bridged;
mod climb;
mod connections;
mod descend;
mod enforce;
mod ground;
mod groups;
mod isolated;
mod life;
mod pending;
mod plugged;
mod plugin_rules;
mod preview;
mod seen_rules;
mod step;
mod stray;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tracing::{debug, warn};

use super::Probe;
use super::contest::Contests;
use super::firewall::Firewall;
use super::flows::Flows;
use super::fresh::Fresh;
use super::ground::{Refusals, Refused};
use super::group::{Claims, Hindrance};
use super::net::Net;
use super::processes::Processes;
use crate::api::condition::{Reason, Status};
use crate::api::event::EventType;
use crate::api::meta::{Name, Uid};
use crate::api::network::{Connection, NetworkSpec};
use crate::api::rung::Rung;
use crate::api::vm::Vm;
use crate::api::vmm_ids::IdRange;
use crate::clock;
use crate::cni::Runtime;
use crate::host::Error;
use crate::host::iptables::Backend;
use crate::host::iptables::foreign::ForwardChains;
use crate::host::netlink::Handle;
use crate::host::netns::Netns;
use crate::host::routing_rule::RoutingRule;
use crate::host::rule::TableName;
use crate::owner::{self, Instance, Label, RunDir};
use crate::runtime::controller::Waker;
use crate::runtime::queue::{Lane, Outcome};
use crate::store::{self, Store, Txn};

pub use enforce::Enforcement;
pub use life::remember;
pub use preview::Preview;
pub use seen_rules::SeenRules;
pub use stray::Removals;

/// What can be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The host's own rules.
    Ground,
    /// A group.
    Group(Name),
    /// A VM.
    Vm(Uid),
    /// Something on the host with our label on it that no object wants.
    Stray(Label),
}

/// The host, as far as the engine needs it.
#[derive(Clone)]
pub struct HostHands {
    /// The namespace that the daemon was started in.
    pub home: Netns,
    /// Sockets in it.
    pub netlink: Handle,
    /// Which kernel interface the host's iptables speaks.
    pub backend: Backend,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// What an engine is made of.
pub struct Engine {
    /// Whose things.
    pub instance: Instance,
    /// Where what lives as long as the host is up is kept.
    pub run_dir: RunDir,
    /// What is remembered.
    pub store: Store,
    /// The host.
    pub hands: HostHands,
    /// The VMMs.
    pub processes: Processes,
    /// Ranges claimed on this host.
    pub claims: Claims,
    /// Wakes keys.
    pub waker: Waker<Key>,
    /// Asked before each step.
    pub probe: Probe,
    /// Repairs that conflicting writers revert.
    pub contests: Contests,
    /// What keeps groups from what they want, beside their VMs.
    pub hindrances: Mutex<HashMap<Name, Hindrance>>,
    /// Steps taken on the host so far.
    pub steps: AtomicU64,
    /// Groups that wait for one of their VMs.
    pub waiting: Mutex<HashSet<Name>>,
    /// Runs the plugins of CNI networks.
    pub cni: Runtime,
    /// CNI VMs whose plugins have been asked, since the start or the last resync, whether all is as they made it.
    pub checked: Mutex<HashSet<Uid>>,
    /// Chains that CNI plugins made and that had rules when they were looked for last.
    pub plugin_rules: Mutex<HashSet<(TableName, String)>>,
    /// The users that VMMs run as.
    pub vmm_ids: IdRange,
    /// Which rules of the isolated VMs have been looked at.
    pub seen_rules: SeenRules,
    /// Packets beyond its limit of connections that each VM's rules had dropped when they were looked at.
    pub refused: Mutex<HashMap<Uid, u64>>,
    /// What VMs on bridges were refused.
    pub refusals: Refusals,
    /// How many entries of the host's connection tracking table each address has.
    pub entries: Fresh<HashMap<Ipv4Addr, u32>>,
    /// What of the host its rules were made for.
    pub sized: Mutex<Option<Sized>>,
    /// The foreign chains that forwarded packets come to.
    pub forward_chains: Arc<ForwardChains>,
    /// The host's tables are to be read whole at the next look: at the start, and at every resync.
    pub whole_tables: AtomicBool,
    /// The requirements that the host's rules last met when they were read back, and whether they are known to be in place.
    pub enforcement: Enforcement,
    /// Deletes the host's connection tracking entries of VMs that are gone.
    pub flows: Flows,
    /// VMs that the ground did not carry when they were looked at.
    pub turned_away: Mutex<HashSet<Uid>>,
    /// Who waits for the removal of orphans.
    pub removals: Removals,
}

/// The size of the host's connection tracking table, the networks of its links, and the bridges and routing rules that are others'.
type Sized = (
    Option<u32>,
    BTreeSet<Ipv4Network>,
    BTreeSet<String>,
    Vec<RoutingRule>,
);

/// The link of the host namespace that tells of a VM.
pub struct HostLink {
    /// Its name.
    pub link: String,
    /// It was made already.
    pub stands: bool,
}

/// Looks again at what cannot be helped by trying harder.
const SLOW: Duration = Duration::from_secs(30);

/// A VM that has had its lease for less is one that is built.
const YOUNG: Duration = Duration::from_secs(3);

/// The same for the ground: every VM stands on it.
const GROUND_SLOW: Duration = Duration::from_secs(5);

/// How a VM stands, as far as others wait for it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Standing {
    ready: bool,
    settled: bool,
}

impl Standing {
    fn of(world: &store::World, vm: &Vm) -> Self {
        Self {
            ready: world.is_ready(vm),
            settled: world.is_settled(vm),
        }
    }
}

impl Engine {
    /// One run for one key.
    pub async fn run(self: Arc<Self>, key: Key, failures: u32) -> Outcome {
        let outcome = match &key {
            Key::Ground => Box::pin(self.run_ground()).await,
            Key::Group(name) => self.run_group(name).await,
            Key::Vm(uid) => self.run_vm(*uid, failures).await,
            Key::Stray(label) => Box::pin(self.run_stray(label)).await,
        };
        outcome.unwrap_or_else(|error| {
            warn!(?key, %error, "cannot remember what was done");
            Outcome::Failed
        })
    }

    /// Every key that an object stands for: something may have happened anywhere.
    pub fn nudge_everything(&self) {
        self.whole_tables.store(true, Ordering::Relaxed);
        for key in self.keys() {
            self.waker.nudge(key);
        }
    }

    /// The same, where nothing is known to have happened: whatever has goes first.
    pub fn sweep_everything(&self) {
        self.whole_tables.store(true, Ordering::Relaxed);
        for key in self.keys() {
            self.waker.sweep(key);
        }
    }

    /// In which lane a key is looked at: what is there already, and is repaired or gets another policy, does not wait for thousands of
    /// others that are built for the first time or deleted. The kernel reports what was done for a VM in several messages: as long as
    /// these may come, its looks are those of a VM that is built, or each message would have a look of its own before the next VM.
    pub fn lane(&self, key: &Key) -> Lane {
        let now = clock::now();
        let is_bulk = self.store.read(|world| match key {
            Key::Ground => false,
            Key::Stray(_) => true,
            Key::Group(name) => world.vms_of(name).next().is_none(),
            Key::Vm(uid) => world.vm(*uid).is_none_or(|vm| {
                // What was noted when the stage was last True; in each mode one of the two has it.
                let noted = |rung| {
                    world
                        .page(*uid, rung)
                        .is_some_and(|page| page.mark.is_some())
                };
                let lease = world.page(*uid, Rung::Lease);
                let is_young = lease.is_none_or(|page| now < page.condition.since + YOUNG);
                vm.meta.deleting || is_young || !(noted(Rung::Net) || noted(Rung::Firewall))
            }),
        });
        match is_bulk {
            true => Lane::Bulk,
            false => Lane::Prompt,
        }
    }

    /// The same, and backoffs are over: what failed may succeed now.
    pub fn renew_everything(&self) {
        self.whole_tables.store(true, Ordering::Relaxed);
        for key in self.keys() {
            self.waker.renew(key);
        }
    }

    fn keys(&self) -> Vec<Key> {
        self.store.read(|world| {
            let groups = world
                .groups()
                .map(|group| Key::Group(group.meta.name.clone()));
            let vms = world.vms().map(|vm| Key::Vm(vm.meta.uid));
            [Key::Ground].into_iter().chain(groups).chain(vms).collect()
        })
    }

    /// Every VM is Ready or down as it is to be, every group has the VMs it wants, and the ground is firm.
    pub fn all_ready(&self) -> bool {
        self.store.read(|world| {
            let firm = world.ground();
            let firm = firm.is_some_and(|ground| ground.is_firm(&world.footing()));
            firm && world
                .vms()
                .all(|vm| world.is_settled(vm) && world.is_observed(vm))
                && world.groups().all(|group| {
                    let vms = world.vms_of(&group.meta.name).count();
                    !group.meta.deleting && vms == group.size()
                })
        })
    }

    /// By which link of the host namespace a VM is to be known; none when there is no such VM.
    pub fn host_link(&self, uid: Uid) -> Option<HostLink> {
        self.store.read(|world| {
            let vm = world.vm(uid)?;
            let page = world.page(uid, Rung::Net);
            let mark = page.and_then(|page| page.mark.as_ref());
            let known: Option<Connection> = mark.and_then(|mark| serde_json::from_str(mark).ok());
            let link = match (&vm.spec.network, known) {
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
            let stands = page.is_some_and(|page| page.held);
            Some(HostLink { link, stands })
        })
    }

    async fn run_vm(&self, uid: Uid, failures: u32) -> Result<Outcome, store::Error> {
        let Some(vm) = self.store.read(|world| world.vm(uid).cloned()) else {
            self.contests.forget(uid);
            self.seen_rules.forget(uid);
            self.refusals.forget(uid);
            self.enforcement.forget(uid);
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.remove(&uid);
            return Ok(Outcome::Converged);
        };
        let before = self.store.read(|world| Standing::of(world, &vm));
        let outcome = match vm.meta.deleting {
            true => Box::pin(self.descend(&vm)).await?,
            false => Box::pin(self.climb(&vm, failures)).await?,
        };
        let after = self
            .store
            .read(|world| world.vm(uid).map(|vm| Standing::of(world, vm)));
        if after.is_some_and(|after| after.ready) && !before.ready {
            debug!(vm = %vm.meta.name, "ready");
            let object = format!("vm/{}", vm.meta.name);
            self.note(EventType::Normal, &object, "Ready", "every rung is Ready");
        }
        if after != Some(before) && self.group_waits(&vm.group) {
            self.waker.nudge(Key::Group(vm.group.clone()));
        }
        Ok(outcome)
    }

    /// What was noted of a VM's rung when it was last Ready.
    fn mark(&self, uid: Uid, rung: Rung) -> Option<String> {
        self.store
            .read(|world| world.page(uid, rung).and_then(|page| page.mark.clone()))
    }

    async fn set_condition(
        &self,
        vm: &Vm,
        rung: Rung,
        found: (Status, Reason, String),
    ) -> Result<(), store::Error> {
        let now = clock::now();
        let (uid, generation) = (vm.meta.uid, vm.meta.generation);
        self.write(|txn| txn.set_condition(uid, rung, found, generation, now))
            .await
    }

    async fn write<T>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, store::Error>,
    ) -> Result<T, store::Error> {
        self.store.write(change).await
    }

    fn note(&self, kind: EventType, object: &str, reason: &str, message: &str) {
        let events = self.store.events();
        events.note(clock::now(), kind, object, reason, message);
    }

    /// What a VM on a bridge was refused since the last look.
    async fn refused_on_a_bridge(&self, vm: (Uid, Ipv4Addr, bool)) -> Result<Refused, Error> {
        let (home, now) = (&self.hands.home, clock::monotonic());
        self.refusals.look(home, &self.instance, vm, now).await
    }

    /// How many entries of the host's connection tracking table each address has, or had so long ago.
    async fn host_entries(&self, age: Duration) -> Result<Arc<HashMap<Ipv4Addr, u32>>, Error> {
        let read = async || self.hands.home.run(connections::entries).await;
        let found = self.entries.get(age, clock::monotonic(), read).await;
        Ok(found?.1)
    }

    /// Hands for the Net rung in isolated mode, for one run.
    fn net(&self) -> Net {
        Net::new(self.hands.home.clone(), self.hands.netlink.clone())
    }

    /// Hands for the Firewall rung in isolated mode.
    fn firewall(&self) -> Firewall {
        Firewall {
            backend: self.hands.backend.clone(),
            home: self.hands.home.clone(),
        }
    }
}
