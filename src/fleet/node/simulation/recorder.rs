//! What must hold at every instant, and how often what is to be shown has occurred.
//! Out of scope: causing it.

use super::host::End;
use super::*;
use crate::api::fleet::HOLD_AFTER_BOOT;

#[derive(Debug, Default)]
pub(super) struct Recorder {
    /// The history is printed.
    pub(super) prints: bool,
    /// VMs with `deleting`, and all epochs that ever were in etcd, with their nodes.
    pub(super) deleting: BTreeSet<Uid>,
    epochs: BTreeMap<Uid, Vec<(Option<Name>, u64)>>,
    overlapping: BTreeSet<Uid>,
    pub(super) replacing: u32,
    pub(super) replaced: u32,
    pub(super) refused: u32,
    pub(super) restored: u32,
    pub(super) accepted: u32,
    pub(super) started_again: u32,
    pub(super) deleted: u32,
    pub(super) stopped_by_daemon: u32,
    pub(super) stopped_by_guard: u32,
    pub(super) overlaps_of_frozen_hosts: u32,
}

fn is_kept(local: &LocalVm) -> bool {
    local.group.as_str() == "keep"
}

impl Recorder {
    pub(super) fn add(&mut self, other: &Self) {
        let sums = [
            (&mut self.replacing, other.replacing),
            (&mut self.replaced, other.replaced),
            (&mut self.refused, other.refused),
            (&mut self.restored, other.restored),
            (&mut self.accepted, other.accepted),
            (&mut self.started_again, other.started_again),
            (&mut self.deleted, other.deleted),
            (&mut self.stopped_by_daemon, other.stopped_by_daemon),
            (&mut self.stopped_by_guard, other.stopped_by_guard),
            (
                &mut self.overlaps_of_frozen_hosts,
                other.overlaps_of_frozen_hosts,
            ),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
    }

    /// A line of the history.
    pub(super) fn note(&self, now: Ms, line: impl FnOnce() -> String) {
        if self.prints {
            eprintln!("{:>8.3} {}", now as f64 / 1000.0, line());
        }
    }

    pub(super) fn bound(&mut self, vm: &Vm) {
        let node = vm.binding.as_ref().map(|binding| binding.node.clone());
        let all = self.epochs.entry(vm.meta.uid).or_default();
        all.push((node, vm.epoch));
    }

    /// A VM is deleted only if the fleet has given it up.
    pub(super) fn removed(&mut self, node: &Name, local: &LocalVm) {
        let mut epochs = self.epochs.get(&local.uid).into_iter().flatten();
        let is_superseded =
            epochs.any(|(to, epoch)| to.as_ref() != Some(node) && *epoch > local.epoch);
        assert!(
            is_superseded || self.deleting.contains(&local.uid),
            "{} is deleted on {node}, and nobody has requested that",
            local.name
        );
        self.deleted += 1;
    }

    /// VMs that are never replaced run through any outage, and are started in it, except directly after a boot.
    pub(super) fn planned(&self, now: Ms, host: &Host, plan: &Plan) {
        for local in host.local.values().filter(|local| is_kept(local)) {
            let ends = plan.steps.iter().any(|step| match step {
                Step::StopVm { uid, .. } => {
                    assert_ne!(*uid, local.uid, "{} is stopped", local.name);
                    false
                }
                Step::RemoveVm { uid, .. } => *uid == local.uid,
                _ => false,
            });
            let runs = matches!(local.run, Run::Ready | Run::NotReady);
            let was_booted = host.boottime(now) < Boottime(HOLD_AFTER_BOOT);
            let may_restart = was_booted || plan.restart_allowed.contains(&local.uid);
            assert!(
                !runs || ends || may_restart,
                "{} may not be restarted",
                local.name
            );
        }
    }

    pub(super) fn ended(&mut self, now: Ms, host: &Host, uid: Uid, end: End) {
        self.note(now, || format!("{}: {uid} ends: {end:?}", host.name));
        assert!(!host.is_frozen(now), "a frozen host does nothing");
        let is_kept = host.local.get(&uid).is_some_and(is_kept);
        match end {
            End::Daemon => self.stopped_by_daemon += 1,
            End::Guard => self.stopped_by_guard += 1,
            End::Removed | End::Failed | End::Reboot => return,
        }
        assert!(!is_kept, "a VM that is never replaced is stopped");
    }

    /// No VM runs twice, but for a copy of a host that was frozen until its guard has run.
    pub(super) fn check(&mut self, now: Ms, hosts: &[Host]) {
        let mut seen: BTreeMap<Uid, &Host> = BTreeMap::new();
        let mut overlapping = BTreeSet::new();
        for host in hosts.iter().filter(|host| !host.is_frozen(now)) {
            for uid in host.processes.keys() {
                let Some(other) = seen.insert(*uid, host) else {
                    continue;
                };
                let is_exempt = [host, other].iter().any(|host| now <= host.guarded_from);
                assert!(
                    is_exempt,
                    "at {now} VM {uid} runs on {} and {}",
                    other.name, host.name
                );
                overlapping.insert(*uid);
            }
        }
        let new = overlapping.difference(&self.overlapping).count();
        self.overlaps_of_frozen_hosts += new as u32;
        self.overlapping = overlapping;
    }

    /// All is repaired: every VM runs on its node, and nothing is left of others.
    pub(super) fn check_end(&self, etcd: &Etcd, hosts: &[Host]) {
        for (uid, (vm, _)) in &etcd.vms {
            assert!(!vm.meta.deleting, "{} is not deleted", vm.meta.name);
            let binding = vm.binding.as_ref().expect("a binding");
            for (node, host) in hosts.iter().enumerate() {
                let local = host.local.get(uid);
                let is_bound = host.name == binding.node;
                assert_eq!(
                    local.is_some(),
                    is_bound,
                    "{vm:?} on {}: {local:?}",
                    host.name
                );
                assert_eq!(host.processes.contains_key(uid), is_bound, "{vm:?}");
                let Some(local) = local else {
                    continue;
                };
                assert_eq!((local.run, local.epoch), (Run::Ready, binding.epoch));
                let status = &etcd.statuses[&(node, *uid)].0;
                assert_eq!((status.phase, status.epoch), (Phase::Ready, binding.epoch));
                let (group, _) = &etcd.groups[&vm.group];
                let stop = super::super::status::stop_of(group);
                let within = stop.map(|stop| stop.within);
                assert_eq!((local.stop, status.stops_within), (stop, within));
            }
        }
        for (node, uid) in etcd.statuses.keys() {
            let exists = etcd.vms.contains_key(uid) || hosts[*node].local.contains_key(uid);
            assert!(exists, "a status of {uid} is left on node {node}");
        }
        for local in hosts.iter().flat_map(|host| host.local.values()) {
            let runs = |host: &&Host| host.processes.contains_key(&local.uid);
            let is_alive = !is_kept(local) || hosts.iter().any(|host| runs(&host));
            assert!(is_alive, "{} does not run", local.name);
        }
    }
}
