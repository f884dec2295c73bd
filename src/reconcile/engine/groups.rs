//! Runs a group: its VMs and leases, why it is blocked, and preflight checks of replacements.
//! Out of scope: which VMs a group has ([`super::super::group`]); their bring-up and teardown (`climb`, `descend`).

use std::sync::PoisonError;

use tracing::warn;

use super::{Engine, SLOW};
use crate::api::condition::Reason;
use crate::api::event::EventType;
use crate::api::meta::Name;
use crate::api::network::Connection;
use crate::api::rung::Rung;
use crate::api::vm::{Vm, VmSpec};
use crate::clock;
use crate::host::link;
use crate::reconcile::group::{self, Fitness, Hindrance, HostUse, Progress};
use crate::runtime::queue::Outcome;
use crate::store;

impl Engine {
    /// Applies a group's spec to its VMs before any of them is run.
    pub async fn give_to_vms(&self, group: &Name) {
        if let Err(error) = self.run_group(group).await {
            warn!(%group, %error, "the spec of a restricted group is not applied to its VMs yet");
        }
    }

    /// Claims on the host the ranges that groups chose in an earlier run of the daemon, before any group chooses one. `whole`: the state
    /// is complete, so that claims of no group can be released.
    pub async fn hold_claims(&self, whole: bool) -> Result<(), group::Error> {
        let links = link::list(&self.hands.netlink).await?;
        self.claims.reap(&links).await?;
        let stored = self.store.read(group::needed);
        self.claims.hold_stored(stored).await?;
        match whole {
            true => self.claims.release_unused(&self.store).await,
            false => self.claims.keep_all(),
        }
        Ok(())
    }

    pub(super) async fn run_group(&self, name: &Name) -> Result<Outcome, store::Error> {
        let host_use = HostUse {
            netlink: &self.hands.netlink,
            instance: &self.instance,
        };
        let mut fitness = Fitness::default();
        let done = loop {
            let (store, now) = (&self.store, clock::now());
            let done = group::reconcile(store, &self.claims, &host_use, name, &fitness, now).await;
            match done {
                Ok(Progress::Asks(question)) => {
                    let found = self.fits(&question.vm, &question.wanted).await;
                    fitness.note(*question, found);
                }
                done => break done,
            }
        };
        Ok(match done {
            Ok(Progress::Done) => {
                self.group_rests(name, Waits::No, None);
                Outcome::Converged
            }
            Ok(Progress::Waiting | Progress::Asks(_)) => {
                self.group_rests(name, Waits::Yes, None);
                Outcome::Converged
            }
            Ok(Progress::Held(held)) => {
                self.group_rests(name, Waits::Yes, Some(Hindrance::Unfit(held)));
                Outcome::After(SLOW)
            }
            Err(group::Error::Store(error)) => return Err(error),
            Err(error) => {
                let hindrance = Hindrance::NoRange(error.to_string());
                self.group_rests(name, Waits::AsBefore, Some(hindrance));
                Outcome::Failed
            }
        })
    }

    /// Records an event if the group is blocked for a new reason, and stores whether it waits for its VMs.
    fn group_rests(&self, name: &Name, waits: Waits, hindrance: Option<Hindrance>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waits {
            Waits::Yes => drop(waiting.insert(name.clone())),
            Waits::No => drop(waiting.remove(name)),
            Waits::AsBefore => {}
        }
        drop(waiting);
        let mut hindrances = self
            .hindrances
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = match &hindrance {
            Some(hindrance) => hindrances.insert(name.clone(), hindrance.clone()),
            None => hindrances.remove(name),
        };
        drop(hindrances);
        if let Some(hindrance) = hindrance.filter(|now| before.as_ref() != Some(now)) {
            let reason = match hindrance {
                Hindrance::NoRange(_) => "RangeUnavailable",
                Hindrance::Unfit(_) => "NotReplaced",
            };
            let object = format!("hostgroup/{name}");
            self.note(EventType::Warning, &object, reason, &hindrance.words());
        }
    }

    pub(super) fn group_waits(&self, group: &Name) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.contains(group)
    }

    /// Why a group is blocked, apart from the state of its VMs.
    pub fn hindrance(&self, group: &Name) -> Option<Hindrance> {
        let hindrances = self
            .hindrances
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        hindrances.get(group).cloned()
    }

    /// Why a VM that should be replaced is not. None: it should not be, or nothing blocks it.
    pub fn why_not_replaced(&self, vm: &Vm) -> Option<String> {
        let hindrances = self
            .hindrances
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let why = hindrances.get(&vm.group)?.of_vm(&vm.meta.name);
        why.map(str::to_owned)
    }

    /// Checks whether this host can run `wanted` in place of an existing VM.
    ///
    /// # Errors
    /// A message for users: why it cannot.
    pub async fn fits(&self, vm: &Vm, wanted: &VmSpec) -> Result<(), String> {
        let uid = vm.meta.uid;
        let reason = self.store.read(|world| {
            let page = world.page(uid, Rung::Vmm);
            page.map(|page| page.condition.reason)
        });
        if reason == Some(Reason::Invalid) {
            // The existing VM cannot run either.
            return Ok(());
        }
        let label = self.instance.vm_label(&vm.meta.name, uid);
        let mark = self.mark(uid, Rung::Net);
        let connection: Option<Connection> = mark.and_then(|mark| serde_json::from_str(&mark).ok());
        let connection = connection.filter(|_| vm.spec.network.mode() == wanted.network.mode());
        self.processes
            .fits(wanted, &vm.meta.name, &label, connection.as_ref())
            .await
    }
}

/// Whether a group is enqueued when one of its VMs becomes Ready or is removed.
#[derive(Clone, Copy)]
enum Waits {
    Yes,
    No,
    AsBefore,
}
