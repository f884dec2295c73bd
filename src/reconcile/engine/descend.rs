//! A VM down its ladder: the same plans as on the way up, with nothing desired.
//! Not here: the way up; what no object wants ([`super::stray`]).

use tracing::debug;

use super::Engine;
use super::step::describe;
use crate::api::condition::{Reason, Status};
use crate::api::lease::Address;
use crate::api::network::NetworkSpec;
use crate::api::rung::{LADDER, Rung};
use crate::api::vm::Vm;
use crate::clock;
use crate::owner::{self, Label};
use crate::reconcile::net::port::{self, Remains};
use crate::reconcile::{Convergence, firewall, net};
use crate::runtime::queue::Outcome;
use crate::store;

/// What a VM may have on the host, as far as its mode tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// A namespace of its own, and a veth.
    Isolated,
    /// A TAP on a bridge.
    Bridged {
        tap: String,
        /// The bridge, and the VM's address on it, where known.
        place: Option<(String, std::net::Ipv4Addr)>,
    },
    /// A namespace of its own, and what the plugins made.
    Plugged,
}

/// Why a rung could not be emptied: status, reason and words for its condition.
pub(super) type Stuck = (Status, Reason, String);

impl Engine {
    /// Down: from the top, each rung's desired is nothing.
    pub(super) async fn descend(&self, vm: &Vm) -> Result<Outcome, store::Error> {
        let uid = vm.meta.uid;
        let label = self.instance.vm_label(&vm.meta.name, uid);
        let standing = self.standing(vm);
        for rung in LADDER.into_iter().rev() {
            let held = |world: &store::World| world.page(uid, rung).is_some_and(|page| page.held);
            if !self.store.read(held) {
                continue;
            }
            if let Err(found) = self.take_down(rung, &label, &standing).await {
                self.set_condition(vm, rung, found).await?;
                return Ok(Outcome::Failed);
            }
            let now = clock::now();
            self.write(|txn| txn.leave_rung(uid, rung, now)).await?;
        }
        self.write(|txn| txn.remove_if_free(uid)).await?;
        Ok(Outcome::Converged)
    }

    /// What a VM may have on the host.
    pub(super) fn standing(&self, vm: &Vm) -> Standing {
        match &vm.spec.network {
            NetworkSpec::Isolated(_) => Standing::Isolated,
            NetworkSpec::Cni(_) => Standing::Plugged,
            NetworkSpec::Bridge(spec) => {
                let lease = self.store.read(|world| world.lease(&vm.meta.name).cloned());
                Standing::Bridged {
                    tap: spec.tap(vm.index),
                    place: lease.and_then(|lease| match lease.address {
                        Address::Bridged { bridge, ip, .. } => Some((bridge, ip)),
                        Address::Block { .. } | Address::Plugged { .. } => None,
                    }),
                }
            }
        }
    }

    pub(super) async fn take_down(
        &self,
        rung: Rung,
        label: &Label,
        standing: &Standing,
    ) -> Result<(), Stuck> {
        let taken = match rung {
            Rung::Lease => return Ok(()),
            Rung::Net => self.take_down_net(label, standing).await,
            Rung::Firewall => self.take_down_firewall(label, standing).await,
            Rung::Vmm => {
                self.processes.watch(owner::uid_of(label), None);
                let desired = self.processes.nothing(label);
                emptied(self.converge(&self.processes.rung, &desired).await)
            }
        };
        taken.map(|taken| debug!(%label, %rung, ?taken, "taken down"))
    }

    async fn take_down_net(
        &self,
        label: &Label,
        standing: &Standing,
    ) -> Result<Vec<String>, Stuck> {
        match standing {
            Standing::Isolated => {
                let desired = net::Desired {
                    label: label.clone(),
                    run_dir: self.run_dir.0.clone(),
                    slot: None,
                };
                emptied(self.converge(&self.net(), &desired).await)
            }
            Standing::Bridged { tap, place } => {
                let desired = port::Desired {
                    label: label.clone(),
                    run_dir: self.run_dir.0.clone(),
                    tap: tap.clone(),
                    slot: None,
                    remains: place.clone().map(|(bridge, ip)| Remains { bridge, ip }),
                };
                emptied(self.converge(&self.port(), &desired).await)
            }
            Standing::Plugged => self.unplug(label).await,
        }
    }

    async fn take_down_firewall(
        &self,
        label: &Label,
        standing: &Standing,
    ) -> Result<Vec<String>, Stuck> {
        match standing {
            Standing::Isolated => {
                let desired = firewall::Desired {
                    netns: self.run_dir.netns(&owner::names_of(label)),
                    lock: self.run_dir.vm_dir(owner::uid_of(label)).join(net::LOCK),
                    rules: None,
                };
                emptied(self.converge(&self.firewall(), &desired).await)
            }
            Standing::Bridged { tap, .. } => {
                let desired = firewall::port::Desired {
                    label: label.clone(),
                    tap: tap.clone(),
                    pass: None,
                    before: None,
                };
                emptied(self.converge(&self.gate(), &desired).await)
            }
            Standing::Plugged => self.stop_redirecting(label).await,
        }
    }
}

pub(super) fn emptied<O>(done: Convergence<O>) -> Result<Vec<String>, Stuck> {
    match done.result {
        Ok(_) => Ok(done.taken),
        Err(_) => Err(describe(&done.result)),
    }
}
