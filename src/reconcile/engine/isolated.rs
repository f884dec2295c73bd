//! The two middle rungs of an isolated VM: its namespace, and the rules and the gate in it.
//! Not here: the lease below them and the VMM above, which are the same in every mode.

use std::sync::PoisonError;

use super::Engine;
use super::step::{Ascent, Ready};
use crate::api::event::EventType;
use crate::api::network::{Block, Connection, NetworkSpec};
use crate::api::rung::Rung;
use crate::api::vm::Vm;
use crate::host::conntrack;
use crate::host::netns::Netns;
use crate::owner;
use crate::reconcile::limits::Limit;
use crate::reconcile::{connection, firewall, net};

impl Engine {
    /// Up the two rungs.
    pub(super) async fn connect_isolated<A: Ascent>(
        &self,
        vm: &Vm,
        block: Block,
        record: String,
        ascent: &mut A,
    ) -> Result<Connection, A::Stop> {
        let uid = vm.meta.uid;
        let desired = net::Desired {
            label: self.instance.vm_label(&vm.meta.name, uid),
            run_dir: self.run_dir.0.clone(),
            slot: Some(net::Slot {
                block,
                tap_owner: self.tap_owner(vm),
                record,
            }),
        };
        let hands = self.net();
        let met = ascent.meet(Rung::Net, &hands, &desired).await;
        if hands.made_netns() {
            // A new one counts its generations from the start.
            self.seen_rules.forget(uid);
        }
        met?;
        ascent.ready(Rung::Net, Ready::default()).await?;
        let rules = self.rules(vm, block, self.mark(uid, Rung::Firewall));
        let ready = Ready::marked(rules.digest.clone());
        let desired = firewall::Desired {
            netns: desired.netns(),
            lock: self.run_dir.vm_dir(uid).join(net::LOCK),
            rules: Some(rules),
        };
        let hands = self.firewall();
        let seen = ascent.meet(Rung::Firewall, &hands, &desired).await?;
        if let Some(refused) = seen.refused {
            self.note_refused(vm, refused);
        }
        let ready = Ready {
            rules: seen.generation,
            ..ready
        };
        ascent.ready(Rung::Firewall, ready).await?;
        Ok(connection::isolated(
            &self.instance,
            &self.run_dir,
            uid,
            block,
        ))
    }

    /// Reports a guest that has run into its limit since the last look. Only looks that happen anyway count.
    fn note_refused(&self, vm: &Vm, refused: u64) {
        let before = {
            let mut seen = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            seen.insert(vm.meta.uid, refused).unwrap_or(0)
        };
        // Rules that were written again count from 0.
        let more = refused.checked_sub(before).unwrap_or(refused);
        if more == 0 {
            return;
        }
        let limit = self.limit(vm).all();
        let message = format!(
            "{more} packets were dropped that would have opened connections beyond the limit of {limit} (max_connections)"
        );
        let object = format!("vm/{}", vm.meta.name);
        self.note(EventType::Warning, &object, "ConnectionLimit", &message);
    }

    /// How many connections a VM may have.
    fn limit(&self, vm: &Vm) -> Limit {
        let own = vm.spec.network.max_connections().map(Limit::of);
        own.unwrap_or_else(|| Limit::share(self.conntrack_max()))
    }

    /// `nf_conntrack_max`, as the host had it when it was last looked at. When that changes, all VMs are looked at again.
    fn conntrack_max(&self) -> Option<u32> {
        let sized = self.sized.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sized.as_ref().map(|(max, ..)| *max);
        drop(sized);
        known.unwrap_or_else(conntrack::max)
    }

    /// What a VM's connections come to, by name, as counters: a question to the kernel. None of a VM without rules of its own.
    pub fn connections(&self, vm: &Vm) -> Vec<(String, u64)> {
        let NetworkSpec::Isolated(_) = &vm.spec.network else {
            return Vec::new();
        };
        let names = owner::vm_names(&self.instance, vm.meta.uid);
        let backend = &self.hands.backend;
        let asked = Netns::open(&self.run_dir.netns(&names)).and_then(|netns| {
            netns.run_here(|| {
                let refused = backend.matched(firewall::rules::ALLOW, firewall::rules::LIMIT)?;
                Ok((conntrack::count()?, refused))
            })
        });
        let Ok((open, refused)) = asked else {
            return Vec::new();
        };
        let counter = |name: &str, count: u64| (format!("connections.{name}"), count);
        vec![
            counter("limit", u64::from(self.limit(vm).all())),
            counter("entries", u64::from(open)),
            counter("refused_packets", refused),
        ]
    }

    /// The rules that an isolated VM wants.
    pub fn rules(&self, vm: &Vm, block: Block, judged: Option<String>) -> firewall::Rules {
        let policy = vm.spec.network.policy().cloned().unwrap_or_default();
        let guest_mac = owner::vm_names(&self.instance, vm.meta.uid).guest_mac;
        let limit = self.limit(vm);
        let ruleset = firewall::rules::compile(&policy, block, guest_mac, limit);
        firewall::Rules {
            digest: firewall::rules::digest(&ruleset),
            ruleset,
            judged,
            policy,
            guest: block.guest(),
            limit: limit.all(),
        }
    }
}
