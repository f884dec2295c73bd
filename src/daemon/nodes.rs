//! Answers requests of the REST API for VMs: lists of them, one, their tags.
//! Out of scope: HTTP; the VMs themselves ([`crate::reconcile::group`]).

use super::app_state::AppState;
use super::failure::Failure;
use super::group_events::requester;
use super::not_found::not_found;
use super::orders;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::Name;
use crate::api::node::{Node, NodeDetails, TagChange};
use crate::api::tag::TagSet;
use crate::api::view::Kind;
use crate::api::vm::Vm;
use crate::clock;
use crate::reconcile::group;
use crate::store::World;
use crate::wire::Refusal;

/// A VM that is not being deleted.
fn existing<'w>(world: &'w World, name: &Name) -> Result<&'w Vm, Refusal> {
    let found = world.vm_named(name).filter(|vm| !vm.meta.deleting);
    found.ok_or_else(|| not_found(world, Kind::Vm, name))
}

impl AppState {
    /// The VMs of a group, or all.
    pub(super) async fn list_nodes(&self, group: Option<Name>) -> Result<Vec<Node>, Refusal> {
        let nodes = self.engine.store.read_durable(|world| {
            if let Some(name) = &group {
                let found = world.group(name).filter(|group| !group.meta.deleting);
                found.ok_or_else(|| not_found(world, Kind::HostGroup, name))?;
            }
            Ok(self.status_builder.nodes(world, group.as_ref()))
        });
        nodes.await
    }

    /// A VM with the state of its agent.
    pub(super) async fn find_node(&self, name: Name) -> Result<NodeDetails, Refusal> {
        let found = self.engine.store.read_durable(|world| {
            let vm = existing(world, &name)?;
            let mut details = self.status_builder.node_details(world, vm);
            let agent = self.engine.agents.condition(vm);
            details.node.agent = agent.map(|condition| condition.reason);
            Ok(details)
        });
        found.await
    }

    /// Changes the tags of a VM on demand.
    pub(super) async fn change_tags(
        &self,
        name: Name,
        change: TagChange,
    ) -> Result<TagSet, Refusal> {
        let engine = &self.engine;
        let stored = engine.store.write(|txn| {
            let group = existing(txn.world(), &name).map_err(Failure::Refused)?.group.clone();
            let changed = group::set_tags(txn, &name, &change)
                .map_err(|error| Failure::Refused(orders::refusal(engine, &group, error)))?;
            changed.ok_or_else(|| {
                let why = format!(
                    "vm/{name} is one of the VMs that `count` of hostgroup/{group} keeps: it has no tags"
                );
                Failure::Refused(Refusal::Conflict(vec![why]))
            })
        });
        let tags = stored.await?;
        let message = format!("tags changed {}", requester());
        let (now, object) = (clock::now(), ObjectRef::vm(&name));
        let events = engine.store.events();
        events.note(
            now,
            EventType::Normal,
            &object,
            EventReason::Configured,
            &message,
        );
        Ok(tags)
    }
}
