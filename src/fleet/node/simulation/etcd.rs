//! etcd: objects with revisions, and the keys of living nodes, which may vanish early or late.
//! Out of scope: quorums; it is available or not.

use super::*;
use crate::fleet::object::Replacement;

/// A write of a status, if the key has this revision (0: it does not exist).
pub(super) struct Write {
    pub(super) uid: Uid,
    pub(super) revision: u64,
    /// `None`: the key is removed.
    pub(super) status: Option<VmStatus>,
}

#[derive(Clone)]
pub(super) struct Etcd {
    pub(super) cluster_id: u64,
    pub(super) revision: u64,
    pub(super) unavailable_until: Ms,
    /// When the leases of the living nodes expire.
    pub(super) alive: BTreeMap<usize, Ms>,
    pub(super) groups: BTreeMap<Name, (Group, u64)>,
    pub(super) vms: BTreeMap<Uid, (Vm, u64)>,
    pub(super) statuses: BTreeMap<(usize, Uid), (VmStatus, u64)>,
    /// VMs with values that cannot be decoded, for now.
    pub(super) garbled: BTreeSet<Uid>,
}

impl Etcd {
    pub(super) fn new() -> Self {
        let groups = [("keep", 1001, None), ("swap", 1002, Some(40))].map(|(name, uid, secs)| {
            let mut group = tests::group(name, uid, None);
            group.replacement = secs.map(replacement);
            (group.meta.name.clone(), (group, 1))
        });
        Self {
            cluster_id: 1,
            revision: 1,
            unavailable_until: 0,
            alive: BTreeMap::new(),
            groups: groups.into(),
            vms: BTreeMap::new(),
            statuses: BTreeMap::new(),
            garbled: BTreeSet::new(),
        }
    }

    pub(super) fn header(&self) -> Header {
        Header {
            cluster_id: self.cluster_id,
            revision: self.revision,
        }
    }

    pub(super) fn is_available(&self, now: Ms) -> bool {
        now >= self.unavailable_until
    }

    /// Leases do not expire while there is no leader.
    pub(super) fn expire(&mut self, now: Ms) {
        if self.is_available(now) {
            let before = self.alive.len();
            self.alive.retain(|_, expires| *expires > now);
            self.revision += (before - self.alive.len()) as u64;
        }
    }

    /// A new leader: leases live at least their TTL again.
    pub(super) fn elect(&mut self, unavailable_until: Ms, rng: &mut Rng) {
        self.unavailable_until = self.unavailable_until.max(unavailable_until);
        for expires in self.alive.values_mut() {
            *expires = unavailable_until + TTL + rng.range(0, 20_000);
        }
    }

    pub(super) fn put_vm(&mut self, vm: Vm) {
        self.revision += 1;
        self.vms.insert(vm.meta.uid, (vm, self.revision));
    }

    pub(super) fn remove_vm(&mut self, uid: Uid) {
        self.revision += 1;
        self.vms.remove(&uid);
    }

    pub(super) fn put_replacement(&mut self, group: &Name, secs: Option<u64>) {
        self.revision += 1;
        let (group, revision) = self.groups.get_mut(group).expect("a group");
        group.replacement = secs.map(replacement);
        group.meta.generation += 1;
        *revision = self.revision;
    }

    pub(super) fn status_revision(&self, node: usize, uid: Uid) -> u64 {
        let status = self.statuses.get(&(node, uid));
        status.map_or(0, |(_, revision)| *revision)
    }

    /// Whether the key of the node exists afterwards.
    pub(super) fn renew(&mut self, node: usize, create: bool, now: Ms) -> bool {
        if create && !self.alive.contains_key(&node) {
            self.revision += 1;
            self.alive.insert(node, now);
        }
        let expires = self.alive.get_mut(&node);
        let is_alive = expires.is_some();
        if let Some(expires) = expires {
            *expires = (*expires).max(now + TTL);
        }
        is_alive
    }

    pub(super) fn put_status(&mut self, node: usize, write: &Write) {
        if self.status_revision(node, write.uid) != write.revision {
            return;
        }
        self.revision += 1;
        match &write.status {
            Some(status) => {
                let value = (status.clone(), self.revision);
                self.statuses.insert((node, write.uid), value);
            }
            None => {
                self.statuses.remove(&(node, write.uid));
            }
        }
    }

    /// What a node reads.
    pub(super) fn list(&self, node: usize) -> (Objects, BTreeMap<Uid, u64>) {
        let groups = self.groups.iter();
        let own = self.statuses.iter().filter(|((of, _), _)| *of == node);
        let own: Vec<_> = own
            .map(|((_, uid), (status, revision))| (*uid, status, *revision))
            .collect();
        let vms = self.vms.iter().map(|(uid, (vm, _))| {
            let value = match self.garbled.contains(uid) {
                true => tests::undecodable(),
                false => Ok(vm.clone()),
            };
            (*uid, value)
        });
        let objects = Objects {
            groups: groups
                .map(|(name, (group, _))| (name.clone(), Ok(group.clone())))
                .collect(),
            vms: vms.collect(),
            statuses: own
                .iter()
                .map(|(uid, status, _)| (*uid, Ok((*status).clone())))
                .collect(),
            subnets: BTreeMap::new(),
        };
        let revisions = own.iter().map(|(uid, _, revision)| (*uid, *revision));
        (objects, revisions.collect())
    }
}

pub(super) fn replacement(stop_after: u64) -> Replacement {
    let stop_after = Duration::from_secs(stop_after);
    Replacement {
        stop_after,
        replace_after: stop_after + STOP_TIME + MARGIN,
        reconcile: Default::default(),
    }
}
