//! The ground's run: the host's own rules, what became of them, and who has waited for them.
//! Not here: which rules ([`super::super::ground`]).

use super::step::describe;
use super::{Engine, GROUND_SLOW, Key};
use crate::api::condition::{Condition, Reason, Status};
use crate::api::event::EventType;
use crate::api::meta::Uid;
use crate::api::rung::Rung;
use crate::api::vm::Vm;
use crate::clock;
use crate::owner;
use crate::reconcile::ground::{self, Ground};
use crate::runtime::queue::Outcome;
use crate::store::{self, Footing};

/// What a run has found of the ground.
struct Finding {
    status: Status,
    reason: Reason,
    message: String,
}

impl Finding {
    fn is_firm(&self) -> bool {
        self.status == Status::True
    }
}

impl Engine {
    pub(super) async fn run_ground(&self) -> Result<Outcome, store::Error> {
        let footing = self.store.read(store::World::footing);
        let before = self.store.read(|world| world.ground().cloned());
        let was_firm = before.as_ref().is_some_and(|page| page.is_firm(&footing));
        let carried = before.as_ref().map(|page| page.carries.clone());
        let desired = ground::Desired {
            instance: self.instance.clone(),
            footing: footing.clone(),
            before: carried.unwrap_or_default(),
        };
        let done = self.converge(&self.ground(), &desired).await;
        let (status, reason, message) = describe(&done.result);
        let found = Finding {
            status,
            reason,
            message,
        };
        let repaired = was_firm && !done.taken.is_empty();
        let contested = repaired
            .then(|| self.repaired_ground(&done.taken))
            .flatten();
        let outcome = match (found.is_firm(), &contested) {
            (_, Some(_)) => Outcome::Shun(GROUND_SLOW),
            (true, None) => Outcome::Converged,
            (false, None) => Outcome::Failed,
        };
        let found = contested.unwrap_or(found);
        if found.status == Status::False {
            self.note(
                EventType::Warning,
                "ground",
                &found.reason.to_string(),
                &found.message,
            );
        }
        let firm = found.is_firm();
        let carries = match firm {
            true => footing,
            // What could not be taken away is ours to take away the next time.
            false => footing.and_bridges_of(&desired.before),
        };
        let page = self.ground_page(found, carries, before.as_ref());
        self.write(|txn| txn.put_ground(page)).await?;
        if firm && !was_firm {
            self.nudge_waiting_vms();
        }
        Ok(outcome)
    }

    /// Somebody had changed it. What is found then, if somebody does so again and again.
    fn repaired_ground(&self, taken: &[String]) -> Option<Finding> {
        let steps = taken.join("; ");
        self.note(
            EventType::Warning,
            "ground",
            "Drift",
            &format!("repaired: {steps}"),
        );
        let uid = owner::uid_of(&self.instance.ground_label());
        self.contests
            .count(uid, Rung::Firewall, clock::monotonic())
            .map(|_| Finding {
                status: Status::False,
                reason: Reason::Contested,
                message: format!(
                    "repaired again and again: somebody wants the opposite of: {steps}"
                ),
            })
    }

    fn ground_page(
        &self,
        found: Finding,
        carries: Footing,
        before: Option<&store::Ground>,
    ) -> store::Ground {
        let same = before.filter(|page| page.condition.status == found.status);
        store::Ground {
            condition: Condition {
                since: same.map_or_else(clock::now, |page| page.condition.since),
                status: found.status,
                reason: found.reason,
                message: found.message,
                observed_generation: 0,
            },
            carries,
            boot_id: self.hands.boot_id.clone(),
        }
    }

    fn nudge_waiting_vms(&self) {
        let waiting: Vec<Uid> = self.store.read(|world| {
            let waits = |vm: &&Vm| {
                [Rung::Net, Rung::Firewall].into_iter().any(|rung| {
                    let page = world.page(vm.meta.uid, rung);
                    !page.is_some_and(|page| page.condition.is_true_at(vm.meta.generation))
                })
            };
            world.vms().filter(waits).map(|vm| vm.meta.uid).collect()
        });
        for uid in waiting {
            self.waker.nudge(Key::Vm(uid));
        }
    }

    /// Hands for the ground.
    pub fn ground(&self) -> Ground {
        Ground {
            home: self.hands.home.clone(),
            netlink: self.hands.netlink.clone(),
            backend: self.hands.backend.clone(),
        }
    }
}
