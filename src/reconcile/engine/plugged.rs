//! The two middle rungs of a CNI VM: what the plugins make, and the redirect and the gate between it and the TAP.
//! Not here: the lease below and the VMM above; how plugins are run.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use tracing::{info, warn};

use super::Engine;
use super::climb::Reached;
use super::descend::{Stuck, emptied};
use super::step::Step;
use crate::api::condition::{Reason, Status};
use crate::api::event::EventType;
use crate::api::lease::{Address, Lease};
use crate::api::meta::Uid;
use crate::api::network::{CniSpec, Connection, NetworkSpec};
use crate::api::rung::Rung;
use crate::api::vm::Vm;
use crate::clock;
use crate::owner::{self, Label, TAP};
use crate::reconcile::firewall::redirect::{self, Join, Redirect};
use crate::reconcile::net::cni::{self, Attach, Checking, Desired, IFNAME, Want};
use crate::runtime::queue::Outcome;
use crate::store::{self, Gate};

/// Of the condition of a VM whose network's configuration is another one than it was connected by.
const CHANGED: &str =
    "the network's configuration has changed since; this VM keeps what it was given";

impl Engine {
    pub(super) async fn climb_plugged(
        &self,
        vm: &Vm,
        spec: &CniSpec,
        record: String,
    ) -> Result<Reached, store::Error> {
        let uid = vm.meta.uid;
        let label = self.instance.vm_label(&vm.meta.name, uid);
        let desired = Desired {
            label: label.clone(),
            run_dir: self.run_dir.0.clone(),
            network: Some(spec.network_name.clone()),
            want: Some(Want {
                tap_owner: spec.tap_owner,
                record,
            }),
        };
        let hands = Attach::new(self.cni.clone(), self.checking(uid));
        let seen = match self.step(vm, Rung::Net, &hands, &desired).await? {
            Step::Ready(seen) => seen,
            Step::Not(outcome) => {
                self.check_again(uid);
                return Ok(Err(outcome));
            }
        };
        let Some(connected) = seen.connection() else {
            return Ok(Err(Outcome::Failed));
        };
        let message = match seen.network_changed() {
            true => CHANGED,
            false => "",
        };
        if !self.note_connection(vm, spec, &connected, message).await? {
            return Ok(Err(Outcome::Converged));
        }
        let join = match seen.chain_made_the_tap() {
            true => Join::Chains,
            false => Join::Ours(IFNAME.to_owned()),
        };
        let desired = redirect::Desired {
            label,
            netns: desired.netns(),
            tap: connected.tap.clone(),
            join: Some(join),
        };
        if let Step::Not(outcome) = self.step(vm, Rung::Firewall, &Redirect, &desired).await? {
            return Ok(Err(outcome));
        }
        if !self.ready_and_take(vm, Rung::Firewall, None).await? {
            return Ok(Err(Outcome::Converged));
        }
        Ok(Ok(connected))
    }

    /// Once after the start and after each resync the plugins are asked, too.
    fn checking(&self, uid: Uid) -> Checking {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        match checked.insert(uid) {
            true => Checking::Once,
            false => Checking::Never,
        }
    }

    /// From the next look at each VM on.
    pub fn ask_plugins_again(&self) {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.clear();
    }

    /// What plugins hold for containers of ours that no VM stands for: attachments in libcni's cache, reservations of
    /// `host-local`.
    pub async fn sweep_plugins(&self) {
        let networks: BTreeSet<String> = self.store.read(|world| {
            let networks = world
                .groups()
                .filter_map(|group| match &group.spec.template.network {
                    NetworkSpec::Cni(spec) => Some(spec.network_name.clone()),
                    NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_) => None,
                });
            networks.collect()
        });
        let networks: Vec<String> = networks.into_iter().collect();
        let living = || {
            self.store
                .read(|world| world.vms().map(|vm| vm.meta.uid).collect())
        };
        let swept = cni::sweep(&self.cni, &self.instance, &living, &networks).await;
        for failure in &swept.failures {
            warn!(
                failure,
                "plugins could not be asked to let go of what nothing wants"
            );
        }
        let count = swept.detached.len() + swept.reservations.len();
        if count > 0 {
            info!(count, "plugins let go of what nothing wants");
            let message = format!("CNI plugins let go of {count} things that no VM has");
            self.note(EventType::Normal, "ground", "GarbageCollected", &message);
        }
    }

    fn check_again(&self, uid: Uid) {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.remove(&uid);
    }

    /// In one transaction: the rung is Ready, what the plugins gave is noted as a lease, the next rung is taken. False: it
    /// cannot be, perhaps because the ground must close that subnet to isolated VMs first.
    async fn note_connection(
        &self,
        vm: &Vm,
        spec: &CniSpec,
        connected: &Connection,
        message: &str,
    ) -> Result<bool, store::Error> {
        let now = clock::now();
        let (uid, generation) = (vm.meta.uid, vm.meta.generation);
        let mark = serde_json::to_string(connected).ok();
        let plugged = ipnetwork::Ipv4Network::new(connected.ip, connected.prefix_len).ok();
        self.write(|txn| {
            let found = (Status::True, Reason::Converged, message.to_owned());
            txn.set_condition(uid, Rung::Net, found, generation, now)?;
            txn.set_mark(uid, Rung::Net, mark)?;
            let address = plugged.map(|plugged| Address::Plugged {
                network: spec.network_name.clone(),
                plugged,
                gateway: connected.gateway,
            });
            let noted = txn
                .world()
                .lease(&vm.meta.name)
                .map(|lease| lease.address.clone());
            if let Some(address) = address.filter(|address| noted.as_ref() != Some(address)) {
                txn.put_lease(Lease {
                    name: vm.meta.name.clone(),
                    group: vm.group.clone(),
                    address,
                    since: now,
                })?;
            }
            Ok(match txn.take_rung(uid, Rung::Firewall, now)? {
                Gate::Open(now) => now.meta.generation == generation,
                Gate::Closed(_) | Gate::Gone => false,
            })
        })
        .await
    }

    pub(super) async fn unplug(&self, label: &Label) -> Result<Vec<String>, Stuck> {
        let desired = Desired {
            label: label.clone(),
            run_dir: self.run_dir.0.clone(),
            network: self.network_of(owner::uid_of(label)),
            want: None,
        };
        let hands = Attach::new(self.cni.clone(), Checking::Never);
        let done = emptied(self.converge(&hands, &desired).await);
        self.check_again(owner::uid_of(label));
        done
    }

    fn network_of(&self, uid: Uid) -> Option<String> {
        self.store.read(|world| match &world.vm(uid)?.spec.network {
            NetworkSpec::Cni(spec) => Some(spec.network_name.clone()),
            NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_) => None,
        })
    }

    pub(super) async fn stop_redirecting(&self, label: &Label) -> Result<Vec<String>, Stuck> {
        let uid = owner::uid_of(label);
        let desired = redirect::Desired {
            label: label.clone(),
            netns: self.run_dir.netns(&owner::names_of(label)),
            tap: self.known_tap(uid).unwrap_or_else(|| TAP.to_owned()),
            join: None,
        };
        emptied(self.converge(&Redirect, &desired).await)
    }

    /// A chain of plugins may have given the TAP a name of its own.
    fn known_tap(&self, uid: Uid) -> Option<String> {
        self.store.read(|world| {
            let mark = world.page(uid, Rung::Net)?.mark.clone()?;
            let known: Connection = serde_json::from_str(&mark).ok()?;
            Some(known.tap)
        })
    }
}
