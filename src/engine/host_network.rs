//! Runs the host network: stores which requirements it no longer meets before it removes anything, and enqueues VMs that wait for it.
//! Out of scope: the host's rules and bridges themselves ([`crate::reconcile::host_network`]).
//!
//! # Why
//! A group may be deleted and created again during a run. If the stored status listed the group's bridge until the end of the run, new
//! VMs would be attached to the bridge that is being deleted, and would not be on the bridge that replaces it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use tracing::{debug, warn};

use super::step::condition_of;
use super::{Engine, HOST_NETWORK_RETRY, Key};
use crate::api::condition::{Condition, Reason, Status};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::Uid;
use crate::api::network::NetworkSpec;
use crate::api::stage::Stage;
use crate::api::vm::Vm;
use crate::clock;
use crate::engine::conflicting_writer::QUIET_PERIOD;
use crate::host::{self, link};
use crate::owner;
use crate::reconcile::host_network::unmanaged::{self, OurLinks};
use crate::reconcile::host_network::{self, HostNetwork, Scope};
use crate::runtime::queue::Outcome;
use crate::store::{self, Change, ConflictingWriter, HostRequirements};

/// Work on the host's rules that takes longer is reported.
const REPORT_DELAY: std::time::Duration = std::time::Duration::from_secs(1);

/// Status, reason and message of the host network's condition.
type ConditionParts = (Status, Reason, String);

impl Engine {
    pub(super) async fn run_host_network(&self) -> Result<Outcome, store::Error> {
        let (requirements, before) = self.shrink_stored_requirements().await?;
        let was_converged = before
            .as_ref()
            .is_some_and(|g| g.is_converged(&requirements));
        let was_contested = before.as_ref().is_some_and(|status| {
            status.condition.reason == Reason::Contested && status.applied == requirements
        });
        let met_before = before.as_ref().map(|network_status| {
            let met = network_status.applied.clone();
            met.with_bridges_of(&network_status.obsolete)
        });
        let desired = host_network::Desired {
            instance: self.instance.clone(),
            requirements,
            previous: met_before.unwrap_or_default(),
        };
        self.configure_network_managers(&desired).await;
        let scope = match self.read_all_tables.swap(false, Ordering::Relaxed) {
            true => Scope::All,
            false => Scope::Named,
        };
        let reconciler = HostNetwork {
            scope,
            ..self.host_network_reconciler()
        };
        let convergence = self
            .report_slow(self.with_enforcement_check(
                &desired,
                self.converge(&reconciler, &desired, &[Change::HostNetwork]),
            ))
            .await;
        if convergence.result.is_err() {
            self.read_all_tables
                .fetch_or(scope == Scope::All, Ordering::Relaxed);
        }
        let mut condition = condition_of(&convergence.result);
        // Steps after a change of the host's table sizes or of its links' networks are not repairs.
        let resized = self.host_properties_changed(convergence.result.as_ref().ok());
        let observed = convergence.result.as_ref().ok().cloned();
        let warnings = observed.as_ref().map(|seen| seen.warnings.clone());
        let expected = was_converged || was_contested;
        let drift =
            Some(convergence.actions).filter(|taken| expected && !resized && !taken.is_empty());
        let affects_rules = drift
            .as_ref()
            .is_some_and(|actions| actions.iter().any(|step| host_network::restricts(step)));
        let conflict =
            drift.and_then(|taken| self.report_host_network_drift(&taken, affects_rules));
        // Repairs by netlink messages are made as often as they are reverted, so that few packets are lost.
        let (rules_conflict, netlink_conflict) = match affects_rules || condition.0 != Status::True
        {
            true => (conflict, None),
            false => {
                let stored = before
                    .as_ref()
                    .and_then(|status| status.conflicting_writer.clone());
                (None, self.netlink_conflict(&reconciler, conflict, stored))
            }
        };
        let outcome = match (&rules_conflict, condition.0) {
            (Some(_), _) => Outcome::HoldOff(HOST_NETWORK_RETRY),
            (None, Status::True) if netlink_conflict.is_some() => {
                Outcome::RequeueAfter(QUIET_PERIOD)
            }
            (None, Status::True) => Outcome::Converged,
            (None, _) => Outcome::Failed,
        };
        condition = rules_conflict.unwrap_or(condition);
        if condition.0 == Status::False {
            self.record_event(
                EventType::Warning,
                &ObjectRef::Host,
                condition.1,
                &condition.2,
            );
        }
        let is_converged = condition.0 == Status::True;
        let requirements = desired.requirements.clone();
        // Contested rules are not repaired during the delay, so they are not known to be in place.
        let is_lost = !is_converged
            && (condition.1 == Reason::Contested && affects_rules
                || !self.rules_in_place(&desired).await);
        if is_lost {
            self.disable_restricted_forwarding().await;
        }
        let was_lost = before
            .as_ref()
            .is_some_and(|status| status.unenforced.is_some());
        if is_lost && !was_lost {
            let message = format!(
                "forwarding is disabled for all isolated and bridge VMs: {}",
                condition.2
            );
            self.record_event(
                EventType::Warning,
                &ObjectRef::Host,
                EventReason::ForwardingDisabled,
                &message,
            );
        }
        let previous_message = before
            .as_ref()
            .map(|status| status.condition.message.clone());
        let message_changed = previous_message.as_ref() != Some(&condition.2);
        let mut status = self.host_network_status(condition, desired, before.as_ref());
        status.conflicting_writer = netlink_conflict;
        status.unenforced = is_lost.then(|| status.condition.clone());
        let known = before.map(|status| (status.warnings, status.drops));
        let drops = observed.as_ref().and_then(|seen| seen.drops.clone());
        let drops = drops.map(|all| all.into_iter().map(|drop| (drop.range, drop.message)));
        let (stored_warnings, stored_drops) = known.unzip();
        status.warnings = warnings.or(stored_warnings).unwrap_or_default();
        status.drops = drops
            .map(Iterator::collect)
            .or(stored_drops)
            .unwrap_or_default();
        self.write(|txn| txn.put_host_network_status(status))
            .await?;
        if let Some(seen) = observed.filter(|_| is_converged) {
            self.rules_verified(&requirements, seen);
        }
        self.enqueue_dependents(&reconciler);
        self.check_plugin_rules().await;
        // VMs that wait report the new message.
        if (is_converged && !was_converged) || message_changed {
            self.enqueue_waiting();
        }
        Ok(outcome)
    }

    /// Enqueues the VMs on a bridge that was repaired. The kernel deletes permanent neighbour and forwarding entries of a bridge when its
    /// last address is removed, its MAC changes, or it is set down.
    fn enqueue_dependents(&self, reconciler: &HostNetwork) {
        let touched = reconciler.touched_bridges.lock();
        if touched.is_empty() {
            return;
        }
        let is_on_touched_bridge = |vm: &&Vm| match &vm.spec.network {
            NetworkSpec::Bridge(spec) => touched.contains(&Some(spec.bridge.clone())),
            NetworkSpec::Isolated(_) | NetworkSpec::Cni(_) => false,
        };
        let vms = self.store.read(|world| {
            let dependents = world.vms().filter(is_on_touched_bridge);
            dependents.map(|vm| vm.meta.uid).collect::<Vec<_>>()
        });
        for uid in vms {
            self.waker.enqueue(Key::Vm(uid));
        }
    }

    /// Configures network managers to ignore our links before these are created.
    async fn configure_network_managers(&self, desired: &host_network::Desired) {
        let links = self.our_links(desired).await;
        let written = match links {
            Ok(links) => unmanaged::write_unmanaged(&self.host.host_netns, &links).await,
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
    pub async fn our_links(
        &self,
        desired: &host_network::Desired,
    ) -> Result<OurLinks, host::Error> {
        let mut bridges = BTreeSet::new();
        for name in desired.requirements.bridges.keys() {
            let found = link::get(&self.host.netlink, name).await?;
            if found.is_none_or(|found| host_network::is_managed(desired, &found)) {
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
    pub fn desired_host_network(&self) -> host_network::Desired {
        host_network::Desired {
            instance: self.instance.clone(),
            requirements: self.store.read(crate::store::World::host_requirements),
            previous: HostRequirements::default(),
        }
    }

    /// Whether table sizes, networks, foreign bridges or foreign routing rules of the host differ from the previous observation.
    fn host_properties_changed(&self, observed: Option<&host_network::Observed>) -> bool {
        let Some(seen) = observed else {
            return false;
        };
        let now = (
            seen.conntrack_max,
            seen.on_link.clone(),
            seen.foreign.clone(),
            seen.foreign_routing(),
        );
        let mut host_properties = self.host_properties.lock();
        let before = host_properties.replace(now);
        before.is_some() && before != *host_properties
    }

    /// Records an event if work on the host network takes long. Its stored status stays, or no VM could be repaired meanwhile.
    async fn report_slow<T>(&self, work: impl Future<Output = T>) -> T {
        let since = clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut work = Box::pin(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(REPORT_DELAY) => {}
        }
        let deadline = humantime::format_duration(self.host.backend.timeout);
        let message = format!(
            "reconciling the host's rules and bridges since {since}; the deadline of iptables-restore is {deadline}"
        );
        self.record_event(
            EventType::Warning,
            &ObjectRef::Host,
            EventReason::Pending,
            &message,
        );
        work.await
    }

    /// Returns the requirements and the stored status, after requirements that are no longer needed were removed from the status. A VM
    /// that was admitted before has a lease, which is a requirement; a later VM waits.
    async fn shrink_stored_requirements(
        &self,
    ) -> Result<(HostRequirements, Option<store::HostNetworkStatus>), store::Error> {
        let (requirements, status) = self.store.read(|world| {
            (
                world.host_requirements(),
                world.host_network_status().cloned(),
            )
        });
        if status
            .as_ref()
            .is_none_or(|status| status.limited_to(&requirements).is_none())
        {
            return Ok((requirements, status));
        }
        self.write(|txn| {
            let requirements = txn.world().host_requirements();
            let status = txn.world().host_network_status().cloned();
            let reduced = status
                .as_ref()
                .and_then(|status| status.limited_to(&requirements));
            if let Some(less) = reduced.clone() {
                txn.put_host_network_status(less)?;
            }
            Ok((requirements, reduced.or(status)))
        })
        .await
    }

    /// Records a drift event. Returns the condition if a conflicting writer reverts the repairs.
    fn report_host_network_drift(
        &self,
        actions: &[String],
        affects_rules: bool,
    ) -> Option<ConditionParts> {
        let steps = actions.join("; ");
        let repaired = format!("differed from the desired state; restored: {steps}");
        self.record_event(
            EventType::Warning,
            &ObjectRef::Host,
            EventReason::Drift,
            &repaired,
        );
        let stage = match affects_rules {
            true => Stage::Firewall,
            false => Stage::Net,
        };
        self.conflicting_writers
            .count(self.host_network_uid(), stage, clock::monotonic())?;
        let message = format!("repaired repeatedly: a conflicting writer reverts: {steps}");
        Some((Status::False, Reason::Contested, message))
    }

    /// The conflict about state that is repaired by netlink messages, until it is over: a new one, or the stored one.
    fn netlink_conflict(
        &self,
        net_reconciler: &HostNetwork,
        found: Option<ConditionParts>,
        known: Option<ConflictingWriter>,
    ) -> Option<ConflictingWriter> {
        let Some((status, reason, message)) = found else {
            return known.filter(|_| self.is_contested(&Key::HostNetwork));
        };
        if known.is_none() {
            self.record_event(EventType::Warning, &ObjectRef::Host, reason, &message);
        }
        let touched = net_reconciler.touched_bridges.lock();
        let affects_all_bridges = touched.contains(&None);
        let bridges = touched
            .iter()
            .flatten()
            .filter(|_| !affects_all_bridges)
            .cloned();
        let bridges: BTreeSet<String> = bridges.collect();
        Some(match known {
            Some(known) if known.bridges.is_empty() || bridges.is_empty() => ConflictingWriter {
                bridges: BTreeSet::new(),
                ..known
            },
            Some(mut known) => {
                known.bridges.extend(bridges);
                known
            }
            None => ConflictingWriter {
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

    fn host_network_uid(&self) -> Uid {
        owner::uid_of(&self.instance.host_network_label())
    }

    /// Whether a conflicting writer reverts repairs that are made for this key by netlink messages.
    pub fn is_contested(&self, key: &Key) -> bool {
        let uid = match key {
            Key::HostNetwork => self.host_network_uid(),
            Key::Vm(uid) => *uid,
            Key::Group(_) | Key::Orphan(_) => return false,
        };
        let repairs = self
            .conflicting_writers
            .ongoing(uid, Stage::Net, clock::monotonic());
        repairs.is_some()
    }

    fn host_network_status(
        &self,
        (status, reason, message): ConditionParts,
        desired: host_network::Desired,
        before: Option<&store::HostNetworkStatus>,
    ) -> store::HostNetworkStatus {
        let now = clock::now();
        let since = before
            .filter(|before| before.condition.status == status)
            .map_or(now, |before| before.condition.since);
        store::HostNetworkStatus {
            condition: Condition {
                status,
                reason,
                message,
                since,
                observed_generation: 0,
            },
            applied: desired.requirements,
            obsolete: match status {
                Status::True => HostRequirements::default(),
                // The next run removes what could not be removed now.
                Status::False | Status::Unknown => desired.previous,
            },
            boot_id: self.host.boot_id.clone(),
            unenforced: None,
            conflicting_writer: None,
            warnings: Vec::new(),
            drops: Vec::new(),
        }
    }

    /// Records that this VM waits for the host network: its requirements are not met, or it has no address. Call this within the
    /// transaction that found this: then a transaction that stores the host network as converged cannot come between, and
    /// [`Engine::enqueue_waiting`] after it enqueues the VM.
    pub(super) fn wait_for_host_network(&self, uid: Uid) {
        self.waiting_for_host_network.lock().insert(uid);
    }

    fn enqueue_waiting(&self) {
        let waiting = std::mem::take(&mut *self.waiting_for_host_network.lock());
        for uid in waiting {
            self.waker.enqueue(Key::Vm(uid));
        }
    }

    /// The reconciler of the host network.
    pub fn host_network_reconciler(&self) -> HostNetwork {
        HostNetwork {
            home: self.host.host_netns.clone(),
            netlink: self.host.netlink.clone(),
            backend: self.host.backend.clone(),
            scope: Scope::Named,
            forward_chains: self.forward_chains.clone(),
            touched_bridges: Default::default(),
        }
    }
}
