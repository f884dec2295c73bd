//! What fails, what users change, and what an operator does about it.
//! Out of scope: the reaction of the nodes.

use super::host::End;
use super::*;

#[derive(Default)]
pub(super) struct Faults {
    /// etcd is restored and wiped in this history.
    has_restores: bool,
    snapshot: Option<Etcd>,
    /// Requests that were sent before are lost.
    pub(super) restored_at: Ms,
    /// When nodes accept a restored cluster.
    accept_from: Ms,
    garbled_until: Ms,
    last_cluster_id: u64,
}

impl Faults {
    pub(super) fn new(has_restores: bool) -> Self {
        Self {
            has_restores,
            ..Self::default()
        }
    }
}

impl World {
    pub(super) fn fault(&mut self) {
        if self.now >= FAILURES {
            return;
        }
        let delay = self.rng.range(2000, 45_000);
        self.after(delay, Event::Fault);
        let node = self.rng.node();
        let until = |rng: &mut Rng, most| (self.now + rng.range(5000, most)).min(FAILURES);
        let fault = self.rng.range(0, 27);
        self.recorder
            .note(self.now, || format!("fault {fault} of node {node}"));
        match fault {
            0..2 => self.hosts[node].partitioned_until = until(&mut self.rng, 200_000),
            2..4 => self.cut(node),
            4 | 5 => {
                // Its response may wait for the daemon.
                self.send_renewal(node);
                self.after(300, Event::Pause(node));
            }
            6 => self.scheduler.partitioned_until = until(&mut self.rng, 60_000),
            7 | 8 => self.hosts[node].daemon_stopped_until = until(&mut self.rng, 200_000),
            9 => self.fail_daemon(node),
            10 => self.fail_vmm(node),
            11..14 => {
                let until = until(&mut self.rng, 200_000);
                let host = &mut self.hosts[node];
                host.frozen_until = host.frozen_until.max(until);
                host.guarded_from = host.frozen_until + 1900;
                host.unlisted_until = host.frozen_until + self.rng.range(0, 20_000);
            }
            14 => self.reboot(node),
            15 => self.revoke(node),
            16 => self.etcd.elect(self.now + 2000, &mut self.rng),
            17 => {
                let until = until(&mut self.rng, 100_000);
                self.etcd.elect(until, &mut self.rng);
            }
            18 => self.break_watch(node),
            19 => self.scheduler.restart(),
            20 => self.delete_vm(),
            21 => {
                // Back and forth, while a node is cut off.
                let secs = [None, Some(60)][self.rng.range(0, 2) as usize];
                self.change_group(secs);
                let cut = self.rng.range(0, 10_000);
                self.after(cut, Event::Cut(node));
                self.after(cut + 5000, Event::Change(Some(40)));
            }
            22 => {
                self.faults.garbled_until = until(&mut self.rng, 60_000);
                self.etcd.garbled.extend(self.etcd.vms.keys().next());
            }
            23 => self.hosts[node].foreign_until = until(&mut self.rng, 100_000),
            24 => self.faults.snapshot = Some(self.etcd.clone()),
            _ if self.faults.has_restores => self.restore(),
            _ => {}
        }
    }

    /// Responses that are under way arrive.
    pub(super) fn cut(&mut self, node: usize) {
        if self.now < FAILURES {
            self.revoke(node);
            let until = self.now + self.rng.range(50_000, 200_000);
            let unlisted = until + self.rng.range(0, 40_000);
            let host = &mut self.hosts[node];
            host.partitioned_until = until.min(FAILURES);
            host.unlisted_until = unlisted.min(FAILURES);
        }
    }

    pub(super) fn pause(&mut self, node: usize) {
        self.cut(node);
        let until = self.now + self.rng.range(5000, 40_000);
        self.hosts[node].daemon_stopped_until = until.min(FAILURES);
    }

    fn revoke(&mut self, node: usize) {
        if self.etcd.alive.remove(&node).is_some() {
            self.etcd.revision += 1;
        }
    }

    pub(super) fn change_group(&mut self, secs: Option<u64>) {
        self.etcd.put_replacement(&tests::name("swap"), secs);
    }

    fn fail_vmm(&mut self, node: usize) {
        let uid = self.hosts[node].processes.keys().next().copied();
        if let Some(uid) = uid.filter(|_| !self.hosts[node].is_frozen(self.now)) {
            self.end(node, uid, End::Failed);
        }
    }

    fn reboot(&mut self, node: usize) {
        if self.hosts[node].is_frozen(self.now) {
            return;
        }
        let uids: Vec<Uid> = self.hosts[node].processes.keys().copied().collect();
        for uid in uids {
            self.end(node, uid, End::Reboot);
        }
        self.hosts[node].reboot(self.now);
        let delay = self.rng.range(10_000, 100_000);
        self.after(delay, Event::DaemonStarts(node));
    }

    fn break_watch(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        let time = host.boottime(self.now);
        if let Some(agent) = &mut host.agent {
            agent.contact.handle(contact::Event::WatchBroken, time);
        }
    }

    fn delete_vm(&mut self) {
        let count = self.etcd.vms.len() as u64;
        if count == 0 {
            return;
        }
        let at = self.rng.range(0, count) as usize;
        let vm = self.etcd.vms.values().nth(at).map(|(vm, _)| vm.clone());
        if let Some(mut vm) = vm.filter(|vm| !self.etcd.garbled.contains(&vm.meta.uid)) {
            vm.meta.deleting = true;
            self.recorder.deleting.insert(vm.meta.uid);
            self.etcd.put_vm(vm);
        }
    }

    /// From the snapshot; without one, or rarely, etcd is wiped.
    fn restore(&mut self) {
        let mut restored = match self.faults.snapshot.take() {
            Some(snapshot) if !self.rng.percent(20) => snapshot,
            _ => Etcd::new(),
        };
        self.faults.last_cluster_id = self.faults.last_cluster_id.max(self.etcd.cluster_id);
        // The same id only if every node notices it: the documentation requires another.
        let notices = |host: &Host| {
            let seen = host.facts.map_or(0, |facts| facts.revision);
            let blocked = host.blocked_until(self.now, false);
            let until = blocked.max(host.partitioned_until).max(host.foreign_until);
            seen > restored.revision + 50 && until <= self.now && host.agent.is_some()
        };
        if !self.hosts.iter().all(notices) {
            self.faults.last_cluster_id += 1;
            restored.cluster_id = self.faults.last_cluster_id;
        } else {
            restored.cluster_id = self.etcd.cluster_id;
            self.queue_faults_later();
        }
        for (uid, (vm, _)) in &self.etcd.vms {
            match restored.vms.get_mut(uid) {
                // The operator's correction.
                Some((old, _)) if old.group == tests::name("keep") => {
                    (old.binding, old.epoch) = (vm.binding.clone(), vm.epoch);
                }
                Some(_) => {}
                None => self.hosts.iter_mut().for_each(|host| {
                    host.lost.insert(*uid);
                }),
            }
        }
        for expires in restored.alive.values_mut() {
            *expires = self.now + TTL;
        }
        restored.unavailable_until = self.now + 2000;
        restored.garbled.clear();
        self.etcd = restored;
        self.scheduler.restart();
        self.faults.restored_at = self.now;
        let stopped = LONGEST + STOP_TIME + STOP_TIME;
        self.faults.accept_from = self.now + stopped.as_millis() as Ms;
        self.recorder.restored += 1;
    }

    /// Nothing else fails until every node has seen the restored cluster.
    fn queue_faults_later(&mut self) {
        let faults: Vec<u64> = self
            .events
            .iter()
            .filter(|(_, event)| matches!(event, Event::Fault))
            .map(|(number, _)| *number)
            .collect();
        self.queue
            .retain(|Reverse((_, number))| !faults.contains(number));
        self.events.retain(|number, _| !faults.contains(number));
        self.after(25_000, Event::Fault);
    }

    pub(super) fn admin(&mut self) {
        self.after(5000, Event::AdminTimer);
        let now = self.now;
        if now >= self.faults.garbled_until {
            self.etcd.garbled.clear();
        }
        for (group, count) in [("keep", 2), ("swap", 3)] {
            let vms = self.etcd.vms.values();
            let found = vms.filter(|(vm, _)| vm.group.as_str() == group && !vm.meta.deleting);
            if found.count() < count {
                self.create_vm(group);
            }
        }
        for node in 0..NODES {
            let host = &mut self.hosts[node];
            let may_work = host.blocked_until(now, false) <= now && now >= host.foreign_until;
            let time = host.boottime(now);
            let Some(agent) = host.agent.as_mut().filter(|_| may_work) else {
                continue;
            };
            let facts = agent.contact.facts();
            let is_changed = facts.is_some_and(|facts| facts.unaccepted.is_some());
            if is_changed && now >= self.faults.accept_from {
                let cluster_id = self.etcd.cluster_id;
                agent
                    .contact
                    .handle(contact::Event::Accepted { cluster_id }, time);
                host.facts = agent.contact.facts();
                let is_accepted = host.facts.is_some_and(|facts| facts.unaccepted.is_none());
                self.recorder.accepted += u32::from(is_accepted);
            }
        }
    }
}
