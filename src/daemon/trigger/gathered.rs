//! The keys and other data collected from the events of a window, until they are enqueued.
//! Out of scope: the mapping from events.

use std::collections::{HashMap, HashSet};

use tracing::debug;

use super::networks::Networks;
use crate::api::meta::Uid;
use crate::api::network::NetworkSpec;
use crate::api::vm::Vm;
use crate::engine::{Engine, Key};
use crate::host::rule::Generation;
use crate::store::World;

/// What to enqueue.
#[derive(Default)]
pub(super) struct Pending {
    /// Keys that are enqueued in any case.
    pub(super) keys: HashSet<Key>,
    /// By namespace id: the VM with changed rules, and the latest generation of its rules.
    pub(super) rules: HashMap<i32, (Uid, Generation)>,
    /// Bridges with a changed MAC: the filters of their VMs contain it, and the kernel has dropped the neighbours on them.
    pub(super) moved: HashSet<String>,
    /// Bridges with changed addresses: the filters of VMs with `isolate_ports` contain them.
    pub(super) addressed: HashSet<String>,
    /// Networks for which routes were added or deleted: packets to VMs in them may take another route.
    pub(super) routed: Networks,
    /// Objects with changed link settings (netconf).
    pub(super) configured: HashSet<Key>,
    /// A setting of all links changed. The kernel then sets that of each link (`inet_forward_change`), also when the
    /// repair of the host network restores it.
    pub(super) all_configured: bool,
    /// A TAP has the MAC of another port, which is cut off: the keys are enqueued at once.
    pub(super) urgent: bool,
    /// All objects.
    pub(super) everything: bool,
}

impl Pending {
    pub(super) fn enqueue(self, engine: &Engine) {
        if self.everything {
            debug!("events were lost: observing everything");
            engine.enqueue_all();
            return;
        }
        let is_new = |(uid, generation): &(Uid, Generation)| {
            !engine.verified_rules.covers(*uid, *generation)
        };
        let by_rules = self.rules.values().copied().filter(is_new);
        let by_rules = by_rules.map(|(uid, _)| Key::Vm(uid));
        let configured = self
            .configured
            .iter()
            .filter(|_| !self.all_configured)
            .cloned();
        let on_bridges = self.on_bridges(engine).into_iter();
        let on_bridges = on_bridges.map(Key::Vm);
        let keys: HashSet<Key> = by_rules
            .chain(on_bridges)
            .chain(configured)
            .chain(self.in_networks(engine))
            .chain(self.keys.iter().cloned())
            .collect();
        for key in keys {
            engine.waker.enqueue(key);
        }
    }

    /// Adds the content of `other`.
    pub(super) fn merge(&mut self, other: Self) {
        self.keys.extend(other.keys);
        self.rules.extend(other.rules);
        self.moved.extend(other.moved);
        self.addressed.extend(other.addressed);
        self.routed.merge(other.routed);
        self.configured.extend(other.configured);
        self.all_configured |= other.all_configured;
        self.urgent |= other.urgent;
        self.everything |= other.everything;
    }

    /// The VMs that the events were about; `None` is the host and everything else.
    pub(super) fn vms(&self) -> impl Iterator<Item = Option<Uid>> + '_ {
        let vm = |key: &Key| match key {
            Key::Vm(uid) => Some(*uid),
            _ => None,
        };
        let by_rules = self.rules.values().map(|(uid, _)| Some(*uid));
        let bridges = self.moved.iter().chain(&self.addressed).map(|_| None);
        let routes = (!self.routed.is_empty()).then_some(None);
        let all = self.everything.then_some(None);
        let keys = self.keys.iter().chain(&self.configured);
        keys.map(vm)
            .chain(routes)
            .chain(by_rules)
            .chain(bridges)
            .chain(all)
    }

    /// The VMs with addresses in networks that a route was added or deleted for.
    fn in_networks(&self, engine: &Engine) -> Vec<Key> {
        if self.routed.is_empty() {
            return Vec::new();
        }
        let is_in = |vm: &&Vm, world: &World| {
            let ip = world.lease(&vm.meta.name).map(|lease| lease.address.ip());
            let is_cni = matches!(vm.spec.network, NetworkSpec::Cni(_));
            !is_cni && ip.is_some_and(|ip| self.routed.contain(ip))
        };
        engine.store.read(|world| {
            let found = world.vms().filter(|vm| is_in(vm, world));
            found.map(|vm| Key::Vm(vm.meta.uid)).collect()
        })
    }

    pub(super) fn has_content(&self) -> bool {
        let nothing = self.keys.is_empty()
            && self.rules.is_empty()
            && self.moved.is_empty()
            && self.addressed.is_empty()
            && self.routed.is_empty()
            && self.configured.is_empty();
        self.everything || !nothing
    }

    /// The VMs that depend on the changed bridges.
    fn on_bridges(&self, engine: &Engine) -> Vec<Uid> {
        if self.moved.is_empty() && self.addressed.is_empty() {
            return Vec::new();
        }
        let is_affected = |vm: &&Vm| match &vm.spec.network {
            NetworkSpec::Bridge(spec) => {
                let addressed = spec.isolate_ports && self.addressed.contains(&spec.bridge);
                addressed || self.moved.contains(&spec.bridge)
            }
            NetworkSpec::Isolated(_) | NetworkSpec::Cni(_) => false,
        };
        let store = &engine.store;
        store.read(|world| {
            world
                .vms()
                .filter(is_affected)
                .map(|vm| vm.meta.uid)
                .collect()
        })
    }
}
