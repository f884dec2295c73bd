//! Runs the host network: stores which requirements it no longer meets before it removes anything, and enqueues VMs that wait for it.
//! Out of scope: the host's rules and bridges themselves ([`crate::reconcile::ground`]).
//!
//! # Why
//! A group may be deleted and created again during a run. If the stored status listed the group's bridge until the end of the run, new
//! VMs would be attached to the bridge that is being deleted, and would not be on the bridge that replaces it.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use tracing::{debug, warn};

use super::step::describe;
use super::{Engine, GROUND_SLOW, Key};
use crate::api::condition::{Condition, Reason, Status};
use crate::api::event::EventType;
use crate::api::meta::Uid;
use crate::api::network::NetworkSpec;
use crate::api::rung::Rung;
use crate::api::vm::Vm;
use crate::clock;
use crate::host::{self, link};
use crate::owner;
use crate::reconcile::contest::CALM;
use crate::reconcile::ground::unmanaged::{self, OurLinks};
use crate::reconcile::ground::{self, HostNetwork, Scope};
use crate::runtime::queue::Outcome;
use crate::store::{self, Change, Contest, Footing};

/// Work on the host's rules that takes longer is reported.
const SLOW_STEP: std::time::Duration = std::time::Duration::from_secs(1);

/// Status, reason and message of the host network's condition.
type Found = (Status, Reason, String);

impl Engine {
    pub(super) async fn run_ground(&self) -> Result<Outcome, store::Error> {
        let (footing, before) = self.let_go().await?;
        let was_firm = before.as_ref().is_some_and(|g| g.is_firm(&footing));
        let was_contested = before.as_ref().is_some_and(|ground| {
            ground.condition.reason == Reason::Contested && ground.carries == footing
        });
        let carried = before.as_ref().map(|ground| {
            let carried = ground.carries.clone();
            carried.and_bridges_of(&ground.leaves)
        });
        let desired = ground::Desired {
            instance: self.instance.clone(),
            requirements: footing,
            previous: carried.unwrap_or_default(),
        };
        self.keep_unmanaged(&desired).await;
        let scope = match self.whole_tables.swap(false, Ordering::Relaxed) {
            true => Scope::All,
            false => Scope::Named,
        };
        let hands = HostNetwork {
            scope,
            ..self.ground()
        };
        let done = self
            .told_slow(
                self.unless_unsure(&desired, self.converge(&hands, &desired, &[Change::Ground])),
            )
            .await;
        if done.result.is_err() {
            self.whole_tables
                .fetch_or(scope == Scope::All, Ordering::Relaxed);
        }
        let mut found = describe(&done.result);
        // Steps after a change of the host's table sizes or of its links' networks are not repairs.
        let resized = self.is_resized(done.result.as_ref().ok());
        let seen = done.result.as_ref().ok().cloned();
        let warnings = seen.as_ref().map(|seen| seen.warnings.clone());
        let expected = was_firm || was_contested;
        let drift = Some(done.taken).filter(|taken| expected && !resized && !taken.is_empty());
        let of_rules = drift
            .as_ref()
            .is_some_and(|taken| taken.iter().any(|step| ground::restricts(step)));
        let contested = drift.and_then(|taken| self.tell_of_ground_drift(&taken, of_rules));
        // Repairs by netlink messages are made as often as they are reverted, so that few packets are lost.
        let (contested, contest) = match of_rules || found.0 != Status::True {
            true => (contested, None),
            false => {
                let known = before.as_ref().and_then(|page| page.contested.clone());
                (None, self.contest(&hands, contested, known))
            }
        };
        let outcome = match (&contested, found.0) {
            (Some(_), _) => Outcome::Shun(GROUND_SLOW),
            (None, Status::True) if contest.is_some() => Outcome::After(CALM),
            (None, Status::True) => Outcome::Converged,
            (None, _) => Outcome::Failed,
        };
        found = contested.unwrap_or(found);
        if found.0 == Status::False {
            self.note(EventType::Warning, "ground", &found.1.to_string(), &found.2);
        }
        let is_firm = found.0 == Status::True;
        let footing = desired.requirements.clone();
        // Contested rules are not repaired during the delay, so they are not known to be in place.
        let is_lost = !is_firm
            && (found.1 == Reason::Contested && of_rules || !self.still_enforces(&desired).await);
        if is_lost {
            self.shut_restricted().await;
        }
        let was_lost = before
            .as_ref()
            .is_some_and(|page| page.unenforced.is_some());
        if is_lost && !was_lost {
            let message = format!(
                "forwarding is disabled for all isolated and bridge VMs: {}",
                found.2
            );
            self.note(EventType::Warning, "ground", "ForwardingDisabled", &message);
        }
        let said = before.as_ref().map(|page| page.condition.message.clone());
        let is_news = said.as_ref() != Some(&found.2);
        let mut page = self.ground_page(found, desired, before.as_ref());
        page.contested = contest;
        page.unenforced = is_lost.then(|| page.condition.clone());
        let known = before.map(|page| (page.warnings, page.drops));
        let drops = seen.as_ref().and_then(|seen| seen.drops.clone());
        let drops = drops.map(|all| all.into_iter().map(|drop| (drop.range, drop.message)));
        let (known, known_drops) = known.unzip();
        page.warnings = warnings.or(known).unwrap_or_default();
        page.drops = drops
            .map(Iterator::collect)
            .or(known_drops)
            .unwrap_or_default();
        self.write(|txn| txn.put_ground(page)).await?;
        if let Some(seen) = seen.filter(|_| is_firm) {
            self.enforced(&footing, seen);
        }
        self.look_at_dependents(&hands);
        self.look_for_plugin_rules().await;
        // VMs that wait report the new message.
        if (is_firm && !was_firm) || is_news {
            self.call_back();
        }
        Ok(outcome)
    }

    /// Enqueues the VMs on a bridge that was repaired. The kernel deletes permanent neighbour and forwarding entries of a bridge when its
    /// last address is removed, its MAC changes, or it is set down.
    fn look_at_dependents(&self, hands: &HostNetwork) {
        let touched = hands
            .touched_bridges
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if touched.is_empty() {
            return;
        }
        let is_on = |vm: &&Vm| match &vm.spec.network {
            NetworkSpec::Bridge(spec) => touched.contains(&Some(spec.bridge.clone())),
            NetworkSpec::Isolated(_) | NetworkSpec::Cni(_) => false,
        };
        let vms = self.store.read(|world| {
            let on_them = world.vms().filter(is_on);
            on_them.map(|vm| vm.meta.uid).collect::<Vec<_>>()
        });
        for uid in vms {
            self.waker.nudge(Key::Vm(uid));
        }
    }

    /// Configures network managers to ignore our links before these are created.
    async fn keep_unmanaged(&self, desired: &ground::Desired) {
        let links = self.our_links(desired).await;
        let written = match links {
            Ok(links) => unmanaged::write_unmanaged(&self.hands.home, &links).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(written) => {
                for path in written {
                    debug!(path = %path.display(), "configured network managers to ignore our links");
                }
            }
            Err(error) => warn!(%error, "cannot configure network managers to ignore our links"),
        }
    }

    /// Our links that exist or are desired.
    pub async fn our_links(&self, desired: &ground::Desired) -> Result<OurLinks, host::Error> {
        let mut bridges = BTreeSet::new();
        for name in desired.requirements.bridges.keys() {
            let found = link::get(&self.hands.netlink, name).await?;
            if found.is_none_or(|found| ground::is_managed(desired, &found)) {
                bridges.insert(name.clone());
            }
        }
        let tap_prefix = |network: &NetworkSpec| match network {
            NetworkSpec::Bridge(spec) => Some(spec.tap_prefix.clone()),
            NetworkSpec::Isolated(_) | NetworkSpec::Cni(_) => None,
        };
        let tap_prefixes = self.store.read(|world| {
            let groups = world.groups().map(|group| &group.spec.template.network);
            let vms = world.vms().map(|vm| &vm.spec.network);
            groups.chain(vms).filter_map(tap_prefix).collect()
        });
        Ok(OurLinks {
            veth_prefix: self.instance.link_prefix(),
            bridges,
            tap_prefixes,
        })
    }

    /// The desired state of the host's rules and bridges.
    pub fn ground_desired(&self) -> ground::Desired {
        ground::Desired {
            instance: self.instance.clone(),
            requirements: self.store.read(crate::store::World::footing),
            previous: Footing::default(),
        }
    }

    /// Whether table sizes, networks, foreign bridges or foreign routing rules of the host differ from the previous observation.
    fn is_resized(&self, seen: Option<&ground::Observed>) -> bool {
        let Some(seen) = seen else {
            return false;
        };
        let now = (
            seen.conntrack_max,
            seen.on_link.clone(),
            seen.foreign.clone(),
            seen.foreign_routing(),
        );
        let mut sized = self.sized.lock().unwrap_or_else(PoisonError::into_inner);
        let before = sized.replace(now);
        before.is_some() && before != *sized
    }

    /// Records an event if work on the host network takes long. Its stored status stays, or no VM could be repaired meanwhile.
    async fn told_slow<T>(&self, work: impl Future<Output = T>) -> T {
        let since = clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut work = Box::pin(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(SLOW_STEP) => {}
        }
        let deadline = humantime::format_duration(self.hands.backend.timeout);
        let message = format!(
            "reconciling the host's rules and bridges since {since}; the deadline of iptables-restore is {deadline}"
        );
        self.note(EventType::Warning, "ground", "Pending", &message);
        work.await
    }

    /// Returns the requirements and the stored status, after requirements that are no longer needed were removed from the status. A VM
    /// that was admitted before has a lease, which is a requirement; a later VM waits.
    async fn let_go(&self) -> Result<(Footing, Option<store::Ground>), store::Error> {
        let (footing, page) = self
            .store
            .read(|world| (world.footing(), world.ground().cloned()));
        if page
            .as_ref()
            .is_none_or(|page| page.let_go(&footing).is_none())
        {
            return Ok((footing, page));
        }
        self.write(|txn| {
            let footing = txn.world().footing();
            let page = txn.world().ground().cloned();
            let less = page.as_ref().and_then(|page| page.let_go(&footing));
            if let Some(less) = less.clone() {
                txn.put_ground(less)?;
            }
            Ok((footing, less.or(page)))
        })
        .await
    }

    /// Records a drift event. Returns the condition if a conflicting writer reverts the repairs.
    fn tell_of_ground_drift(&self, taken: &[String], of_rules: bool) -> Option<Found> {
        let steps = taken.join("; ");
        let repaired = format!("differed from the desired state; restored: {steps}");
        self.note(EventType::Warning, "ground", "Drift", &repaired);
        let rung = match of_rules {
            true => Rung::Firewall,
            false => Rung::Net,
        };
        self.contests
            .count(self.ground_uid(), rung, clock::monotonic())?;
        let why = format!("repaired repeatedly: a conflicting writer reverts: {steps}");
        Some((Status::False, Reason::Contested, why))
    }

    /// The conflict about state that is repaired by netlink messages, until it is over: a new one, or the stored one.
    fn contest(
        &self,
        hands: &HostNetwork,
        found: Option<Found>,
        known: Option<Contest>,
    ) -> Option<Contest> {
        let Some((status, reason, message)) = found else {
            return known.filter(|_| self.is_contested(&Key::Ground));
        };
        if known.is_none() {
            self.note(EventType::Warning, "ground", &reason.to_string(), &message);
        }
        let touched = hands
            .touched_bridges
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let of_all = touched.contains(&None);
        let bridges = touched.iter().flatten().filter(|_| !of_all).cloned();
        let bridges: BTreeSet<String> = bridges.collect();
        Some(match known {
            Some(known) if known.bridges.is_empty() || bridges.is_empty() => Contest {
                bridges: BTreeSet::new(),
                ..known
            },
            Some(mut known) => {
                known.bridges.extend(bridges);
                known
            }
            None => Contest {
                condition: Condition {
                    status,
                    reason,
                    message,
                    since: clock::now(),
                    observed_generation: 0,
                },
                bridges,
            },
        })
    }

    fn ground_uid(&self) -> Uid {
        owner::uid_of(&self.instance.host_network_label())
    }

    /// Whether a conflicting writer reverts repairs that are made for this key by netlink messages.
    pub fn is_contested(&self, key: &Key) -> bool {
        let uid = match key {
            Key::Ground => self.ground_uid(),
            Key::Vm(uid) => *uid,
            Key::Group(_) | Key::Stray(_) => return false,
        };
        let lasts = self.contests.lasts(uid, Rung::Net, clock::monotonic());
        lasts.is_some()
    }

    fn ground_page(
        &self,
        (status, reason, message): Found,
        desired: ground::Desired,
        before: Option<&store::Ground>,
    ) -> store::Ground {
        let now = clock::now();
        let since = before
            .filter(|before| before.condition.status == status)
            .map_or(now, |before| before.condition.since);
        store::Ground {
            condition: Condition {
                status,
                reason,
                message,
                since,
                observed_generation: 0,
            },
            carries: desired.requirements,
            leaves: match status {
                Status::True => Footing::default(),
                // The next run removes what could not be removed now.
                Status::False | Status::Unknown => desired.previous,
            },
            boot_id: self.hands.boot_id.clone(),
            unenforced: None,
            contested: None,
            warnings: Vec::new(),
            drops: Vec::new(),
        }
    }

    /// Records that this VM waits for the host network: its requirements are not met, or it has no address. Call this within the
    /// transaction that found this: then a transaction that stores the host network as converged cannot come between, and
    /// [`Engine::call_back`] after it enqueues the VM.
    pub(super) fn turn_away(&self, uid: Uid) {
        let turned_away = self.turned_away.lock();
        turned_away
            .unwrap_or_else(PoisonError::into_inner)
            .insert(uid);
    }

    fn call_back(&self) {
        let turned_away = self.turned_away.lock();
        let waiting = std::mem::take(&mut *turned_away.unwrap_or_else(PoisonError::into_inner));
        for uid in waiting {
            self.waker.nudge(Key::Vm(uid));
        }
    }

    /// The reconciler of the host network.
    pub fn ground(&self) -> HostNetwork {
        HostNetwork {
            home: self.hands.home.clone(),
            netlink: self.hands.netlink.clone(),
            backend: self.hands.backend.clone(),
            scope: Scope::Named,
            forward_chains: self.forward_chains.clone(),
            touched_bridges: Default::default(),
        }
    }
}
