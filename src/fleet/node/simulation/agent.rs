//! The daemon of a node: its start and its failure, and the execution of its plan.
//! Out of scope: requests (`requests`), and what is decided (the code under test).

use super::host::End;
use super::*;
use crate::fleet::fence::FenceFile;

pub(super) struct Agent {
    pub(super) contact: Contact,
    pub(super) objects: Objects,
    pub(super) revisions: BTreeMap<Uid, u64>,
    /// Its lease was gone when it was last renewed, or it has none yet.
    pub(super) has_no_lease: bool,
    pub(super) listing: Option<u64>,
    pub(super) writing: Option<u64>,
    pub(super) next_number: u64,
    spawning: BTreeSet<Uid>,
    stopping: BTreeSet<Uid>,
}

impl World {
    pub(super) fn start_daemon(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        if host.agent.is_some() {
            return;
        }
        let time = host.boottime(self.now);
        let content = host.fence_file.as_ref();
        host.last_file = content.map(|content| FenceFile::decode(content).expect("a file"));
        let renewed = host.last_file.as_ref().and_then(|file| file.renewed);
        host.incarnation += 1;
        host.agent = Some(Agent {
            contact: Contact::new(host.facts, renewed, time),
            objects: Objects::default(),
            revisions: BTreeMap::new(),
            has_no_lease: true,
            listing: None,
            writing: None,
            next_number: 0,
            spawning: BTreeSet::new(),
            stopping: BTreeSet::new(),
        });
        self.replan(node);
        self.after(0, Event::RenewTimer(node));
        self.after(500, Event::ListTimer(node));
    }

    fn plan(&self, node: usize) -> Option<Plan> {
        let host = &self.hosts[node];
        let agent = host.agent.as_ref()?;
        Some(plan(&Input {
            node: &host.name,
            contact: &agent.contact,
            now: host.boottime(self.now),
            objects: &agent.objects,
            local: &host.local,
            refusals: &host.refusals,
            local_groups: &host.local_groups,
            available: &host.available(),
            guard: &host.guard_state(),
        }))
    }

    /// Computes the plan, executes it, writes the file of the guard, then the status keys.
    pub(super) fn replan(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        if let Some(agent) = host.agent.take() {
            host.write_fence_file(&agent.contact, false);
            host.agent = Some(agent);
        }
        let Some(plan) = self.plan(node) else {
            return;
        };
        self.recorder.planned(self.now, &self.hosts[node], &plan);
        let crash = self.rng.percent(1).then(|| self.rng.range(0, 3) as usize);
        let mut writes = Vec::new();
        for (at, step) in plan.steps.into_iter().enumerate() {
            if crash == Some(at) && self.now < FAILURES {
                return self.fail_daemon(node);
            }
            self.execute(node, step, &mut writes);
        }
        self.run_vms(node, &plan.restart_allowed);
        let host = &mut self.hosts[node];
        let Some(agent) = host.agent.take() else {
            return;
        };
        host.write_fence_file(&agent.contact, true);
        let is_writing = agent.writing.is_some();
        host.agent = Some(agent);
        if !writes.is_empty() && !is_writing {
            let number = self.send(node, Kind::Put(writes));
            if let Some(agent) = &mut self.hosts[node].agent {
                agent.writing = number;
            }
        }
    }

    fn execute(&mut self, node: usize, step: Step, writes: &mut Vec<Write>) {
        let host = &mut self.hosts[node];
        let is_status = matches!(step, Step::PutStatus { .. } | Step::DeleteStatus { .. });
        if !is_status {
            self.recorder
                .note(self.now, || format!("{}: {step:?}", host.name));
        }
        let revision = |uid: &Uid| {
            let agent = host.agent.as_ref();
            let revision = agent.and_then(|agent| agent.revisions.get(uid));
            revision.copied().unwrap_or(0)
        };
        match step {
            Step::StopVm { uid, .. } => {
                let local = host.local.get_mut(&uid).expect("a VM that is stopped");
                local.run = Run::Stopped;
            }
            Step::RemoveVm { uid, .. } => {
                let local = host.local.get_mut(&uid).expect("a VM that is removed");
                local.run = Run::Deleting;
                self.recorder.removed(&host.name, local);
            }
            Step::PutGroup {
                name,
                uid,
                generation,
                ..
            } => {
                host.local_groups.retain(|group| group.name != name);
                host.local_groups.push(LocalGroup {
                    name,
                    uid,
                    generation,
                });
            }
            Step::AddVm { vm } => {
                assert!(host.local.insert(vm.uid, *vm).is_none(), "added twice");
            }
            Step::UpdateVm {
                uid,
                epoch,
                group_generation,
                stop,
            } => {
                let local = host.local.get_mut(&uid).expect("a VM that is updated");
                local.epoch = epoch;
                local.group_generation = group_generation;
                local.stop = stop;
            }
            Step::StartVm { uid } => {
                let local = host.local.get_mut(&uid).expect("a VM that is started");
                local.run = Run::NotReady;
                self.recorder.started_again += 1;
            }
            Step::RefuseVm { uid, epoch, reason } => {
                host.refusals.insert(uid, LocalRefusal { epoch, reason });
                self.recorder.refused += 1;
            }
            Step::ForgetRefusal { uid } => {
                host.refusals.remove(&uid);
            }
            Step::RemoveGroup { name } => host.local_groups.retain(|group| group.name != name),
            Step::PutStatus { uid, status } => writes.push(Write {
                uid,
                revision: revision(&uid),
                status: Some(*status),
            }),
            Step::DeleteStatus { uid } => writes.push(Write {
                uid,
                revision: revision(&uid),
                status: None,
            }),
        }
    }

    /// What the engine does: it starts, stops and removes VMs, each after some time.
    fn run_vms(&mut self, node: usize, restart_allowed: &BTreeSet<Uid>) {
        let host = &mut self.hosts[node];
        let incarnation = host.incarnation;
        let Some(agent) = host.agent.as_mut() else {
            return;
        };
        let mut events = Vec::new();
        for (uid, local) in &mut host.local {
            let has_process = host.processes.contains_key(uid);
            match local.run {
                Run::Ready | Run::NotReady if has_process => {
                    if local.run == Run::NotReady {
                        events.push((1000, Event::Ready(node, incarnation, *uid)));
                    }
                }
                Run::Ready | Run::NotReady => {
                    if restart_allowed.contains(uid) && agent.spawning.insert(*uid) {
                        events.push((2000, Event::Spawn(node, incarnation, *uid)));
                    }
                }
                Run::Stopped | Run::Deleting => {
                    let is_new = agent.stopping.insert(*uid);
                    if is_new && (has_process || local.run == Run::Deleting) {
                        events.push((2900, Event::Stop(node, incarnation, *uid)));
                    } else if is_new {
                        agent.stopping.remove(uid);
                    }
                }
            }
        }
        for (most, event) in events {
            let delay = self.rng.range(0, most);
            self.after(delay, event);
        }
    }

    fn agent(&mut self, node: usize, incarnation: u64) -> Option<&mut Agent> {
        let host = &mut self.hosts[node];
        let is_same = host.incarnation == incarnation;
        host.agent.as_mut().filter(|_| is_same)
    }

    pub(super) fn spawn(&mut self, node: usize, incarnation: u64, uid: Uid) {
        let Some(agent) = self.agent(node, incarnation) else {
            return;
        };
        agent.spawning.remove(&uid);
        // Time has passed since the decision.
        let plan = self.plan(node);
        let is_allowed = plan.is_some_and(|plan| plan.restart_allowed.contains(&uid));
        let host = &mut self.hosts[node];
        let Some(agent) = host.agent.take() else {
            return;
        };
        if is_allowed && !host.processes.contains_key(&uid) {
            host.start(uid);
            self.recorder
                .note(self.now, || format!("{}: {uid} starts", host.name));
            host.write_fence_file(&agent.contact, false);
        }
        host.agent = Some(agent);
        self.replan(node);
    }

    pub(super) fn ready(&mut self, node: usize, incarnation: u64, uid: Uid) {
        if self.agent(node, incarnation).is_none() {
            return;
        }
        let host = &mut self.hosts[node];
        let local = host.local.get_mut(&uid);
        if let Some(local) = local.filter(|local| local.run == Run::NotReady)
            && host.processes.contains_key(&uid)
        {
            local.run = Run::Ready;
            self.replan(node);
        }
    }

    pub(super) fn stop(&mut self, node: usize, incarnation: u64, uid: Uid) {
        let Some(agent) = self.agent(node, incarnation) else {
            return;
        };
        agent.stopping.remove(&uid);
        let local = self.hosts[node].local.get(&uid);
        match local.map(|local| local.run) {
            Some(Run::Stopped) => self.end(node, uid, End::Daemon),
            Some(Run::Deleting) => {
                self.end(node, uid, End::Removed);
                self.hosts[node].local.remove(&uid);
            }
            Some(Run::Ready | Run::NotReady) | None => {}
        }
        self.replan(node);
    }

    pub(super) fn fail_daemon(&mut self, node: usize) {
        self.hosts[node].agent = None;
        let delay = self.rng.range(500, 120_000);
        self.after(delay, Event::DaemonStarts(node));
    }
}
