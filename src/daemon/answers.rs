//! Handlers for requests on the daemon's socket.
//! Out of scope: HTTP (`wire`), text output (`cli`), executing changes (`reconcile`).

mod explain;
mod garbage;
mod sources;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;

use self::sources::truncated;
pub(super) use self::sources::{off_thread, parse_all};
use super::app_state::AppState;
use super::deletion;
use super::difference;
use super::drafts::store_draft;
use super::failure::Failure;
use super::group_events::{GroupEvent, requester};
use super::not_found::not_found;
use super::objects;
use super::{
    agent, changes, console, host_figures, metrics, orders, power, reach, restrictions, scale,
    secrets, streams, usage,
};
use crate::api::event::{Event, EventReason, EventType, ObjectRef};
use crate::api::host_group::{HostGroup, Origin};
use crate::api::manifest::{Draft, Scope};
use crate::api::meta::Name;
use crate::api::metrics::Metrics;
use crate::api::node::{Node, NodeDetails, TagChange};
use crate::api::on_demand::NewVm;
use crate::api::policy::Packet;
use crate::api::secret::{SecretChange, SecretName, SecretView};
use crate::api::tag::TagSet;
use crate::api::usage::Usage;
use crate::api::validate;
use crate::api::view::{
    Applied, ApplyResult, Check, DiffResult, Explanation, Kind, List, NewVmResult, Orphan,
    RouteInfo, Scale, ServerInfo, Source, WatchRequest,
};
use crate::api::vm::{Hypervisor, PowerCommand};
use crate::clock;
use crate::doctor;
use crate::guest::endpoint::Access;
use crate::host;
use crate::reconcile::host_network;
use crate::reconcile::vmm::VmmPaths;
use crate::store::{self, Txn};
use crate::wire::backend::{HostFigure, LogOutput, LogStart};
use crate::wire::peer::Fleet;
use crate::wire::{Backend, Deletion, Detail, Effect, Refusal, StreamMode};

/// A change is stored without warnings if they cannot be computed within this time.
const WARNING_TIMEOUT: Duration = Duration::from_secs(5);

impl AppState {
    fn stored(&self) -> Vec<HostGroup> {
        self.engine
            .store
            .read(|world| world.groups().cloned().collect())
    }

    /// Parses manifests into drafts that could be stored now.
    async fn checked(&self, sources: Vec<Source>) -> Result<Vec<Draft>, Refusal> {
        let stored = self.stored();
        let allowed = self.engine.processes.files().allowed.clone();
        off_thread(move || {
            let drafts = parse_all(sources, Scope::Host)?;
            let fleet_only = drafts.iter().flat_map(Draft::fleet_only);
            let outside = drafts.iter().flat_map(|draft| allowed.objections(draft));
            let refused: Vec<_> = fleet_only.chain(outside).collect();
            if !refused.is_empty() {
                return Err(Refusal::Invalid(truncated(&refused)));
            }
            match validate::check_apply(&stored, &drafts) {
                Ok(()) => Ok(drafts),
                Err(problems) => Err(Refusal::Conflict(truncated(&problems))),
            }
        })
        .await
    }
}

impl Backend for AppState {
    async fn apply(
        &self,
        sources: Vec<Source>,
        effect: Effect,
    ) -> Result<Vec<ApplyResult>, Refusal> {
        let drafts = self.checked(sources).await?;
        let mut tries = restrictions::RETRIES;
        if effect == Effect::DryRun {
            let found = difference::of(&self.engine, &drafts, Detail::Summary).await;
            return Ok(found.groups.into_iter().map(|group| group.result).collect());
        }
        let warnings = self.warnings(&drafts).await;
        let source = requester();
        let change = |txn: &mut Txn<'_>| {
            // Checked again within the transaction, which no other change can interleave with.
            let current: Vec<HostGroup> = txn.world().groups().cloned().collect();
            if let Err(problems) = validate::check_apply(&current, &drafts) {
                return Err(Failure::Refused(Refusal::Conflict(truncated(&problems))));
            }
            let (mut results, mut events) = (Vec::new(), Vec::new());
            for draft in &drafts {
                let event = GroupEvent::of(txn, draft, &source);
                let applied = store_draft(txn, draft, &Origin::Apply, None)?;
                results.push(result(draft, applied));
                events.extend((applied != Applied::Unchanged).then_some(event));
            }
            Ok::<_, Failure>((results, events))
        };
        let store = &self.engine.store;
        let (mut results, events) = loop {
            match store.write(change).await {
                // The write failed together with concurrent changes. Alone, this one may be a change that only restricts.
                Err(Failure::Store(store::Error::Write(_)))
                    if tries > 0 && restrictions::only(store, &drafts) =>
                {
                    tries -= 1;
                }
                stored => break stored?,
            }
        };
        for (result, warnings) in results.iter_mut().zip(warnings) {
            result.warnings.extend(warnings);
        }
        restrictions::warn(store, &mut results);
        let log = store.events();
        events.iter().for_each(|event| event.record(log, ""));
        let unchanged = results.iter().filter(|r| r.applied == Applied::Unchanged);
        let unchanged = unchanged.map(|result| &result.name);
        self.engine.retry_groups(unchanged);
        Ok(results)
    }

    async fn diff(&self, sources: Vec<Source>, detail: Detail) -> Result<DiffResult, Refusal> {
        let drafts = self.checked(sources).await?;
        Ok(difference::of(&self.engine, &drafts, detail).await)
    }

    async fn names(&self, sources: Vec<Source>) -> Result<Vec<Name>, Refusal> {
        let drafts = off_thread(move || parse_all(sources, Scope::Host)).await?;
        Ok(drafts.into_iter().map(|draft| draft.name).collect())
    }

    async fn get(&self, kind: Kind, name: Option<Name>) -> Result<List, Refusal> {
        let store = &self.engine.store;
        let found = store.read_durable(|world| {
            let (builder, engine, intake) = (&self.status_builder, &self.engine, &self.intake);
            let found = objects::bounded(builder, engine, intake, world, kind, name.as_ref());
            if let (Some(name), []) = (&name, &found.0[..]) {
                return Err(not_found(world, kind, name));
            }
            let version = match found.1 {
                0 => (self.watches).add_list(world, kind, name.as_ref(), &found.0),
                _ => self.watches.add_part(world, &found.0),
            };
            Ok((found, version))
        });
        let ((items, more), version) = found.await?;
        Ok(List {
            items,
            more,
            resource_version: Some(version),
        })
    }

    async fn watch(&self, request: WatchRequest) -> Result<BoxStream<'static, Bytes>, Refusal> {
        changes::watch(self, request)
    }

    async fn delete(&self, kind: Kind, name: Name, how: Deletion) -> Result<(), Refusal> {
        let object = ObjectRef::Named(kind, name.clone());
        let store = &self.engine.store;
        let by = (&*self.intake, &*self.fleet);
        let deleted = store.write(|txn| deletion::delete(txn, by, (kind, &name), how));
        if !deleted.await? {
            return Err(store.read(|world| not_found(world, kind, &name)));
        }
        let (reason, message) = match how {
            Deletion::Graceful => (EventReason::Deleting, "deletion requested"),
            Deletion::Forced => (EventReason::ForceDeleted, "deletion with --force requested"),
        };
        let message = format!("{message} {}", requester());
        let (now, kind) = (clock::now(), EventType::Normal);
        store.events().note(now, kind, &object, reason, &message);
        Ok(())
    }

    async fn scale(&self, group: Name, request: Scale) -> Result<ApplyResult, Refusal> {
        scale::scale(&self.engine, group, request).await
    }

    async fn add_vm(&self, group: Name, request: NewVm) -> Result<NewVmResult, Refusal> {
        orders::add(&self.engine, group, request).await
    }

    async fn nodes(&self, group: Option<Name>) -> Result<Vec<Node>, Refusal> {
        self.list_nodes(group).await
    }

    async fn node(&self, vm: Name) -> Result<NodeDetails, Refusal> {
        self.find_node(vm).await
    }

    async fn set_tags(&self, vm: Name, change: TagChange) -> Result<TagSet, Refusal> {
        self.change_tags(vm, change).await
    }

    async fn host_figures(&self) -> Vec<HostFigure> {
        host_figures::read().await
    }

    async fn shutdown(&self) -> Result<(), Refusal> {
        // The same way as a request of systemd.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
            .map_err(|error| Refusal::Failed(format!("cannot end the daemon: {error}")))
    }

    async fn remove_vm(&self, vm: Name) -> Result<(), Refusal> {
        orders::remove(&self.engine, vm).await
    }

    async fn power(&self, vm: Name, verb: PowerCommand) -> Result<Applied, Refusal> {
        power::set_power(&self.engine, vm, verb).await
    }

    async fn metrics(&self, vm: Name) -> Result<Metrics, Refusal> {
        metrics::read(&self.engine, vm).await
    }

    async fn usage(&self, vm: Name) -> Result<Usage, Refusal> {
        usage::read(&self.engine, &self.status_builder, vm)
    }

    async fn events(
        &self,
        object: Option<ObjectRef>,
        span: StreamMode,
    ) -> Result<BoxStream<'static, Event>, Refusal> {
        Ok(streams::events(self.engine.store.events(), object, span))
    }

    async fn logs(
        &self,
        vm: Name,
        start: LogStart,
        span: StreamMode,
    ) -> Result<LogOutput, Refusal> {
        let (_, paths) = self.vmm_paths(&vm)?;
        match paths.log {
            Some(log) => Ok(streams::log(log, start, span).await),
            None => Err(Refusal::Conflict(vec![format!(
                "vm/{vm} has no log: hypervisor is none"
            )])),
        }
    }

    async fn write_console(&self, vm: Name, keys: Bytes) -> Result<(), Refusal> {
        let (hypervisor, paths) = self.vmm_paths(&vm)?;
        match paths.input {
            Some(pipe) => console::write_input(&pipe, vm.as_str(), &keys),
            None => Err(Refusal::Conflict(vec![format!(
                "vm/{vm} has no console input: hypervisor {hypervisor} does not support it; use `slicectl logs` for output"
            )])),
        }
    }

    async fn agent(&self, vm: Name, access: Option<Access>) -> Result<PathBuf, Refusal> {
        let socket = agent::socket(&self.engine, &vm)?;
        if let Some(access) = access {
            agent::record(&self.engine, &vm, access);
        }
        Ok(socket)
    }

    async fn secrets(&self) -> Result<Vec<SecretView>, Refusal> {
        secrets::list(&self.engine).await
    }

    async fn create_secret(
        &self,
        name: SecretName,
        change: SecretChange,
    ) -> Result<SecretView, Refusal> {
        secrets::create(&self.engine, name, change).await
    }

    async fn update_secret(
        &self,
        name: SecretName,
        change: SecretChange,
    ) -> Result<SecretView, Refusal> {
        secrets::update(&self.engine, name, change).await
    }

    async fn delete_secret(&self, name: SecretName) -> Result<(), Refusal> {
        secrets::delete(&self.engine, name).await
    }

    async fn gc(&self, effect: Effect) -> Result<Vec<Orphan>, Refusal> {
        garbage::collect(&self.engine, effect).await
    }

    async fn doctor(&self) -> Result<Vec<Check>, Refusal> {
        let fail = |error: host::Error| Refusal::Failed(error.to_string());
        let desired = self.engine.desired_host_network();
        let host_network = self.engine.host_network_reconciler();
        let guarded = host_network::routed_ranges(&host_network, &desired)
            .await
            .map_err(fail)?;
        let links = self.engine.our_links(&desired).await.map_err(fail)?;
        let mut checks = doctor::examine(&doctor::Host {
            examiner: doctor::Examiner::Daemon,
            home: self.engine.host.host_netns.clone(),
            instance: self.engine.instance.clone(),
            run_dir: self.engine.run_dir.0.clone(),
            config_dir: self.config_dir.clone(),
            state_dir: self.state_dir.clone(),
            read_only: self.engine.store.read_only().map(|now| now.why),
            vmm_ids: self.engine.vmm_ids,
            allowed: self.engine.processes.files().allowed.clone(),
            cni: self.engine.cni.clone(),
            guarded,
            links,
        })
        .await;
        checks.extend(self.api_problem.lock().clone());
        checks.extend(self.fleet.check());
        Ok(checks)
    }

    async fn explain(&self, vm: Name, request: Packet) -> Result<Explanation, Refusal> {
        explain::answer(&self.engine, vm, request).await
    }

    async fn route(&self, group: Name) -> Result<RouteInfo, Refusal> {
        reach::of(&self.engine, group).await
    }

    fn accept_failed(&self, error: &io::Error) {
        crate::host::error::record_exhaustion(error);
    }

    fn fleet(&self) -> Option<Arc<dyn Fleet>> {
        Some(Arc::clone(&self.peers) as Arc<dyn Fleet>)
    }

    async fn version(&self) -> ServerInfo {
        ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: self.started_at,
            config_dir: self.config_dir.clone(),
            state_dir: self.state_dir.clone(),
            run_dir: self.engine.run_dir.0.clone(),
        }
    }
}

impl AppState {
    fn vmm_paths(&self, vm: &Name) -> Result<(Hypervisor, VmmPaths), Refusal> {
        self.engine.store.read(|world| {
            let found = world.vm_named(vm);
            let found = found.ok_or_else(|| not_found(world, Kind::Vm, vm))?;
            let paths = VmmPaths::of(&self.engine.run_dir, world, found);
            Ok((found.spec.hypervisor, paths))
        })
    }

    /// What applying the drafts would destroy, and what cannot work on this host. A change that takes effect although the host does not
    /// respond is not delayed.
    async fn warnings(&self, drafts: &[Draft]) -> Vec<Vec<String>> {
        let found = difference::warnings(&self.engine, drafts);
        let found = tokio::time::timeout(WARNING_TIMEOUT, found).await;
        found.unwrap_or_default()
    }
}

fn result(draft: &Draft, applied: Applied) -> ApplyResult {
    ApplyResult {
        name: draft.name.clone(),
        applied,
        warnings: draft.warnings.clone(),
    }
}
