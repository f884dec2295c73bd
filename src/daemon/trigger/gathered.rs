//! What events of a moment are about, until it is told.
//! Not here: which events those are.

use std::collections::{HashMap, HashSet};

use tracing::debug;

use crate::api::meta::Uid;
use crate::api::network::NetworkSpec;
use crate::api::vm::Vm;
use crate::host::rule::Generation;
use crate::reconcile::engine::{Engine, Key};

/// Whom to nudge.
#[derive(Default)]
pub(super) struct Gathered {
    /// These.
    pub(super) keys: HashSet<Key>,
    /// By namespace: the VM whose rules changed, and what the last change left behind.
    pub(super) rules: HashMap<i32, (Uid, Generation)>,
    /// Bridges whose MAC changed: their VMs' filters know it, and the kernel has forgotten the neighbours on them.
    pub(super) moved: HashSet<String>,
    /// Bridges whose addresses changed: filters of VMs that are kept apart know them.
    pub(super) addressed: HashSet<String>,
    /// A TAP has taken another's MAC: somebody is cut off, so nothing more is gathered.
    pub(super) urgent: bool,
    /// Everybody.
    pub(super) everything: bool,
}

impl Gathered {
    pub(super) fn tell(self, engine: &Engine) {
        if self.everything {
            debug!("events were lost: look at everything");
            engine.nudge_everything();
            return;
        }
        let news =
            |(uid, generation): &(Uid, Generation)| !engine.seen_rules.covers(*uid, *generation);
        let by_rules = self.rules.values().copied().filter(news);
        let by_rules = by_rules.map(|(uid, _)| Key::Vm(uid));
        let on_bridges = self.on_bridges(engine).into_iter();
        let on_bridges = on_bridges.map(Key::Vm);
        let keys: HashSet<Key> = by_rules
            .chain(on_bridges)
            .chain(self.keys.iter().cloned())
            .collect();
        for key in keys {
            engine.waker.nudge(key);
        }
    }

    /// Takes in what another one has.
    pub(super) fn merge(&mut self, other: Self) {
        self.keys.extend(other.keys);
        self.rules.extend(other.rules);
        self.moved.extend(other.moved);
        self.addressed.extend(other.addressed);
        self.urgent |= other.urgent;
        self.everything |= other.everything;
    }

    /// The VMs that the events were about; none stands for the host and everything else.
    pub(super) fn vms(&self) -> impl Iterator<Item = Option<Uid>> + '_ {
        let vm = |key: &Key| match key {
            Key::Vm(uid) => Some(*uid),
            _ => None,
        };
        let by_rules = self.rules.values().map(|(uid, _)| Some(*uid));
        let bridges = self.moved.iter().chain(&self.addressed).map(|_| None);
        let all = self.everything.then_some(None);
        self.keys
            .iter()
            .map(vm)
            .chain(by_rules)
            .chain(bridges)
            .chain(all)
    }

    pub(super) fn is_something(&self) -> bool {
        let nothing = self.keys.is_empty()
            && self.rules.is_empty()
            && self.moved.is_empty()
            && self.addressed.is_empty();
        self.everything || !nothing
    }

    /// The VMs that stand otherwise when these bridges do.
    fn on_bridges(&self, engine: &Engine) -> Vec<Uid> {
        if self.moved.is_empty() && self.addressed.is_empty() {
            return Vec::new();
        }
        let concerned = |vm: &&Vm| match &vm.spec.network {
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
                .filter(concerned)
                .map(|vm| vm.meta.uid)
                .collect()
        })
    }
}
