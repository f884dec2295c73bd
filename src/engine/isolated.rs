//! The Net and Firewall stages of an isolated VM: its namespace, and the rules and the forwarding switch in it.
//! Out of scope: the Lease and Vmm stages, which are the same in every mode.

use super::Engine;
use super::step::{BringUpRunner, ReadyStage};
use crate::api::network::{Block, Connection};
use crate::api::stage::Stage;
use crate::api::vm::Vm;
use crate::owner;
use crate::reconcile::{connection, firewall, net};

impl Engine {
    /// Handles the Net and Firewall stages.
    pub(super) async fn connect_isolated<A: BringUpRunner>(
        &self,
        vm: &Vm,
        block: Block,
        record: String,
        runner: &mut A,
    ) -> Result<Connection, A::Break> {
        let uid = vm.meta.uid;
        let desired = net::isolated::Desired {
            label: self.instance.vm_label(&vm.meta.name, uid),
            run_dir: self.run_dir.0.clone(),
            slot: Some(net::isolated::Slot {
                block,
                tap_owner: Self::tap_owner(vm, runner.vmm_user(uid)),
                record,
            }),
        };
        let reconciler = self.net();
        let result = runner.run_stage(Stage::Net, &reconciler, &desired).await;
        if reconciler.created_netns() {
            // The rule generations of a new namespace start again.
            self.verified_rules.forget(uid);
        }
        let record_error = match result {
            Ok(_) => {
                runner.ready(Stage::Net, ReadyStage::default()).await?;
                None
            }
            // A full run directory does not delay restrictions. The Firewall stage is acquired, so these rules only replace earlier ones.
            Err(error)
                if reconciler.lacks_record() && self.acquired(uid).contains(&Stage::Firewall) =>
            {
                Some(error)
            }
            Err(stop) => return Err(stop),
        };
        let rules = self.rules(vm, block, self.checkpoint(uid, Stage::Firewall));
        let ready = ReadyStage::with_checkpoint(rules.digest.clone());
        let desired = firewall::isolated::Desired {
            netns: desired.netns(),
            lock: self.run_dir.vm_dir(uid).join(net::LOCK),
            rules: Some(rules),
        };
        let net_reconciler = self.isolated_firewall_reconciler();
        let observed = runner
            .run_stage(Stage::Firewall, &net_reconciler, &desired)
            .await?;
        if let Some(refused) = observed.refused {
            self.report_dropped(vm, refused);
        }
        let ready = ReadyStage {
            rules: observed.generation,
            ..ready
        };
        let ready = runner.ready(Stage::Firewall, ready).await;
        if let Some(stop) = record_error {
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
    pub fn rules(
        &self,
        vm: &Vm,
        block: Block,
        evaluated: Option<String>,
    ) -> firewall::isolated::Rules {
        let policy = vm.spec.network.policy().cloned().unwrap_or_default();
        let guest_mac = owner::vm_names(&self.instance, vm.meta.uid).guest_mac;
        let limit = self.limit(vm);
        let ruleset = firewall::isolated::rules::compile(&policy, block, guest_mac, limit);
        firewall::isolated::Rules {
            digest: firewall::isolated::rules::digest(&ruleset),
            ruleset,
            checked_against: evaluated,
            policy,
            guest: block.guest(),
            limit: limit.all(),
        }
    }
}
