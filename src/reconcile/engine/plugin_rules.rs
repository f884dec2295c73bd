//! Rules of CNI plugins that somebody else has removed: when the host's rules change, those of a few VMs are looked for.
//! Out of scope: making them anew; the VM's Net stage does, when CHECK and its own look find them missing.
//!
//! # Why
//! Who empties the tables of others (`firewall-cmd --reload`, `nft flush ruleset`) cuts off every CNI VM at once, and CHECK comes with
//! the resync only, minutes later. A flush takes all rules; so the rules of three VMs of a network stand for those of all, and
//! the look costs the same however many VMs there are.

use std::collections::{BTreeMap, HashSet};
use std::sync::PoisonError;

use tracing::{info, warn};

use super::{Engine, Key};
use crate::api::meta::Uid;
use crate::api::network::NetworkSpec;
use crate::api::rung::Rung;
use crate::host::rule::{Ruleset, TableName};
use crate::reconcile::net::cni;

/// VMs of a network that are looked at.
const WITNESSES: usize = 3;

/// The chain of the firewall plugin, which all attachments share.
const SHARED: &str = "CNI-FORWARD";

/// A chain by its table and name.
pub(super) type ChainName = (TableName, String);

impl Engine {
    /// The VMs of CNI networks are asked about again if rules that their plugins made are gone.
    pub(super) async fn look_for_plugin_rules(&self) {
        let (all, wanted) = self.witnesses();
        if wanted.is_empty() {
            return;
        }
        let (backend, asked) = (self.hands.backend.clone(), wanted.clone());
        let read = self
            .hands
            .home
            .run(move || backend.read_named(&asked))
            .await;
        let now = match read {
            Ok(rules) => filled(&rules, &wanted),
            Err(error) => {
                warn!(%error, "cannot look for the rules of CNI plugins");
                return;
            }
        };
        let before = self.note_plugin_rules(now.clone());
        let still_asked = wanted.iter().filter(|chain| before.contains(*chain));
        if !is_lost(still_asked, &now) {
            return;
        }
        info!("rules of CNI plugins are gone: the plugins are asked about every VM");
        for uid in all {
            self.check_again(uid);
            self.waker.nudge(Key::Vm(uid));
        }
    }

    /// What was noted before.
    fn note_plugin_rules(&self, now: HashSet<ChainName>) -> HashSet<ChainName> {
        let known = self.plugin_rules.lock();
        std::mem::replace(&mut *known.unwrap_or_else(PoisonError::into_inner), now)
    }

    /// All CNI VMs that are connected, and the chains to look for.
    fn witnesses(&self) -> (Vec<Uid>, Vec<ChainName>) {
        let mut networks: BTreeMap<String, Vec<Uid>> = BTreeMap::new();
        self.store.read(|world| {
            for vm in world.vms().filter(|vm| !vm.meta.deleting) {
                let uid = vm.meta.uid;
                let page = world.page(uid, Rung::Net);
                let is_connected = page.is_some_and(|page| page.held && page.mark.is_some());
                if let (NetworkSpec::Cni(spec), true) = (&vm.spec.network, is_connected) {
                    let name = spec.network_name.clone();
                    networks.entry(name).or_default().push(uid);
                }
            }
        });
        let mut chains = Vec::new();
        for (network, vms) in &networks {
            let witnesses = vms.iter().take(WITNESSES);
            chains.extend(witnesses.map(|uid| {
                let container = self.instance.container_id(*uid);
                (TableName::Nat, cni::masquerade_chain(network, &container))
            }));
        }
        if !chains.is_empty() {
            chains.push((TableName::Filter, SHARED.to_owned()));
        }
        (networks.into_values().flatten().collect(), chains)
    }
}

/// Those of the chains that have rules.
fn filled(rules: &Ruleset, wanted: &[ChainName]) -> HashSet<ChainName> {
    let has_rules = |(table, name): &&ChainName| {
        let mut tables = rules.tables().iter().filter(|found| found.name == *table);
        tables.any(|found| {
            let mut chains = found.chains.iter();
            chains.any(|chain| chain.name == *name && !chain.rules.is_empty())
        })
    };
    wanted.iter().filter(has_rules).cloned().collect()
}

/// Of a table, all chains that were there are gone. One that is made anew has none for a moment.
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
        let shared = (TableName::Filter, SHARED.to_owned());
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
