//! Builds objects as the API returns them, from the store only. Pure. The results are not stored.
//! Out of scope: output for users, the host.

mod condition;
pub mod explain;
mod host_network;
mod node;
pub mod traverse;
pub mod watch_log;

use condition::{
    condition_view, for_generation, is_ready_and_observed, known, not_ready_message,
    ready_condition, status_from,
};
use host_network::{group_reason, host_condition, host_fault_condition, host_warnings, is_stuck};

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::api::condition::{Condition, Reason, Status};
use crate::api::host_group::HostGroup;
use crate::api::lease::{Address, Lease};
use crate::api::meta::{Meta, Name};
use crate::api::network::{Connection, NetworkSpec};
use crate::api::stage::{STAGES, Stage, StageStatus};
use crate::api::view::{
    ConditionView, FirewallStatus, GroupStatus, GroupView, LeaseView, MetaView, NetworkStatus,
    VmStatus, VmView, VmmState, VmmStatus,
};
use crate::api::vm::{Hypervisor, Vm};
use crate::owner::{Instance, RunDir};
use crate::store::{HostFault, ReadOnly, World};

use crate::reconcile::checkpoint;
use crate::reconcile::connection;
use crate::reconcile::group::BlockedReason;
use crate::reconcile::net::MTU;
use crate::reconcile::power::{ProcessExit, VmmCheckpoint};
use crate::reconcile::vmm::VmmPaths;
use crate::vmm::NAME_SERVERS;

/// What blocks a group, in addition to its VMs.
#[derive(Clone, Debug, Default)]
pub struct GroupFaults {
    /// The problems of its manifest.
    pub manifest_problems: Vec<String>,
    /// The reason why it cannot converge.
    pub blocked_reason: Option<BlockedReason>,
}

/// The daemon that owns the objects.
#[derive(Clone, Debug)]
pub struct StatusBuilder {
    /// Part of the names of host resources.
    pub instance: Instance,
    /// The base of the paths.
    pub run_dir: RunDir,
}

/// Returns the warnings about the result of a CNI network.
fn network_warnings(vm: &Vm, stages: &StageStatuses<'_>) -> Vec<String> {
    let Some(mut known) = checkpoint::connection(stage_status(stages, Stage::Net)) else {
        return Vec::new();
    };
    // The name servers of the VM's spec replace those of the network.
    if vm.spec.dns_servers.is_empty() {
        let ignored = known.dns.iter().skip(NAME_SERVERS);
        known.warnings.extend(ignored.map(|server| {
            format!(
                "the CNI network provides the name server {server}, but a guest gets at most two"
            )
        }));
    }
    known.warnings
}

/// Formats a route as `ip route` does.
fn route((network, next_hop): &(Ipv4Network, Option<Ipv4Addr>)) -> String {
    match next_hop {
        None => network.to_string(),
        Some(next_hop) => format!("{network} via {next_hop}"),
    }
}

impl StatusBuilder {
    /// The view of a VM.
    pub fn vm(&self, world: &World, vm: &Vm) -> VmView {
        let uid = vm.meta.uid;
        let lease = world.lease(&vm.meta.name);
        let stages = STAGES.map(|stage| (stage, world.status(uid, stage)));
        let stage_conditions = known(world, vm);
        let host_fault = world.host_fault(vm);
        let mut conditions: Vec<ConditionView> = stage_conditions
            .iter()
            .filter_map(|(stage, condition)| {
                let condition = for_generation(condition.as_ref()?, vm.meta.generation);
                let condition = match (stage, host_fault) {
                    (Stage::Firewall, Some(HostFault::Unenforced(host))) => {
                        host_fault_condition(host, vm.meta.generation)
                    }
                    _ => condition,
                };
                Some(condition_view(stage.to_string(), &condition))
            })
            .collect();
        let ready = is_ready_and_observed(world, vm);
        conditions.push(condition_view(
            "Ready".into(),
            &ready_condition(&vm.meta, ready, &stage_conditions, host_fault),
        ));
        let warnings = host_warnings(world, vm);
        conditions.extend(host_condition(world, vm, &warnings));
        VmView {
            metadata: MetaView {
                group: Some(vm.group.clone()),
                finalizers: stages
                    .iter()
                    .filter(|(_, status)| status.is_some_and(|status| status.acquired))
                    .map(|(stage, _)| stage.finalizer())
                    .collect(),
                ..meta_view(&vm.meta)
            },
            spec: vm.spec.clone(),
            power: vm.power,
            on_demand: vm.on_demand.as_ref().map(|made| made.overrides.clone()),
            status: VmStatus {
                ready,
                conditions,
                network: self.network(vm, lease, &stages),
                firewall: firewall_status(vm, stage_status(&stages, Stage::Firewall)),
                vmm: self.vmm(world, vm, stage_status(&stages, Stage::Vmm)),
                // Whether it exists is not known to the store.
                disk: None,
                warnings: [
                    vm.spec.network.warnings(),
                    network_warnings(vm, &stages),
                    warnings,
                ]
                .concat(),
            },
        }
    }

    fn network(
        &self,
        vm: &Vm,
        lease: Option<&Lease>,
        stages: &StageStatuses<'_>,
    ) -> Option<NetworkStatus> {
        let net = stage_status(stages, Stage::Net);
        let exists = net.is_some_and(|status| status.acquired);
        let connection = self.connection(vm, lease, net)?;
        Some(NetworkStatus {
            mode: vm.spec.network.mode(),
            ip: connection.ip,
            prefix_len: connection.prefix_len,
            addresses: connection.addresses.clone(),
            gateway: connection.gateway,
            routes: connection.routes.iter().map(route).collect(),
            mac: connection.mac,
            dns: match vm.spec.dns_servers.as_slice() {
                [] => connection.dns,
                own => own.to_vec(),
            },
            netns: connection.netns.filter(|_| exists),
            tap: connection.tap,
            host_link: connection.host_link.filter(|_| exists),
            mtu: connection.mtu,
        })
    }

    /// The connection in the checkpoint of the Net stage, or, before the stage has converged, the one computed from the lease.
    fn connection(
        &self,
        vm: &Vm,
        lease: Option<&Lease>,
        net: Option<&StageStatus>,
    ) -> Option<Connection> {
        if let Some(connection) = checkpoint::connection(net) {
            return Some(connection);
        }
        let uid = vm.meta.uid;
        let address = &lease?.address;
        match (&vm.spec.network, address) {
            (NetworkSpec::Isolated(_), Address::Isolated { block, .. }) => Some(
                connection::isolated(&self.instance, &self.run_dir, uid, *block),
            ),
            (NetworkSpec::Bridge(spec), Address::Bridge { bridge, .. }) => {
                let port = (bridge.as_str(), spec.tap(vm.index));
                Some(connection::on_bridge(
                    &self.instance,
                    uid,
                    address,
                    port,
                    MTU,
                ))
            }
            _ => None,
        }
    }

    fn vmm(&self, world: &World, vm: &Vm, stage: Option<&StageStatus>) -> VmmStatus {
        let checkpoint = checkpoint::vmm(stage);
        let state = state(vm, stage, &checkpoint);
        let process = checkpoint.process.as_ref().filter(|_| match state {
            VmmState::Running | VmmState::Paused | VmmState::Stopping => true,
            VmmState::Starting | VmmState::Stopped | VmmState::Failed | VmmState::None => false,
        });
        // Before its first start there is no log.
        let has_run = checkpoint.process.is_some() || checkpoint.last_exit.is_some();
        let paths = VmmPaths::of(&self.run_dir, world, vm);
        VmmStatus {
            hypervisor: vm.spec.hypervisor,
            pid: process.map(|process| process.identity.pid),
            state,
            user: world.vmm_id(vm.meta.uid),
            confined_by: process.and_then(|process| process.confined_by.clone()),
            started_at: process.map(|process| process.started_at),
            restarts: checkpoint.restarts,
            last_exit: checkpoint.last_exit.as_ref().map(ProcessExit::view),
            api_socket: paths.api_socket.filter(|_| process.is_some()),
            log: paths.log.filter(|_| has_run),
        }
    }

    /// The view of a group.
    pub fn group(&self, world: &World, group: &HostGroup, faults: &GroupFaults) -> GroupView {
        let problems = &faults.manifest_problems;
        let blocked_reason = faults.blocked_reason.as_ref();
        let vms: Vec<&Vm> = world.vms_of(&group.meta.name).collect();
        let template = &group.spec.template;
        let updated = vms.iter().filter(|vm| match group.orders.get(&vm.index) {
            None => vm.spec == *template,
            Some(order) => vm.spec == order.overrides.spec(template),
        });
        let updated = u32::try_from(updated.count()).unwrap_or(u32::MAX);
        let ready_count = vms.iter().filter(|vm| is_ready_and_observed(world, vm));
        let ready_count = u32::try_from(ready_count.count()).unwrap_or(u32::MAX);
        let with_reason = |reason| {
            let vms = vms.iter().filter(|vm| is_settled_with(world, vm, reason));
            u32::try_from(vms.count()).unwrap_or(u32::MAX)
        };
        let current = u32::try_from(vms.len()).unwrap_or(u32::MAX);
        let desired = u32::try_from(group.size()).unwrap_or(u32::MAX);
        // A VM that is paused or stopped as requested is settled.
        let mut unsettled = vms.iter().filter(|vm| !world.is_settled(vm));
        // One that waiting does not help is reported before those that make progress.
        let stuck = unsettled.clone().find(|vm| is_stuck(world, vm));
        let not_settled = stuck.or_else(|| unsettled.next());
        // A known cause is reported before one that is not known yet.
        let unobserved = vms.iter().find(|vm| !world.is_observed(vm));
        let is_unknown = not_settled.is_none() && unobserved.is_some();
        let not_settled = not_settled.or(unobserved);
        let ready = !group.meta.deleting
            && current == desired
            && updated == desired
            && not_settled.is_none();
        let message = match (ready, not_settled) {
            (true, _) if ready_count < desired => {
                let counts = [
                    (with_reason(Reason::Stopped), "stopped"),
                    (with_reason(Reason::Paused), "paused"),
                ];
                let counts = counts.into_iter().filter(|(count, _)| *count > 0);
                let counts = counts.map(|(count, state)| format!(", {count} {state}"));
                let counts: String = counts.collect();
                format!("{ready_count} of {desired} VMs are Ready{counts}")
            }
            (true, _) => String::new(),
            (false, None) => match blocked_reason {
                Some(blocked_reason) => blocked_reason.message(),
                None if updated < current => {
                    format!("{updated} of {desired} VMs are up to date")
                }
                None => format!("{current} of {desired} VMs exist"),
            },
            (false, Some(vm)) => format!(
                "{ready_count} of {desired} VMs are Ready; {}: {}",
                vm.meta.name,
                not_ready_message(world, vm)
            ),
        };
        let since = vms
            .iter()
            .flat_map(|vm| STAGES.iter().filter_map(|r| world.status(vm.meta.uid, *r)))
            .map(|status| status.condition.since)
            .max()
            .unwrap_or(group.meta.created_at);
        let mut conditions = vec![condition_view(
            "Ready".into(),
            &Condition {
                status: match is_unknown && !group.meta.deleting {
                    true => Status::Unknown,
                    false => status_from(ready),
                },
                reason: match (ready, group.meta.deleting) {
                    (true, _) => Reason::Converged,
                    (false, true) => Reason::Terminating,
                    (false, false) if is_unknown => Reason::NotObserved,
                    (false, false) => match (blocked_reason, not_settled) {
                        (Some(blocked_reason), _) => blocked_reason.reason(),
                        (None, Some(vm)) => group_reason(world, vm),
                        (None, None) => Reason::Converging,
                    },
                },
                message,
                since,
                observed_generation: group.meta.generation,
            },
        )];
        let warnings = vms
            .first()
            .map_or(Vec::new(), |vm| host_warnings(world, vm));
        let host = vms.first().and_then(|vm| {
            let condition = host_condition(world, vm, &warnings)?;
            Some(ConditionView {
                observed_generation: group.meta.generation,
                ..condition
            })
        });
        conditions.extend(host);
        let host = vms.first().and_then(|vm| world.host_fault(vm));
        if let Some(HostFault::Unenforced(host)) = host {
            let found = host_fault_condition(host, group.meta.generation);
            conditions.push(condition_view(Stage::Firewall.to_string(), &found));
        }
        if !problems.is_empty() {
            conditions.push(condition_view(
                "Manifest".into(),
                &Condition {
                    status: Status::False,
                    reason: Reason::ManifestInvalid,
                    message: format!(
                        "the last valid version stays in effect: {}",
                        problems.join("; ")
                    ),
                    since,
                    observed_generation: group.meta.generation,
                },
            ));
        }
        GroupView {
            metadata: meta_view(&group.meta),
            origin: group.origin.clone(),
            spec: group.spec.clone(),
            status: GroupStatus {
                ready,
                conditions,
                desired,
                on_demand: desired - group.spec.count,
                current,
                updated,
                ready_count,
                stopped: with_reason(Reason::Stopped),
                paused: with_reason(Reason::Paused),
                range: world.pool(&group.meta.name).map(|pool| pool.range),
                warnings: [group.spec.template.network.warnings(), warnings].concat(),
            },
        }
    }

    /// The view of a lease.
    pub fn lease(&self, lease: &Lease) -> LeaseView {
        LeaseView {
            metadata: MetaView {
                name: lease.name.clone(),
                uid: None,
                generation: None,
                group: Some(lease.group.clone()),
                created_at: lease.since,
                deleting: false,
                finalizers: Vec::new(),
            },
            block: lease.address.block(),
            ip: lease.address.ip(),
            range: lease.address.range(),
        }
    }
}

type StageStatuses<'w> = [(Stage, Option<&'w StageStatus>); 4];

fn stage_status<'w>(stages: &StageStatuses<'w>, stage: Stage) -> Option<&'w StageStatus> {
    stages
        .iter()
        .find(|(found, _)| *found == stage)
        .and_then(|(_, status)| *status)
}

/// Whether a VM has reached its desired state, paused or stopped, for this reason.
fn is_settled_with(world: &World, vm: &Vm, reason: Reason) -> bool {
    let status = world.status(vm.meta.uid, Stage::Vmm);
    status.is_some_and(|status| {
        let condition = &status.condition;
        condition.reason == reason && condition.is_settled_at(vm.meta.generation)
    })
}

/// The state of a VM's process.
fn state(vm: &Vm, stage: Option<&StageStatus>, checkpoint: &VmmCheckpoint) -> VmmState {
    if vm.spec.hypervisor == Hypervisor::None {
        return VmmState::None;
    }
    let Some(condition) = stage.map(|status| &status.condition) else {
        return VmmState::Starting;
    };
    match (condition.status, condition.reason) {
        _ if vm.meta.deleting => match checkpoint.process {
            Some(_) => VmmState::Stopping,
            None => VmmState::Stopped,
        },
        (Status::True, _) => VmmState::Running,
        (_, Reason::Paused) => VmmState::Paused,
        (_, Reason::Stopping) => VmmState::Stopping,
        (_, Reason::Stopped | Reason::Terminating) => VmmState::Stopped,
        (Status::Unknown, _) | (_, Reason::Waiting | Reason::Converging) => VmmState::Starting,
        (
            Status::False,
            Reason::Converged
            | Reason::Conflict
            | Reason::Contested
            | Reason::NotConverging
            | Reason::ActionFailed
            | Reason::ObserveFailed
            | Reason::NotObserved
            | Reason::Invalid
            | Reason::RangeExhausted
            | Reason::CrashLoop
            | Reason::Failed
            | Reason::ManifestInvalid
            | Reason::StateNotWritable
            | Reason::Answering
            | Reason::NotAnswering
            | Reason::Disabled
            | Reason::UserdataRunning
            | Reason::UserdataFailed
            | Reason::NotProvisioned,
        ) => VmmState::Failed,
    }
}

fn firewall_status(vm: &Vm, stage: Option<&StageStatus>) -> FirewallStatus {
    let policy = vm.spec.network.policy().cloned().unwrap_or_default();
    FirewallStatus {
        default: policy.default_verdict().into(),
        allow: policy.allow,
        drop: policy.drop,
        on_deny: policy.on_deny,
        digest: stage.and_then(|status| status.checkpoint.clone()),
    }
}

fn meta_view(meta: &Meta) -> MetaView {
    MetaView {
        name: meta.name.clone(),
        uid: Some(meta.uid),
        generation: Some(meta.generation),
        group: None::<Name>,
        created_at: meta.created_at,
        deleting: meta.deleting,
        finalizers: Vec::new(),
    }
}

/// The condition of the agent of a VM.
pub fn agent_condition(condition: &Condition) -> ConditionView {
    condition_view("Agent".to_owned(), condition)
}

/// The condition while the store cannot be written: changes are refused, existing objects are still reconciled.
pub fn not_writable_condition(meta: &Meta, read_only: &ReadOnly) -> ConditionView {
    ConditionView {
        kind: "Writable".to_owned(),
        status: Status::False,
        reason: Reason::StateNotWritable,
        message: format!(
            "{}: changes are refused until the state can be written again",
            read_only.why
        ),
        since: read_only.since,
        observed_generation: meta.generation,
    }
}
