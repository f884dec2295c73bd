//! The plan of a node for each combination of an object, a local VM, and a state of contact.
//! Out of scope: many nodes over time ([`super::simulation`]).

use std::time::Duration;

use super::*;
use crate::api::host_group::UpdatePolicy;
use crate::api::meta::{Meta, Timestamp};
use crate::api::network::{IsolatedSpec, NetworkSpec, TapOwner};
use crate::api::policy::Policy;
use crate::api::vm::{Hypervisor, VmSpec};
use crate::fleet::contact::{Event, Header};
use crate::fleet::object::{
    self, Binding, MovingFrom, Phase, Placement, PreviousCopy, Reconcile, Replacement, Resources,
};

mod admission;
mod contact;
mod guard;
mod objects;
mod status;

/// The default.
pub(super) const GRACE: Duration = Duration::from_secs(3);

pub(super) const STOP_AFTER: Duration = Duration::from_secs(60);

/// The times of a VM with the default grace period.
pub(super) fn stop(after: Duration) -> StopTimes {
    StopTimes {
        after,
        within: after + GRACE,
    }
}

pub(super) fn at(secs: u64) -> Boottime {
    Boottime(Duration::from_secs(secs))
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn uid(number: u128) -> Uid {
    Uid(uuid::Uuid::from_u128(number))
}

pub(super) fn template() -> VmSpec {
    VmSpec {
        storage: Default::default(),
        lifecycle: Default::default(),
        guest_access: Default::default(),
        hypervisor: Hypervisor::CloudHypervisor,
        vcpu: 1,
        ram_bytes: 128 << 20,
        kernel_file: None,
        initrd_file: None,
        dns_servers: vec![],
        network: NetworkSpec::Isolated(IsolatedSpec {
            max_connections: None,
            range: None,
            policy: Policy::default(),
            tap_owner: TapOwner::default(),
        }),
    }
}

fn meta(text: &str, number: u128) -> Meta {
    Meta {
        uid: uid(number),
        ..Meta::new(name(text), Timestamp::UNIX_EPOCH)
    }
}

/// A group with the uid 1000 or another one.
pub(super) fn group(text: &str, number: u128, stop_after: Option<Duration>) -> Group {
    Group {
        meta: meta(text, number),
        template_generation: 1,
        spec: HostGroupSpec {
            count: 3,
            update: UpdatePolicy::Rolling,
            template: template(),
        },
        placement: Placement {
            max_unavailable: 1,
            ..Placement::default()
        },
        replacement: stop_after.map(|stop_after| Replacement {
            replace_after: stop_after * 2,
            stop_after,
            reconcile: Reconcile::KeepReplacement,
        }),
    }
}

pub(super) fn binding(node: &str, epoch: u64) -> Binding {
    Binding {
        node: name(node),
        epoch,
        group_generation: 1,
        resources: Resources::default(),
        moving_from: None,
    }
}

/// The VM `web-<index>` of the group `web` with the uid 1000; its uid is the index.
pub(super) fn object(index: u32, binding: Option<Binding>) -> Vm {
    Vm {
        meta: meta(&format!("web-{index}"), index.into()),
        group: name("web"),
        group_uid: uid(1000),
        index,
        group_generation: 1,
        epoch: binding.as_ref().map_or(0, |binding| binding.epoch),
        binding,
        previous: vec![],
        refusals: vec![],
        pending: None,
    }
}

pub(super) fn local(index: u32, epoch: u64) -> LocalVm {
    LocalVm {
        uid: uid(index.into()),
        name: name(&format!("web-{index}")),
        group: name("web"),
        group_uid: uid(1000),
        index,
        epoch,
        group_generation: 1,
        stop: None,
        run: Run::Ready,
        address: None,
        message: None,
    }
}

fn status(epoch: u64, phase: Phase) -> VmStatus {
    VmStatus {
        epoch,
        phase,
        group_generation: 1,
        address: None,
        stops_within: None,
        message: None,
    }
}

/// An error of decoding.
pub(super) fn undecodable<T: serde::de::DeserializeOwned + std::fmt::Debug>()
-> Result<T, DecodeError> {
    let error = object::decode::<T>(br#"{"version":9}"#).unwrap_err();
    Err(error)
}

/// A contact that was renewed at 100 and, if `listed`, listed at 101.
pub(super) fn contact(listed: bool) -> Contact {
    let mut contact = Contact::new(None, Some(at(90)), at(95));
    let header = Header {
        cluster_id: 1,
        revision: 10,
    };
    let ticket = contact.send(at(100));
    let alive = true;
    contact.handle(
        Event::Renewed {
            ticket,
            header,
            alive,
        },
        at(100),
    );
    if listed {
        let ticket = contact.send(at(101));
        contact.handle(Event::Listed { ticket, header }, at(101));
    }
    contact
}

/// Node `n1` at 102.
struct Fixture {
    contact: Contact,
    now: Boottime,
    objects: Objects,
    local: Vec<LocalVm>,
    refusals: BTreeMap<Uid, LocalRefusal>,
    local_groups: Vec<LocalGroup>,
    available: Available,
    guard: GuardState,
}

impl Fixture {
    /// With contact, the group `web`, and no VM.
    fn new() -> Self {
        let mut objects = Objects::default();
        objects
            .groups
            .insert(name("web"), Ok(group("web", 1000, None)));
        Self {
            contact: contact(true),
            now: at(102),
            objects,
            local: vec![],
            refusals: BTreeMap::new(),
            local_groups: vec![],
            available: Available {
                free: Resources {
                    vcpus: 100,
                    ram_bytes: 100 << 30,
                    disk_bytes: 100 << 30,
                    isolated: 100,
                    bridge_ports: 100,
                },
                hypervisors: vec![Hypervisor::CloudHypervisor],
                is_known: true,
                ..Available::default()
            },
            guard: GuardState {
                runs: true,
                vms: BTreeSet::new(),
            },
        }
    }

    fn object(mut self, vm: Vm) -> Self {
        self.objects.vms.insert(vm.meta.uid, Ok(vm));
        self
    }

    fn undecodable(mut self, index: u32) -> Self {
        self.objects.vms.insert(uid(index.into()), undecodable());
        self
    }

    /// The VM, with its group.
    fn local(mut self, vm: LocalVm) -> Self {
        if self.local_groups.is_empty() {
            self.local_groups.push(LocalGroup {
                name: name("web"),
                uid: uid(1000),
                generation: 1,
            });
        }
        if vm.stop.is_some() {
            self.guard.vms.insert(vm.uid);
        }
        self.local.push(vm);
        self
    }

    fn status(mut self, index: u32, status: VmStatus) -> Self {
        self.objects.statuses.insert(uid(index.into()), Ok(status));
        self
    }

    fn group(mut self, group: Result<Group, DecodeError>) -> Self {
        self.objects.groups.insert(name("web"), group);
        self
    }

    fn plan(&self) -> Plan {
        let local = self.local.iter().map(|local| (local.uid, local.clone()));
        plan(&Input {
            node: &name("n1"),
            contact: &self.contact,
            now: self.now,
            objects: &self.objects,
            local: &local.collect(),
            refusals: &self.refusals,
            local_groups: &self.local_groups,
            available: &self.available,
            guard: &self.guard,
        })
    }

    /// The steps in short, without the status keys.
    fn changes(&self) -> Vec<String> {
        let steps = self.plan().steps;
        let changes = steps
            .iter()
            .filter(|step| !matches!(step, Step::PutStatus { .. } | Step::DeleteStatus { .. }));
        changes.map(short).collect()
    }

    fn reports(&self) -> Vec<ReportReason> {
        let reports = self.plan().reports;
        reports.iter().map(|report| report.reason).collect()
    }

    /// The phases that are written; `None` for a status that is removed.
    fn phases(&self) -> Vec<Option<Phase>> {
        let phase = |step: Step| match step {
            Step::PutStatus { status, .. } => Some(Some(status.phase)),
            Step::DeleteStatus { .. } => Some(None),
            _ => None,
        };
        self.plan().steps.into_iter().filter_map(phase).collect()
    }

    fn may_restart(&self, index: u32) -> bool {
        self.plan().restart_allowed.contains(&uid(index.into()))
    }
}

fn short(step: &Step) -> String {
    let number = |uid: &Uid| uid.0.as_u128();
    match step {
        Step::StopVm { uid, cause } => format!("stop {} {cause:?}", number(uid)),
        Step::RemoveVm { uid, cause } => match cause {
            RemoveCause::Deleting { .. } => format!("remove {}", number(uid)),
            RemoveCause::Superseded { epoch, delete_disk } => {
                format!(
                    "remove {} for {epoch}{}",
                    number(uid),
                    if *delete_disk { " with its disk" } else { "" }
                )
            }
        },
        Step::PutGroup {
            name, generation, ..
        } => format!("put group {name} {generation}"),
        Step::AddVm { vm } => format!("add {} {}", number(&vm.uid), vm.epoch),
        Step::UpdateVm {
            uid,
            epoch,
            group_generation,
            ..
        } => format!("update {} {epoch} {group_generation}", number(uid)),
        Step::StartVm { uid } => format!("start {}", number(uid)),
        Step::RefuseVm { uid, epoch, .. } => format!("refuse {} {epoch}", number(uid)),
        Step::ForgetRefusal { uid } => format!("forget {}", number(uid)),
        Step::RemoveGroup { name } => format!("remove group {name}"),
        Step::PutStatus { .. } | Step::DeleteStatus { .. } => unreachable!("filtered"),
    }
}
