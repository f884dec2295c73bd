//! The client of `/v1/fleet`.
//! Out of scope: text output.

use hyper::Method;
use serde::de::DeserializeOwned;

use super::backend::Effect;
use super::client::{Client, NO_BODY, Result};
use super::v1::Sources;
use crate::api::meta::{Name, Uid};
use crate::api::view::{
    Applied, ApplyResult, DiffResult, FleetAccept, FleetGroup, FleetList, FleetNode, FleetStatus,
    FleetSubnet, FleetVm, NodeAction, NodeVm, Scale, Source,
};

impl Client {
    /// See [`super::FleetBackend::fleet_status`].
    pub async fn fleet_status(&self) -> Result<FleetStatus> {
        self.json(Method::GET, "/v1/fleet/status", NO_BODY).await
    }

    /// See [`super::FleetBackend::fleet_accept`].
    pub async fn fleet_accept(&self, request: &FleetAccept) -> Result<FleetAccept> {
        let path = "/v1/fleet/accept";
        self.json(Method::POST, path, Some(request)).await
    }

    /// See [`super::FleetBackend::fleet_apply`].
    pub async fn fleet_apply(
        &self,
        sources: Vec<Source>,
        effect: Effect,
    ) -> Result<Vec<ApplyResult>> {
        let path = format!("/v1/fleet/apply?dry_run={}", effect == Effect::DryRun);
        self.json(Method::POST, &path, Some(&Sources { sources }))
            .await
    }

    /// See [`super::FleetBackend::fleet_diff`].
    pub async fn fleet_diff(&self, sources: Vec<Source>) -> Result<DiffResult> {
        let path = "/v1/fleet/diff";
        self.json(Method::POST, path, Some(&Sources { sources }))
            .await
    }

    /// See [`super::FleetBackend::fleet_groups`].
    pub async fn fleet_groups(&self, name: Option<&Name>) -> Result<FleetList<FleetGroup>> {
        self.fleet_list("groups", name).await
    }

    /// See [`super::FleetBackend::fleet_delete`].
    pub async fn fleet_delete(&self, group: &Name, uid: Option<Uid>) -> Result<()> {
        let path = match uid {
            None => format!("/v1/fleet/groups/{group}"),
            Some(uid) => format!("/v1/fleet/groups/{group}?uid={uid}"),
        };
        self.request(Method::DELETE, &path, NO_BODY).await.map(drop)
    }

    /// See [`super::FleetBackend::fleet_scale`].
    pub async fn fleet_scale(&self, group: &Name, scale: &Scale) -> Result<ApplyResult> {
        let path = format!("/v1/fleet/groups/{group}/scale");
        self.json(Method::PUT, &path, Some(scale)).await
    }

    /// See [`super::FleetBackend::fleet_vms`].
    pub async fn fleet_vms(&self, name: Option<&Name>) -> Result<FleetList<FleetVm>> {
        self.fleet_list("vms", name).await
    }

    /// See [`super::FleetBackend::fleet_nodes`].
    pub async fn fleet_nodes(&self, name: Option<&Name>) -> Result<FleetList<FleetNode>> {
        self.fleet_list("nodes", name).await
    }

    /// See [`super::FleetBackend::fleet_node_action`].
    pub async fn fleet_node_action(&self, node: &Name, action: NodeAction) -> Result<Applied> {
        let path = format!("/v1/fleet/nodes/{node}");
        self.json(Method::POST, &path, Some(&action)).await
    }

    /// See [`super::FleetBackend::fleet_node_vms`].
    pub async fn fleet_node_vms(&self, node: &Name) -> Result<Vec<NodeVm>> {
        let path = format!("/v1/fleet/nodes/{node}/vms");
        self.json(Method::GET, &path, NO_BODY).await
    }

    /// See [`super::FleetBackend::fleet_subnets`].
    pub async fn fleet_subnets(&self) -> Result<FleetList<FleetSubnet>> {
        self.fleet_list("subnets", None).await
    }

    async fn fleet_list<T: DeserializeOwned>(
        &self,
        kind: &str,
        name: Option<&Name>,
    ) -> Result<FleetList<T>> {
        let path = match name {
            None => format!("/v1/fleet/{kind}"),
            Some(name) => format!("/v1/fleet/{kind}/{name}"),
        };
        self.json(Method::GET, &path, NO_BODY).await
    }
}
