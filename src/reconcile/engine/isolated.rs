//! The Net and Firewall stages of an isolated VM: its namespace, and the rules and the forwarding switch in it.
//! Out of scope: the Lease and Vmm stages, which are the same in every mode.

use super::Engine;
use super::step::{Ascent, Ready};
use crate::api::network::{Block, Connection};
use crate::api::rung::Rung;
use crate::api::vm::Vm;
use crate::owner;
use crate::reconcile::{connection, firewall, net};

impl Engine {
    /// Handles the Net and Firewall stages.
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
        if hands.created_netns() {
            // The rule generations of a new namespace start again.
            self.seen_rules.forget(uid);
        }
        let unrecorded = match met {
            Ok(_) => {
                ascent.ready(Rung::Net, Ready::default()).await?;
                None
            }
            // A full run directory does not delay restrictions. The Firewall stage is acquired, so these rules only replace earlier ones.
            Err(stop) if hands.lacks_record() && self.held(uid).contains(&Rung::Firewall) => {
                Some(stop)
            }
            Err(stop) => return Err(stop),
        };
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
            self.note_dropped(vm, refused);
        }
        let ready = Ready {
            rules: seen.generation,
            ..ready
        };
        let ready = ascent.ready(Rung::Firewall, ready).await;
        if let Some(stop) = unrecorded {
            return Err(stop);
        }
        ready?;
        Ok(connection::isolated(
            &self.instance,
            &self.run_dir,
            uid,
            block,
        ))
    }

    /// The desired rules of an isolated VM.
    pub fn rules(&self, vm: &Vm, block: Block, judged: Option<String>) -> firewall::Rules {
        let policy = vm.spec.network.policy().cloned().unwrap_or_default();
        let guest_mac = owner::vm_names(&self.instance, vm.meta.uid).guest_mac;
        let limit = self.limit(vm);
        let ruleset = firewall::rules::compile(&policy, block, guest_mac, limit);
        firewall::Rules {
            digest: firewall::rules::digest(&ruleset),
            ruleset,
            checked_against: judged,
            policy,
            guest: block.guest(),
            limit: limit.all(),
        }
    }
}
