//! The two middle rungs of an isolated VM: its namespace, and the rules and the gate in it.
//! Not here: the lease below them and the VMM above, which are the same in every mode.

use super::Engine;
use super::climb::Reached;
use super::step::Step;
use crate::api::network::Block;
use crate::api::rung::Rung;
use crate::api::vm::Vm;
use crate::owner;
use crate::reconcile::{connection, firewall, net};
use crate::runtime::queue::Outcome;
use crate::store;

impl Engine {
    pub(super) async fn climb_isolated(
        &self,
        vm: &Vm,
        block: Block,
        record: String,
    ) -> Result<Reached, store::Error> {
        let uid = vm.meta.uid;
        let desired = net::Desired {
            label: self.instance.vm_label(&vm.meta.name, uid),
            run_dir: self.run_dir.0.clone(),
            slot: Some(net::Slot {
                block,
                tap_owner: vm.spec.network.tap_owner(),
                record,
            }),
        };
        if let Step::Not(outcome) = self.step(vm, Rung::Net, &self.net(), &desired).await? {
            return Ok(Err(outcome));
        }
        if !self.ready_and_take(vm, Rung::Net, None).await? {
            return Ok(Err(Outcome::Converged));
        }
        let judged = self.store.read(|world| {
            let page = world.page(uid, Rung::Firewall);
            page.and_then(|page| page.mark.clone())
        });
        let rules = self.rules(vm, block, judged);
        let digest = rules.digest.clone();
        let desired = firewall::Desired {
            netns: desired.netns(),
            lock: self.run_dir.vm_dir(uid).join(net::LOCK),
            rules: Some(rules),
        };
        let hands = self.firewall();
        match self.step(vm, Rung::Firewall, &hands, &desired).await? {
            Step::Ready(seen) => self.seen_rules.note(uid, seen.generation),
            Step::Not(outcome) => return Ok(Err(outcome)),
        }
        if !self
            .ready_and_take(vm, Rung::Firewall, Some(digest))
            .await?
        {
            return Ok(Err(Outcome::Converged));
        }
        Ok(Ok(connection::isolated(
            &self.instance,
            &self.run_dir,
            uid,
            block,
        )))
    }

    /// The rules that an isolated VM wants.
    pub fn rules(&self, vm: &Vm, block: Block, judged: Option<String>) -> firewall::Rules {
        let policy = vm.spec.network.policy().cloned().unwrap_or_default();
        let guest_mac = owner::vm_names(&self.instance, vm.meta.uid).guest_mac;
        let ruleset = firewall::rules::compile(&policy, block, guest_mac);
        firewall::Rules {
            digest: firewall::rules::digest(&ruleset),
            ruleset,
            judged,
            policy,
            guest: block.guest(),
        }
    }
}
