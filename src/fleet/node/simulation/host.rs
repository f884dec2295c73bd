//! A host: its clock, its disk, its processes, the guard.
//! Out of scope: the daemon (`agent`).

use std::io;

use super::*;
use crate::api::vm::Hypervisor;
use crate::fleet::contact::Facts;
use crate::fleet::fence::{FenceFile, Guard, Guarded, VmmUser};
use crate::fleet::object::Resources;

/// VMs of the fleet that fit.
const SLOTS: usize = 3;

pub(super) struct Host {
    pub(super) name: Name,
    pub(super) boot: u32,
    booted_at: Ms,
    /// Parts per million by which its clock is fast.
    ppm: u64,
    /// The whole host does nothing, and its guard may run this late afterwards.
    pub(super) frozen_until: Ms,
    pub(super) guarded_from: Ms,
    /// Only the daemon does.
    pub(super) daemon_stopped_until: Ms,
    pub(super) partitioned_until: Ms,
    /// Lists fail, and other requests do not.
    pub(super) unlisted_until: Ms,
    /// Its renewals create a key that is gone, instead of finding it gone first.
    pub(super) is_eager: bool,
    /// Its endpoints are those of another cluster.
    pub(super) foreign_until: Ms,
    pub(super) processes: BTreeMap<Uid, VmmUser>,
    /// The users of the VMs in the local store.
    users: BTreeMap<Uid, VmmUser>,
    next_user: u32,
    pub(super) fence_file: Option<Vec<u8>>,
    /// As the daemon has written it.
    pub(super) last_file: Option<FenceFile>,
    guard: Guard,
    // The disk.
    pub(super) local: BTreeMap<Uid, LocalVm>,
    pub(super) refusals: BTreeMap<Uid, LocalRefusal>,
    pub(super) local_groups: Vec<LocalGroup>,
    pub(super) facts: Option<Facts>,
    /// VMs that a restored or wiped etcd does not have; they use other resources.
    pub(super) lost: BTreeSet<Uid>,
    /// `None`: it has failed.
    pub(super) agent: Option<Agent>,
    pub(super) incarnation: u64,
}

/// Why a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Daemon,
    Guard,
    Removed,
    Failed,
    Reboot,
}

impl Host {
    pub(super) fn new(node: usize, rng: &mut Rng) -> Self {
        Self {
            name: node_name(node),
            boot: 1,
            booted_at: 0,
            ppm: rng.range(0, 2000),
            frozen_until: 0,
            guarded_from: 0,
            daemon_stopped_until: 0,
            partitioned_until: 0,
            unlisted_until: 0,
            is_eager: rng.percent(50),
            foreign_until: 0,
            processes: BTreeMap::new(),
            users: BTreeMap::new(),
            next_user: 1000,
            fence_file: None,
            last_file: None,
            guard: Guard::default(),
            local: BTreeMap::new(),
            refusals: BTreeMap::new(),
            local_groups: vec![],
            facts: None,
            lost: BTreeSet::new(),
            agent: None,
            incarnation: 0,
        }
    }

    pub(super) fn boottime(&self, now: Ms) -> Boottime {
        let ms = (now - self.booted_at) * (999_000 + self.ppm) / 1_000_000;
        Boottime(Duration::from_millis(ms))
    }

    pub(super) fn boot_id(&self) -> String {
        format!("{}-{}", self.name, self.boot)
    }

    pub(super) fn is_frozen(&self, now: Ms) -> bool {
        now < self.frozen_until
    }

    pub(super) fn blocked_until(&self, now: Ms, is_guard: bool) -> Ms {
        match is_guard {
            true => self.frozen_until.max(now),
            false => self.frozen_until.max(self.daemon_stopped_until).max(now),
        }
    }

    pub(super) fn available(&self) -> Available {
        let lost = |uid: &&Uid| !self.lost.contains(*uid);
        let used = self.local.keys().filter(lost).count();
        let free = SLOTS.saturating_sub(used) as u64;
        Available {
            free: Resources {
                vcpus: 100,
                ram_bytes: 100 << 30,
                disk_bytes: 100 << 30,
                isolated: free,
                bridge_ports: 0,
            },
            hypervisors: vec![Hypervisor::CloudHypervisor],
            is_known: true,
            ..Available::default()
        }
    }

    pub(super) fn start(&mut self, uid: Uid) {
        let user = self.user(uid);
        self.processes.insert(uid, user);
    }

    fn user(&mut self, uid: Uid) -> VmmUser {
        *self.users.entry(uid).or_insert_with(|| {
            self.next_user += 1;
            VmmUser(self.next_user)
        })
    }

    pub(super) fn guard_state(&self) -> GuardState {
        let vms = self.last_file.iter().flat_map(|file| &file.vms);
        GuardState {
            runs: true,
            vms: vms.map(|vm| vm.uid).collect(),
        }
    }

    /// `is_decided`: a plan was executed; otherwise no VM gets more time.
    pub(super) fn write_fence_file(&mut self, contact: &Contact, is_decided: bool) {
        let (local, processes) = (&self.local, &self.processes);
        self.users
            .retain(|uid, _| local.contains_key(uid) || processes.contains_key(uid));
        for uid in self.local.keys().copied().collect::<Vec<_>>() {
            self.user(uid);
        }
        let guarded = self.local.values().filter_map(|local| {
            Some(Guarded {
                uid: local.uid,
                user: *self.users.get(&local.uid)?,
                stop: local.stop?,
                is_ending: !is_decided || matches!(local.run, Run::Stopped | Run::Deleting),
            })
        });
        let before = self.last_file.as_ref();
        let file = FenceFile::new(contact, self.boot_id(), guarded, before);
        if before != Some(&file) {
            self.fence_file = Some(file.encode().expect("JSON"));
            self.last_file = Some(file);
        }
    }

    pub(super) fn reboot(&mut self, now: Ms) {
        self.boot += 1;
        self.booted_at = now;
        (self.fence_file, self.last_file) = (None, None);
        self.guard = Guard::default();
        self.agent = None;
        for local in self
            .local
            .values_mut()
            .filter(|local| local.run == Run::Ready)
        {
            local.run = Run::NotReady;
        }
    }
}

impl World {
    pub(super) fn guard(&mut self, node: usize) {
        self.after(2000, Event::GuardTimer(node));
        let (now, host) = (self.now, &mut self.hosts[node]);
        if host.processes.is_empty() {
            return;
        }
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let content = host.fence_file.clone().ok_or_else(missing);
        let (boot_id, time) = (host.boot_id(), host.boottime(now));
        for vm in host.guard.decide(content, &boot_id, time).stop {
            if self.hosts[node].processes.get(&vm.uid) == Some(&vm.user) {
                self.end(node, vm.uid, End::Guard);
            }
        }
    }

    /// The process of the VM ends, if it has one.
    pub(super) fn end(&mut self, node: usize, uid: Uid, end: End) {
        let host = &mut self.hosts[node];
        if host.processes.remove(&uid).is_none() {
            return;
        }
        let local = host.local.get_mut(&uid);
        if let Some(local) = local.filter(|local| local.run == Run::Ready) {
            local.run = Run::NotReady;
        }
        self.recorder.ended(self.now, &self.hosts[node], uid, end);
    }
}
