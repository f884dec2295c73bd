//! Forwards packets that the host's rules restrict only while these rules are known to be in place.
//! Out of scope: the rules ([`crate::reconcile::host_network`]); enabling a VM's forwarding again (the run of the VM).
//!
//! # Why
//! The rules of a namespace and of a TAP restrict one VM, but the host's rules determine what a VM may reach on the host and on other
//! VMs. When these cannot be committed, read or maintained, forwarding is disabled for each VM: `ip_forward` of its namespace, or the
//! TAP. The namespace's own rules and the guest stay unchanged, and the run of the VM enables forwarding when the rules are verified.

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::{Mutex, MutexGuard};
use tracing::warn;

use super::{Engine, Key};
use crate::api::meta::Uid;
use crate::api::network::NetworkSpec;
use crate::api::stage::Stage;
use crate::api::vm::Vm;
use crate::reconcile::firewall::{self, bridge as filter};
use crate::reconcile::{OnHost, host_network, net};
use crate::store::HostRequirements;

/// Namespaces and TAPs for which forwarding is disabled at the same time.
const CONCURRENCY: usize = 16;

/// How long a step for the host's rules may take before it is verified that the rules are in place.
const CHECK_DELAY: Duration = Duration::from_millis(250);

/// Whether the host's rules are known to be in place.
#[derive(Debug, Default)]
pub struct Enforcement {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The requirements that the rules last met when they were read back, and the host that they were made for.
    verified: Option<(HostRequirements, host_network::Observed)>,
    /// They are not known to be in place.
    lost: bool,
    /// VMs for which forwarding was therefore disabled in the namespace or at the TAP.
    forwarding_off: HashSet<Uid>,
}

impl Enforcement {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Whether nothing may be forwarded now.
    pub fn is_lost(&self) -> bool {
        self.state().lost
    }

    /// The rules meet these requirements. Returns whether they were lost before.
    fn verify(&self, requirements: &HostRequirements, observed: host_network::Observed) -> bool {
        let mut state = self.state();
        state.verified = Some((requirements.clone(), observed));
        std::mem::take(&mut state.lost)
    }

    /// Whether this VM's forwarding was disabled by us: that it is enabled again is no repair.
    pub(super) fn is_forwarding_off(&self, uid: Uid) -> bool {
        self.state().forwarding_off.contains(&uid)
    }

    /// The VM's forwarding is enabled again, or the VM is gone.
    pub(super) fn forget(&self, uid: Uid) {
        self.state().forwarding_off.remove(&uid);
    }

    fn set_lost(&self) {
        self.state().lost = true;
    }
}

impl Engine {
    /// Records that the host's rules meet these requirements, and enqueues VMs with disabled forwarding.
    pub(super) fn rules_verified(
        &self,
        requirements: &HostRequirements,
        observed: host_network::Observed,
    ) {
        if self.enforcement.verify(requirements, observed) {
            for vm in self.restricted() {
                self.waker.enqueue_fresh(Key::Vm(vm.meta.uid));
            }
        }
    }

    /// Works on the host's rules. When that takes long, forwarding is disabled for the VMs that they restrict, unless the rules are still
    /// in place.
    pub(super) async fn with_enforcement_check<T>(
        &self,
        desired: &host_network::Desired,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = Box::pin(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(CHECK_DELAY) => {}
        }
        let guard = async {
            // After a restart nothing is verified yet, and VMs of the earlier process may have forwarding enabled.
            let may_forward =
                self.enforcement.state().verified.is_some() || !self.restricted().is_empty();
            if may_forward && !self.rules_in_place(desired).await {
                self.disable_restricted_forwarding().await;
            }
        };
        futures::join!(work, guard).0
    }

    /// Observes whether the rules are in place for the requirements that were met before.
    pub(super) async fn rules_in_place(&self, desired: &host_network::Desired) -> bool {
        // Read again after an error: a read that coincides with another writer's change may fail once.
        let reconciler = host_network::HostNetwork {
            scope: host_network::Scope::NamedOnly,
            ..self.host_network_reconciler()
        };
        let result = match reconciler.observe(desired).await {
            Ok(seen) => Ok(seen),
            Err(_) => reconciler.observe(desired).await,
        };
        let Ok(observed) = result else {
            return false;
        };
        if host_network::enforces(desired, &observed) {
            return true;
        }
        let Some((requirements, host)) = self.enforcement.state().verified.clone() else {
            return false;
        };
        let before = host_network::Desired {
            requirements,
            ..desired.clone()
        };
        // The desired rules depend on the host, too: a new network of the host does not invalidate the rules that are in place.
        let ruleset = observed.ruleset;
        host_network::enforces(&before, &host_network::Observed { ruleset, ..host })
    }

    /// Disables forwarding for all VMs that the host's rules restrict.
    pub(super) async fn disable_restricted_forwarding(&self) {
        self.enforcement.set_lost();
        let all = futures::stream::iter(self.restricted());
        all.for_each_concurrent(CONCURRENCY, |vm| async move {
            self.disable_forwarding(&vm).await
        })
        .await;
    }

    fn restricted(&self) -> Vec<Vm> {
        self.store.read(|world| {
            let is_restricted_and_acquired = |vm: &&Vm| {
                let status = world.status(vm.meta.uid, Stage::Firewall);
                let is_restricted = !matches!(vm.spec.network, NetworkSpec::Cni(_));
                is_restricted && status.is_some_and(|status| status.acquired)
            };
            world
                .vms()
                .filter(is_restricted_and_acquired)
                .cloned()
                .collect()
        })
    }

    /// Disables forwarding for one VM, in its namespace or at its TAP.
    pub(super) async fn disable_forwarding(&self, vm: &Vm) {
        let uid = vm.meta.uid;
        self.enforcement.state().forwarding_off.insert(uid);
        let label = self.instance.vm_label(&vm.meta.name, uid);
        let result = match &vm.spec.network {
            NetworkSpec::Isolated(_) => {
                let desired = firewall::isolated::Desired {
                    netns: net::isolated::Desired {
                        label,
                        run_dir: self.run_dir.0.clone(),
                        slot: None,
                    }
                    .netns(),
                    lock: self.run_dir.vm_dir(uid).join(net::LOCK),
                    rules: None,
                };
                let done = self
                    .converge(&self.isolated_firewall_reconciler(), &desired, &[])
                    .await;
                done.result.map(drop)
            }
            NetworkSpec::Bridge(spec) => {
                let desired = filter::Desired {
                    label,
                    tap: spec.tap(vm.index),
                    allowed: None,
                    last_verified: None,
                };
                let done = self
                    .converge(&self.bridge_firewall_reconciler(), &desired, &[])
                    .await;
                done.result.map(drop)
            }
            NetworkSpec::Cni(_) => Ok(()),
        };
        if let Err(error) = result {
            warn!(vm = %vm.meta.name, %error, "cannot disable its forwarding");
        }
    }
}
