//! A scheduler that replaces VMs as the design says: it counts how long the key of a node is absent, and compares before it writes.
//! Out of scope: where a VM is placed best.

use super::*;

#[derive(Default)]
pub(super) struct Scheduler {
    /// Of the elected daemon; transactions of an earlier one fail.
    pub(super) term: u64,
    pub(super) partitioned_until: Ms,
    is_connected: bool,
    /// Since when it sees the keys absent.
    absent: BTreeMap<usize, Ms>,
}

/// A transaction: it writes if nothing of what it compares has changed.
pub(super) struct Txn {
    term: u64,
    uid: Uid,
    revision: u64,
    /// The key of this node is absent, and its status of the VM has this revision.
    absent: Option<(usize, u64)>,
    /// `None`: the object is removed.
    write: Option<Vm>,
}

impl Scheduler {
    /// Another daemon is elected, or the watch has a gap.
    pub(super) fn restart(&mut self) {
        self.term += 1;
        self.is_connected = false;
    }
}

impl World {
    pub(super) fn schedule(&mut self) {
        self.after(1000, Event::SchedulerTimer);
        if self.now < self.scheduler.partitioned_until || !self.etcd.is_available(self.now) {
            self.scheduler.is_connected = false;
            return;
        }
        let scheduler = &mut self.scheduler;
        if !scheduler.is_connected {
            scheduler.absent.clear();
            scheduler.is_connected = true;
        }
        for node in 0..NODES {
            match self.etcd.alive.contains_key(&node) {
                true => scheduler.absent.remove(&node),
                false => Some(*scheduler.absent.entry(node).or_insert(self.now)),
            };
        }
        let uids: Vec<Uid> = self.etcd.vms.keys().copied().collect();
        for uid in uids {
            if !self.etcd.garbled.contains(&uid)
                && let Some(txn) = self.decide(uid)
            {
                let delay = self.rng.range(0, 1500);
                self.after(delay, Event::SchedulerTxn(Box::new(txn)));
            }
        }
    }

    fn statuses(&self, uid: Uid) -> Vec<(usize, VmStatus)> {
        let all = (0..NODES).filter_map(|node| {
            let status = self.etcd.statuses.get(&(node, uid))?;
            Some((node, status.0.clone()))
        });
        all.collect()
    }

    fn decide(&mut self, uid: Uid) -> Option<Txn> {
        let (vm, revision) = self.etcd.vms[&uid].clone();
        let statuses = self.statuses(uid);
        let of = |name: &Name| {
            let mut all = statuses.iter();
            all.find(|(node, _)| node_name(*node) == *name)
        };
        let txn = |absent, write| Txn {
            term: self.scheduler.term,
            uid,
            revision,
            absent,
            write,
        };
        let is_absent = |node: &Name, epoch: u64| {
            of(node).is_some_and(|(_, status)| {
                matches!(status.phase, Phase::Deleted | Phase::Refused) && status.epoch >= epoch
            })
        };
        let mut confirmed = vm.clone();
        confirmed
            .previous
            .retain(|copy| !is_absent(&copy.node, copy.epoch));
        if confirmed != vm {
            return Some(txn(None, Some(confirmed)));
        }
        if vm.meta.deleting {
            let mut binding = vm.binding.iter();
            let is_confirmed = binding.all(|binding| is_absent(&binding.node, binding.epoch));
            return (vm.previous.is_empty() && is_confirmed).then(|| txn(None, None));
        }
        let greatest = statuses.iter().map(|(_, status)| status.epoch).max();
        let next = greatest.unwrap_or(0).max(vm.epoch) + 1;
        let Some(binding) = vm.binding.clone() else {
            let holder = statuses.iter().find(|(_, status)| {
                status.epoch >= vm.epoch && !matches!(status.phase, Phase::Deleted | Phase::Refused)
            });
            let node = match holder {
                Some((node, _)) => *node,
                None => self.pick(&vm, None)?,
            };
            return Some(self.bind(vm, revision, None, node, next));
        };
        let is_newer = |(node, status): &&(usize, VmStatus)| {
            let is_copy = !matches!(status.phase, Phase::Deleted | Phase::Refused);
            let is_elsewhere = node_name(*node) != binding.node;
            is_copy && (status.epoch > vm.epoch || status.epoch == binding.epoch && is_elsewhere)
        };
        let node = (0..NODES).find(|node| node_name(*node) == binding.node)?;
        if statuses.iter().any(|entry| is_newer(&entry)) {
            return Some(self.bind(vm, revision, None, node, next));
        }
        let status = of(&binding.node).map(|(_, status)| status);
        let status = status.filter(|status| status.epoch == binding.epoch);
        if status.is_some_and(|status| status.phase == Phase::Refused) {
            let mut vm = vm;
            vm.binding = None;
            vm.epoch = next;
            vm.refusals.push(object::Refusal {
                node: binding.node,
                reason: "refused".into(),
                times: 1,
                group_generation: 1,
                allocatable: Default::default(),
                until: Timestamp::UNIX_EPOCH,
            });
            return Some(txn(None, Some(vm)));
        }
        if !self.may_replace(&vm, revision, node, status) {
            return None;
        }
        let other = self.pick(&vm, Some(node))?;
        let absent = Some((node, self.etcd.status_revision(node, uid)));
        self.recorder.replacing += 1;
        let mut vm = vm;
        vm.previous.retain(|copy| copy.node != binding.node);
        vm.previous.push(object::PreviousCopy {
            node: binding.node,
            epoch: binding.epoch,
            resources: binding.resources,
            keep: false,
        });
        Some(self.bind(vm, revision, absent, other, next))
    }

    fn may_replace(&self, vm: &Vm, revision: u64, node: usize, status: Option<&VmStatus>) -> bool {
        let (group, group_revision) = &self.etcd.groups[&vm.group];
        let Some(replacement) = group.replacement else {
            return false;
        };
        // What the node does, not what the group says; before its first report, what the group said when it was bound.
        let within = match status {
            Some(status) => status.stops_within,
            None if *group_revision < revision => Some(replacement.stop_after + STOP_TIME),
            None => None,
        };
        let is_stopped_first =
            within.is_some_and(|within| within + MARGIN <= replacement.replace_after);
        let absent = self.scheduler.absent.get(&node);
        let is_absent = absent.is_some_and(|since| {
            Duration::from_millis(self.now - since) >= replacement.replace_after
        });
        is_stopped_first && is_absent
    }

    /// A living node that has not refused the VM.
    fn pick(&mut self, vm: &Vm, except: Option<usize>) -> Option<usize> {
        let is_alive = |node: &usize| self.etcd.alive.contains_key(node) && Some(*node) != except;
        let alive: Vec<usize> = (0..NODES).filter(is_alive).collect();
        let refused = |node: &usize| vm.refusals.iter().any(|r| r.node == node_name(*node));
        let willing: Vec<usize> = alive.iter().copied().filter(|n| !refused(n)).collect();
        let of = if willing.is_empty() { alive } else { willing };
        match of.is_empty() {
            true => None,
            false => Some(of[self.rng.range(0, of.len() as u64) as usize]),
        }
    }

    fn bind(
        &self,
        mut vm: Vm,
        revision: u64,
        absent: Option<(usize, u64)>,
        node: usize,
        epoch: u64,
    ) -> Txn {
        vm.epoch = epoch;
        vm.binding = Some(object::Binding {
            node: node_name(node),
            epoch,
            group_generation: 1,
            resources: Default::default(),
            moving_from: None,
        });
        Txn {
            term: self.scheduler.term,
            uid: vm.meta.uid,
            revision,
            absent,
            write: Some(vm),
        }
    }

    pub(super) fn commit(&mut self, txn: &Txn) {
        let is_reached =
            self.now >= self.scheduler.partitioned_until && self.etcd.is_available(self.now);
        let found = self.etcd.vms.get(&txn.uid).map(|(_, revision)| *revision);
        let is_unchanged = found == Some(txn.revision) && self.scheduler.term == txn.term;
        let is_absent = txn.absent.is_none_or(|(node, revision)| {
            !self.etcd.alive.contains_key(&node)
                && self.etcd.status_revision(node, txn.uid) == revision
        });
        if !(is_reached && is_unchanged && is_absent) {
            return;
        }
        let Some(vm) = &txn.write else {
            return self.etcd.remove_vm(txn.uid);
        };
        if txn.absent.is_some() {
            self.recorder.replaced += 1;
        }
        let (uid, binding) = (vm.meta.uid, &vm.binding);
        self.recorder
            .note(self.now, || format!("{uid} has {binding:?}"));
        self.recorder.bound(vm);
        self.etcd.put_vm(vm.clone());
    }
}
