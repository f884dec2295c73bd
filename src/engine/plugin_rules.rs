//! Detects that another program has removed the rules of CNI plugins: when the host's rules change, the rules of a few VMs are read.
//! Out of scope: restoring the rules; the VM's Net stage does this when CHECK or its own observation finds them missing.
//!
//! # Why
//! A program that flushes all tables (`firewall-cmd --reload`, `nft flush ruleset`) interrupts the network of every CNI VM at once, and
//! CHECK is called at the resync only, minutes later. A flush removes all rules, so the rules of three VMs represent those of their
//! network, and the cost does not depend on the number of VMs.

use std::collections::{BTreeMap, HashSet};

use tracing::{info, warn};

use super::{Engine, Key};
use crate::api::meta::Uid;
use crate::api::network::NetworkSpec;
use crate::api::stage::Stage;
use crate::host::rule::{Ruleset, TableName};
use crate::reconcile::net::cni;

/// How many VMs of a network are observed.
const SAMPLE_SIZE: usize = 3;

/// The chain of the firewall plugin, which all attachments share.
const SHARED_CHAIN: &str = "CNI-FORWARD";

/// A chain by its table and name.
pub(super) type ChainName = (TableName, String);

impl Engine {
    /// Enqueues all VMs of CNI networks, to be observed with CHECK, if rules that their plugins made are gone.
    pub(super) async fn check_plugin_rules(&self) {
        let (all, chains) = self.sample();
        if chains.is_empty() {
            return;
        }
        let (backend, requested) = (self.host.backend.clone(), chains.clone());
        let read = self
            .host
            .host_netns
            .run(move || backend.read_named(&requested))
            .await;
        let now = match read {
            Ok(rules) => with_rules(&rules, &chains),
            Err(error) => {
                warn!(%error, "cannot read the rules of CNI plugins");
                return;
            }
        };
        let before = self.note_plugin_rules(now.clone());
        let still_required = chains.iter().filter(|chain| before.contains(*chain));
        if !is_lost(still_required, &now) {
            return;
        }
        info!("rules of CNI plugins are gone: calling CHECK for every VM");
        for uid in all {
            self.check_again(uid);
            self.waker.enqueue(Key::Vm(uid));
        }
    }

    /// Replaces the chains that had rules, and returns the previous ones.
    fn note_plugin_rules(&self, now: HashSet<ChainName>) -> HashSet<ChainName> {
        let mut known = self.plugin_rules.lock();
        std::mem::replace(&mut *known, now)
    }

    /// All CNI VMs that are connected, and the chains to look for.
    fn sample(&self) -> (Vec<Uid>, Vec<ChainName>) {
        let mut networks: BTreeMap<String, Vec<Uid>> = BTreeMap::new();
        self.store.read(|world| {
            for vm in world.vms().filter(|vm| !vm.meta.deleting) {
                let uid = vm.meta.uid;
                let status = world.status(uid, Stage::Net);
                let is_connected =
                    status.is_some_and(|status| status.acquired && status.checkpoint.is_some());
                if let (NetworkSpec::Cni(spec), true) = (&vm.spec.network, is_connected) {
                    let name = spec.network_name.clone();
                    networks.entry(name).or_default().push(uid);
                }
            }
        });
        let mut chains = Vec::new();
        for (network, vms) in &networks {
            let sample = vms.iter().take(SAMPLE_SIZE);
            chains.extend(sample.map(|uid| {
                let container = self.instance.container_id(*uid);
                (TableName::Nat, cni::masquerade_chain(network, &container))
            }));
        }
        if !chains.is_empty() {
            chains.push((TableName::Filter, SHARED_CHAIN.to_owned()));
        }
        (networks.into_values().flatten().collect(), chains)
    }
}

/// Those of the chains that have rules.
fn with_rules(rules: &Ruleset, required: &[ChainName]) -> HashSet<ChainName> {
    let has_rules = |(table, name): &&ChainName| {
        let mut tables = rules.tables().iter().filter(|found| found.name == *table);
        tables.any(|found| {
            let mut chains = found.chains.iter();
            chains.any(|chain| chain.name == *name && !chain.rules.is_empty())
        })
    };
    required.iter().filter(has_rules).cloned().collect()
}

/// Whether all chains of a table that had rules have none now. A single chain has none for a moment while it is re-created.
fn is_lost<'a>(before: impl Iterator<Item = &'a ChainName>, now: &HashSet<ChainName>) -> bool {
    let mut left: BTreeMap<TableName, usize> = BTreeMap::new();
    for chain in before {
        *left.entry(chain.0).or_default() += usize::from(now.contains(chain));
    }
    left.values().any(|count| *count == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_lost_when_none_of_a_table_is_left() {
        let nat = |name: &str| (TableName::Nat, name.to_owned());
        let shared = (TableName::Filter, SHARED_CHAIN.to_owned());
        let all = [nat("a"), nat("b"), shared.clone()];
        let table: [(&[ChainName], &[ChainName], bool); 6] = [
            (&[], &[], false),
            (&all, &all, false),
            (&all, &all[1..], false),
            (&all, &all[2..], true),
            (&all, &all[..2], true),
            (&all[..1], &[], true),
        ];
        for (before, now, lost) in table {
            let now = now.iter().cloned().collect();
            assert_eq!(is_lost(before.iter(), &now), lost, "{before:?} {now:?}");
        }
    }
}
