//! Handlers for requests about the fleet.
//! Out of scope: HTTP (`wire`), etcd ([`crate::fleet`]).

use std::sync::Arc;
use std::time::Duration;

use super::super::answers::{off_thread, parse_all};
use super::super::app_state::AppState;
use super::Member;
use crate::api::manifest::{Draft, Scope};
use crate::api::meta::{Name, Uid};
use crate::api::view::{
    Applied, ApplyResult, DiffResult, FleetAccept, FleetContact, FleetGroup, FleetList, FleetNode,
    FleetScheduler, FleetStatus, FleetSubnet, FleetUnchanged, FleetVm, NodeAction, NodeVm, Scale,
    Source,
};
use crate::clock;
use crate::fleet::contact::{Boottime, Facts};
use crate::fleet::keys::Key;
use crate::fleet::kv::ClusterId;
use crate::fleet::link::Link;
use crate::fleet::verbs::{self, Snapshot};
use crate::wire::{Effect, FleetBackend, Refusal};

/// The refusal of a daemon without `fleet:`.
const NO_FLEET: &str = "this daemon is not part of a fleet: set fleet: in /etc/slice/sliced.yaml";

impl AppState {
    fn member(&self) -> Result<Member, Refusal> {
        let why = match self.fleet.failure() {
            Some(why) => format!("the settings of the fleet cannot be used: {why}"),
            None => NO_FLEET.to_owned(),
        };
        let member = self.fleet.member();
        member.ok_or_else(|| Refusal::Conflict(vec![why]))
    }

    fn link(&self) -> Result<Arc<Link>, Refusal> {
        Ok(self.member()?.link)
    }

    /// What the agent of this node reports.
    fn unchanged(&self) -> Vec<FleetUnchanged> {
        let member = self.fleet.member();
        let reports = member.map(|member| member.agent.reports());
        let reports = reports.unwrap_or_default().into_iter();
        let unchanged = reports.map(|report| FleetUnchanged {
            uid: report.uid,
            reason: format!("{:?}", report.reason),
            message: report.message,
        });
        unchanged.collect()
    }

    async fn snapshot(&self) -> Result<Snapshot, Refusal> {
        let link = self.link()?;
        Snapshot::read(link.client()).await.map_err(refusal)
    }
}

fn refusal(error: verbs::Error) -> Refusal {
    match error {
        verbs::Error::NotFound(object) => Refusal::NotFound(object),
        verbs::Error::Invalid(causes) => Refusal::Invalid(causes),
        verbs::Error::Conflict(causes) => Refusal::Conflict(causes),
        error @ (verbs::Error::Busy | verbs::Error::Denied { .. }) => {
            Refusal::Conflict(vec![error.to_string()])
        }
        error @ (verbs::Error::Unknown(_) | verbs::Error::Etcd(_) | verbs::Error::Encode(_)) => {
            Refusal::Failed(error.to_string())
        }
    }
}

/// The list, unless an object that was named is not in it.
fn found<T>(
    list: FleetList<T>,
    name: Option<&Name>,
    kind: &str,
    key: impl FnOnce(Name) -> Option<Key>,
) -> Result<FleetList<T>, Refusal> {
    let Some(name) = name.filter(|_| list.items.is_empty()) else {
        return Ok(list);
    };
    let key = key(name.clone()).map(|key| key.to_string());
    let unreadable = list.unreadable.iter();
    let mut unreadable = unreadable.filter(|value| Some(&value.key) == key.as_ref());
    Err(match unreadable.next() {
        Some(value) => Refusal::Conflict(vec![format!(
            "the stored {kind}/{name} cannot be read: {}",
            value.error
        )]),
        None => Refusal::NotFound(format!("{kind}/{name}")),
    })
}

async fn drafts(sources: Vec<Source>) -> Result<Vec<Draft>, Refusal> {
    off_thread(move || parse_all(sources, Scope::Fleet)).await
}

/// The cluster that an administrator has to accept.
fn unaccepted(facts: Option<Facts>) -> Option<u64> {
    Some(facts?.unaccepted?.cluster_id)
}

/// Waits until the decision about the cluster is on stable storage.
async fn stored(link: &Link) -> Result<(), Refusal> {
    let mut changes = link.subscribe();
    let waiting = async {
        while !link.is_stored() {
            changes.borrow_and_update();
            // A store that is slow is no change of the connection.
            let _ = tokio::time::timeout(STORE_STEP, changes.changed()).await;
        }
    };
    let waiting = tokio::time::timeout(STORE_DEADLINE, waiting).await;
    waiting.map_err(|_| {
        Refusal::Failed("the decision is not stored yet: see `slicectl fleet status`".to_owned())
    })
}

/// How long a decision waits for stable storage, and how often it looks.
const STORE_DEADLINE: Duration = Duration::from_secs(10);
const STORE_STEP: Duration = Duration::from_millis(50);

impl FleetBackend for AppState {
    async fn fleet_status(&self) -> Result<FleetStatus, Refusal> {
        let Member { link, control, .. } = self.member()?;
        let leader = verbs::leader(link.client()).await;
        let now = Boottime(clock::boottime());
        let (condition, facts, revision) =
            link.read(|mirror, contact| (contact.condition(now), contact.facts(), mirror.revision));
        let hexadecimal = |id| ClusterId(id).to_string();
        let scheduler = control.status();
        Ok(FleetStatus {
            unchanged: self.unchanged(),
            last_error: link.last_error(),
            scheduler: FleetScheduler {
                is_leader: scheduler.is_leader,
                planned_at: scheduler.last_plan.map(|plan| plan.at),
                not_planned: scheduler.not_planned,
                left_out: scheduler.left_out,
                last_error: scheduler.last_error,
            },
            node: link.node().clone(),
            endpoints: link.client().endpoints().map(ToString::to_string).collect(),
            contact: FleetContact {
                status: condition.status,
                reason: condition.reason.to_string(),
                message: condition.message,
            },
            cluster_id: facts.map(|facts| hexadecimal(facts.cluster_id)),
            unaccepted_cluster_id: unaccepted(facts).map(hexadecimal),
            revision,
            error: leader.as_ref().err().map(ToString::to_string),
            leader: leader.ok().and_then(|leader| leader.node),
        })
    }

    async fn fleet_accept(&self, request: FleetAccept) -> Result<FleetAccept, Refusal> {
        let link = self.link()?;
        let conflict = |cause: String| Err(Refusal::Conflict(vec![cause]));
        let Some(found) = unaccepted(link.facts()) else {
            return conflict(
                "there is no cluster to accept: see `slicectl fleet status`".to_owned(),
            );
        };
        let id = ClusterId(found).to_string();
        if let Some(expected) = request.cluster_id.filter(|expected| *expected != id) {
            return conflict(format!(
                "etcd has the cluster id {id}, expected {expected}: it has changed again"
            ));
        }
        link.accept(found, Boottime(clock::boottime()));
        stored(&link).await?;
        Ok(FleetAccept {
            cluster_id: Some(id),
        })
    }

    async fn fleet_apply(
        &self,
        sources: Vec<Source>,
        effect: Effect,
    ) -> Result<Vec<ApplyResult>, Refusal> {
        let link = self.link()?;
        let drafts = drafts(sources).await?;
        let is_dry_run = effect == Effect::DryRun;
        let results = verbs::apply(link.client(), &drafts, clock::now(), is_dry_run);
        results.await.map_err(refusal)
    }

    async fn fleet_diff(&self, sources: Vec<Source>) -> Result<DiffResult, Refusal> {
        let link = self.link()?;
        let drafts = drafts(sources).await?;
        let result = verbs::diff(link.client(), &drafts).await;
        result.map_err(refusal)
    }

    async fn fleet_groups(&self, name: Option<Name>) -> Result<FleetList<FleetGroup>, Refusal> {
        let list = verbs::groups(&self.snapshot().await?, name.as_ref());
        found(list, name.as_ref(), "hostgroup", |name| {
            Some(Key::Group(name))
        })
    }

    async fn fleet_delete(&self, group: Name, uid: Option<Uid>) -> Result<(), Refusal> {
        let link = self.link()?;
        let deleted = verbs::delete_group(link.client(), &group, uid).await;
        deleted.map_err(refusal)
    }

    async fn fleet_scale(&self, group: Name, scale: Scale) -> Result<ApplyResult, Refusal> {
        let link = self.link()?;
        let result = verbs::scale(link.client(), &group, &scale).await;
        result.map_err(refusal)
    }

    async fn fleet_vms(&self, name: Option<Name>) -> Result<FleetList<FleetVm>, Refusal> {
        verbs::vms(&self.snapshot().await?, name.as_ref()).map_err(refusal)
    }

    async fn fleet_nodes(&self, name: Option<Name>) -> Result<FleetList<FleetNode>, Refusal> {
        let list = verbs::nodes(&self.snapshot().await?, name.as_ref());
        found(list, name.as_ref(), "node", |name| {
            Some(Key::NodeStatus(name))
        })
    }

    async fn fleet_node_action(&self, node: Name, action: NodeAction) -> Result<Applied, Refusal> {
        let link = self.link()?;
        let done = verbs::act_on_node(link.client(), &node, action, clock::now()).await;
        done.map_err(refusal)
    }

    async fn fleet_node_vms(&self, node: Name) -> Result<Vec<NodeVm>, Refusal> {
        let snapshot = self.snapshot().await?;
        let vms =
            off_thread(move || verbs::node_vms(snapshot, &node, clock::now()).map_err(refusal));
        vms.await
    }

    async fn fleet_subnets(&self) -> Result<FleetList<FleetSubnet>, Refusal> {
        Ok(verbs::subnets(&self.snapshot().await?))
    }
}
