//! The interface between the server and the daemon for requests about the fleet.
//! Out of scope: HTTP, JSON; requests about this host ([`super::backend`]).

use std::future::Future;

use super::operation::{Effect, Refusal};
use crate::api::meta::{Name, Uid};
use crate::api::view::{
    Applied, ApplyResult, DiffResult, FleetAccept, FleetGroup, FleetList, FleetNode, FleetStatus,
    FleetSubnet, FleetVm, NodeAction, NodeVm, Scale, Source,
};

/// The operations on the fleet that this daemon is a node of; without one, each is a [`Refusal::Conflict`]. Reads contain every change
/// that was answered before, by any daemon of the fleet.
///
/// Implementations write the methods as `async fn`.
pub trait FleetBackend {
    /// The connection of this daemon to the fleet. An etcd that does not answer is part of it, and no refusal.
    fn fleet_status(&self) -> impl Future<Output = Result<FleetStatus, Refusal>> + Send;

    /// Accepts the cluster that etcd has now as that of the fleet. Returns its id.
    fn fleet_accept(
        &self,
        request: FleetAccept,
    ) -> impl Future<Output = Result<FleetAccept, Refusal>> + Send;

    /// Stores the groups of these manifests, all or none; with [`Effect::DryRun`] only checks them.
    fn fleet_apply(
        &self,
        sources: Vec<Source>,
        effect: Effect,
    ) -> impl Future<Output = Result<Vec<ApplyResult>, Refusal>> + Send;

    /// What applying these manifests would change.
    fn fleet_diff(
        &self,
        sources: Vec<Source>,
    ) -> impl Future<Output = Result<DiffResult, Refusal>> + Send;

    /// All groups, or that of this name.
    fn fleet_groups(
        &self,
        name: Option<Name>,
    ) -> impl Future<Output = Result<FleetList<FleetGroup>, Refusal>> + Send;

    /// Requests the deletion of a group; with a uid, only of that group. Returns when the request is stored, not when the group is removed.
    fn fleet_delete(
        &self,
        group: Name,
        uid: Option<Uid>,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Changes the number of VMs of a group.
    fn fleet_scale(
        &self,
        group: Name,
        scale: Scale,
    ) -> impl Future<Output = Result<ApplyResult, Refusal>> + Send;

    /// All VMs, or that of this name.
    fn fleet_vms(
        &self,
        name: Option<Name>,
    ) -> impl Future<Output = Result<FleetList<FleetVm>, Refusal>> + Send;

    /// All nodes, or that of this name.
    fn fleet_nodes(
        &self,
        name: Option<Name>,
    ) -> impl Future<Output = Result<FleetList<FleetNode>, Refusal>> + Send;

    /// Changes what administrators specify of a node.
    fn fleet_node_action(
        &self,
        node: Name,
        action: NodeAction,
    ) -> impl Future<Output = Result<Applied, Refusal>> + Send;

    /// The VMs that may have a copy on a node, with the reasons why they stay.
    fn fleet_node_vms(
        &self,
        node: Name,
    ) -> impl Future<Output = Result<Vec<NodeVm>, Refusal>> + Send;

    /// The subnets of groups in bridge mode on nodes.
    fn fleet_subnets(&self)
    -> impl Future<Output = Result<FleetList<FleetSubnet>, Refusal>> + Send;
}
