//! The ground's run: what it is to carry no more is said before it is taken away, and whoever was turned away is called back.
//! Out of scope: what the host's rules and bridges are ([`crate::reconcile::ground`]).
//!
//! # Why
//! A group may go and come again while the ground is at work. Were its page to say until the end of the run that it carries the
//! group's bridge, new VMs would be plugged into the bridge that is being deleted, and run beside its successor.

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
use crate::reconcile::ground::{self, Ground, Scope};
use crate::runtime::queue::Outcome;
use crate::store::{self, Change, Contest, Footing};

/// The host's rules take longer: that is told.
const SLOW_STEP: std::time::Duration = std::time::Duration::from_secs(1);

/// What was found of the ground.
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
            footing,
            before: carried.unwrap_or_default(),
        };
        self.keep_unmanaged(&desired).await;
        let scope = match self.whole_tables.swap(false, Ordering::Relaxed) {
            true => Scope::Whole,
            false => Scope::Named,
        };
        let hands = Ground {
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
                .fetch_or(scope == Scope::Whole, Ordering::Relaxed);
        }
        let mut found = describe(&done.result);
        // What follows from another size of the host's tables or another network of its links is no repair.
        let resized = self.is_resized(done.result.as_ref().ok());
        let seen = done.result.as_ref().ok().cloned();
        let warnings = seen.as_ref().map(|seen| seen.warnings.clone());
        let expected = was_firm || was_contested;
        let drift = Some(done.taken).filter(|taken| expected && !resized && !taken.is_empty());
        let of_rules = drift
            .as_ref()
            .is_some_and(|taken| taken.iter().any(|step| ground::restricts(step)));
        let contested = drift.and_then(|taken| self.tell_of_ground_drift(&taken, of_rules));
        // What netlink messages repair is repaired as often as it is reverted, so that few packets are lost.
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
        let footing = desired.footing.clone();
        // Contested rules are left alone for a while, so they are not known to be in place.
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
        // VMs that wait report why.
        if (is_firm && !was_firm) || is_news {
            self.call_back();
        }
        Ok(outcome)
    }

    /// The kernel forgets permanent neighbours and entries of a bridge with its last address, with its MAC, and when it goes down: VMs on
    /// a bridge that was repaired are looked at again, after it was.
    fn look_at_dependents(&self, hands: &Ground) {
        let touched = hands.touched.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Network managers are configured to ignore our links before these are made.
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

    /// The links of ours that there are, or are to be.
    pub async fn our_links(&self, desired: &ground::Desired) -> Result<OurLinks, host::Error> {
        let mut bridges = BTreeSet::new();
        for name in desired.footing.bridges.keys() {
            let found = link::get(&self.hands.netlink, name).await?;
            if found.is_none_or(|found| ground::is_ours(desired, &found)) {
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

    /// What the host's rules and bridges are to be.
    pub fn ground_desired(&self) -> ground::Desired {
        ground::Desired {
            instance: self.instance.clone(),
            footing: self.store.read(crate::store::World::footing),
            before: Footing::default(),
        }
    }

    /// Whether the limits were made for other tables or networks of the host's than when it was last looked at.
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

    /// What is done for the host takes long: an event tells since when. Its page stays, or no VM could be repaired meanwhile.
    async fn told_slow<T>(&self, work: impl Future<Output = T>) -> T {
        let since = clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut work = Box::pin(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(SLOW_STEP) => {}
        }
        let deadline = humantime::format_duration(self.hands.backend.deadline);
        let message = format!(
            "the host's rules and bridges have been worked on since {since}; iptables-restore has a deadline of {deadline}"
        );
        self.note(EventType::Warning, "ground", "Pending", &message);
        work.await
    }

    /// What the ground must carry, and its page, which from now on says of nothing else that it carries it. A VM that was let on
    /// before has a lease by which it is still carried; one that comes later is turned away.
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

    /// The condition, if a conflicting writer keeps reverting the repairs.
    fn tell_of_ground_drift(&self, taken: &[String], of_rules: bool) -> Option<Found> {
        let steps = taken.join("; ");
        let repaired = format!("repaired: {steps}");
        self.note(EventType::Warning, "ground", "Drift", &repaired);
        let rung = match of_rules {
            true => Rung::Firewall,
            false => Rung::Net,
        };
        self.contests
            .count(self.ground_uid(), rung, clock::monotonic())?;
        let why = format!("repaired again and again: a conflicting writer reverts: {steps}");
        Some((Status::False, Reason::Contested, why))
    }

    /// The conflict about what netlink messages repair, until it is over: a new one, or the one that was known.
    fn contest(
        &self,
        hands: &Ground,
        found: Option<Found>,
        known: Option<Contest>,
    ) -> Option<Contest> {
        let Some((status, reason, message)) = found else {
            return known.filter(|_| self.is_contested(&Key::Ground));
        };
        if known.is_none() {
            self.note(EventType::Warning, "ground", &reason.to_string(), &message);
        }
        let touched = hands.touched.lock().unwrap_or_else(PoisonError::into_inner);
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
        owner::uid_of(&self.instance.ground_label())
    }

    /// Whether a conflicting writer reverts what netlink messages repair of this.
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
            carries: desired.footing,
            leaves: match status {
                Status::True => Footing::default(),
                // What could not be taken away is ours to take away the next time.
                Status::False | Status::Unknown => desired.before,
            },
            boot_id: self.hands.boot_id.clone(),
            unenforced: None,
            contested: None,
            warnings: Vec::new(),
            drops: Vec::new(),
        }
    }

    /// The ground does not carry this VM, or it has no address that it could. To be told within the transaction that found it so: the
    /// one that makes the ground firm comes before it or after it, and is followed by [`Engine::call_back`].
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

    /// Hands for the ground.
    pub fn ground(&self) -> Ground {
        Ground {
            home: self.hands.home.clone(),
            netlink: self.hands.netlink.clone(),
            backend: self.hands.backend.clone(),
            scope: Scope::Named,
            forward_chains: self.forward_chains.clone(),
            touched: Default::default(),
        }
    }
}
