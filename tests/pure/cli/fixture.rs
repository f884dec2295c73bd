//! A daemon for tests of the wire and the words: the real server on a real socket, over a world in memory.
//! Out of scope: what is expected.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use slicectl::api::event::{Event, EventReason, EventType, ObjectRef};
use slicectl::api::meta::Name;
use slicectl::api::metrics::{CountingSince, Metrics};
use slicectl::api::network::NetworkSpec;
use slicectl::api::on_demand::NewVm;
use slicectl::api::policy::{Packet, Verdict};
use slicectl::api::view::*;
use slicectl::api::vm::{Hypervisor, Power, PowerCommand};
use slicectl::wire::{self, Backend, Deletion, Effect, Listener, Refusal, StreamMode, packet};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::world;

/// A server that ends with the value.
pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub world: World,
    stop: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fixture {
    /// Over a world with two groups.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let mut fixture = Self {
            dir,
            world: World::default(),
            stop: CancellationToken::new(),
            runtime: Some(runtime),
        };
        for object in world::objects() {
            fixture.world.put(object);
        }
        fixture.serve();
        fixture
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sliced.sock")
    }

    /// Ends the server; streams end with it.
    pub fn stop(&mut self) {
        self.stop.cancel();
        let gone = || !self.socket().exists();
        wait_for("the socket to go", gone);
    }

    /// A server again, over the same world.
    pub fn serve(&mut self) {
        self.stop = CancellationToken::new();
        let runtime = self.runtime.as_ref().unwrap();
        let _inside = runtime.enter();
        let listener = Listener::open(&self.socket(), "no-such-group").unwrap();
        runtime.spawn(wire::serve(listener, self.world.clone(), self.stop.clone()));
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// Looks every 10 ms for at most 5 s.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited in vain for {what}");
}

/// Objects and events in memory; those whose name begins with `stuck` never get ready and never go.
#[derive(Clone)]
pub struct World {
    objects: Arc<Mutex<BTreeMap<(Kind, Name), Object>>>,
    events: Arc<Mutex<Vec<Event>>>,
    changes: broadcast::Sender<Change>,
    happenings: broadcast::Sender<Event>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            objects: Arc::default(),
            events: Arc::new(Mutex::new(world::events())),
            changes: broadcast::channel(1024).0,
            happenings: broadcast::channel(1024).0,
        }
    }
}

impl World {
    pub fn put(&self, object: Object) {
        let key = (object.kind(), object.metadata().name.clone());
        // The lock is held over the send, so that a watch sees every change once.
        let mut objects = self.objects.lock().unwrap();
        let change = match objects.insert(key, object.clone()) {
            None => Change::Added { object },
            Some(_) => Change::Modified { object },
        };
        let _ = self.changes.send(change);
    }

    pub fn remove(&self, kind: Kind, name: &Name) {
        let mut objects = self.objects.lock().unwrap();
        if let Some(object) = objects.remove(&(kind, name.clone())) {
            let _ = self.changes.send(Change::Deleted { object });
        }
    }

    pub fn happen(&self, object: &str, reason: EventReason, message: &str) {
        let event = world::event(EventType::Warning, object, reason, message);
        self.events.lock().unwrap().push(event.clone());
        let _ = self.happenings.send(event);
    }

    /// How many watch.
    pub fn watchers(&self) -> usize {
        self.changes.receiver_count() + self.happenings.receiver_count()
    }

    fn find(&self, kind: Kind, name: &Name) -> Result<Object, Refusal> {
        let objects = self.objects.lock().unwrap();
        let found = objects.get(&(kind, name.clone())).cloned();
        found.ok_or_else(|| Refusal::NotFound(format!("{kind}/{name}")))
    }

    fn select(&self, kind: Kind, name: Option<&Name>) -> Vec<Object> {
        let objects = self.objects.lock().unwrap();
        let wanted = |object: &&Object| {
            object.kind() == kind && name.is_none_or(|name| object.metadata().name == *name)
        };
        objects.values().filter(wanted).cloned().collect()
    }

    fn judge(&self, group: &world::Group) -> Result<Applied, Refusal> {
        match self.find(Kind::HostGroup, &group.name) {
            Err(_) => Ok(Applied::Created),
            Ok(Object::HostGroup(old)) => match old.origin {
                slicectl::api::host_group::Origin::File(path) => {
                    Err(Refusal::Conflict(vec![format!(
                        "hostgroup/{} belongs to {}; change it there",
                        group.name,
                        path.display()
                    )]))
                }
                _ if old.spec.count == group.count => Ok(Applied::Unchanged),
                _ => Ok(Applied::Configured),
            },
            Ok(other) => panic!("{} is no group", other.reference()),
        }
    }
}

impl Backend for World {
    async fn apply(
        &self,
        sources: Vec<Source>,
        effect: Effect,
    ) -> Result<Vec<ApplyResult>, Refusal> {
        let groups = world::groups(&sources)?;
        let mut results = Vec::new();
        for group in &groups {
            results.push(ApplyResult {
                name: group.name.clone(),
                applied: self.judge(group)?,
                warnings: group.warnings.clone(),
            });
        }
        if effect == Effect::DryRun {
            return Ok(results);
        }
        for group in groups {
            let (world, stuck) = (self.clone(), group.name.as_str().starts_with("stuck"));
            self.put(world::group_object(&group, 0));
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                if !stuck {
                    world.put(world::group_object(&group, group.count));
                }
            });
        }
        Ok(results)
    }

    async fn diff(&self, sources: Vec<Source>) -> Result<DiffResult, Refusal> {
        let mut result = DiffResult::default();
        for group in world::groups(&sources)? {
            let applied = self.judge(&group)?;
            if applied != Applied::Unchanged {
                for index in 1..=group.count {
                    let actions = vec!["lease a block".to_owned(), "create a namespace".to_owned()];
                    let vm = format!("vm/{}-{index}", group.name);
                    result.actions.insert(vm, actions);
                }
            }
            result.groups.push(ApplyResult {
                name: group.name,
                applied,
                warnings: group.warnings,
            });
        }
        Ok(result)
    }

    async fn names(&self, sources: Vec<Source>) -> Result<Vec<Name>, Refusal> {
        Ok(world::groups(&sources)?
            .into_iter()
            .map(|group| group.name)
            .collect())
    }

    async fn get(&self, kind: Kind, name: Option<Name>) -> Result<List, Refusal> {
        match name {
            None => Ok(List {
                items: self.select(kind, None),
                more: 0,
            }),
            Some(name) => Ok(List {
                items: vec![self.find(kind, &name)?],
                more: 0,
            }),
        }
    }

    async fn watch(
        &self,
        kind: Kind,
        name: Option<Name>,
    ) -> Result<BoxStream<'static, Change>, Refusal> {
        let mine = move |object: &Object| {
            object.kind() == kind
                && name
                    .as_ref()
                    .is_none_or(|name| object.metadata().name == *name)
        };
        let (there, receiver) = {
            let objects = self.objects.lock().unwrap();
            let there: Vec<Change> = objects
                .values()
                .filter(|object| mine(object))
                .map(|object| Change::Added {
                    object: object.clone(),
                })
                .collect();
            (there, self.changes.subscribe())
        };
        let wanted = move |change: &Change| match change {
            Change::Synced => true,
            Change::Added { object } | Change::Modified { object } | Change::Deleted { object } => {
                mine(object)
            }
        };
        let start = stream::iter(there).chain(stream::iter([Change::Synced]));
        let later = received(receiver).filter(move |change| std::future::ready(wanted(change)));
        Ok(start.chain(later).boxed())
    }

    async fn delete(&self, kind: Kind, name: Name, how: Deletion) -> Result<(), Refusal> {
        let mut object = self.find(kind, &name)?;
        match &mut object {
            Object::HostGroup(group) => group.metadata.deleting = true,
            Object::Vm(vm) => vm.metadata.deleting = true,
            Object::Lease(_) => {
                let cause = format!("lease/{name} goes with its VM, not alone");
                return Err(Refusal::Conflict(vec![cause]));
            }
        }
        self.put(object);
        let world = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if how == Deletion::Forced || !name.as_str().starts_with("stuck") {
                world.remove(kind, &name);
            }
        });
        Ok(())
    }

    async fn add_vm(&self, group: Name, wanted: NewVm) -> Result<NewVmResult, Refusal> {
        if self.find(Kind::HostGroup, &group).is_err() {
            let missing = format!("hostgroup/{group}");
            return Err(Refusal::NotFoundWithSuggestion(
                missing,
                "hostgroup/sandbox".into(),
            ));
        }
        let (name, ask) = wanted.split();
        let name = name.unwrap_or_else(|| world::name("sandbox-x7k2p"));
        let applied = match self.find(Kind::Vm, &name) {
            Err(_) => Applied::Created,
            Ok(Object::Vm(vm)) if vm.on_demand.as_ref() == Some(&ask) => Applied::Unchanged,
            Ok(_) => {
                let why = format!("vm/{name} already exists with other settings");
                return Err(Refusal::Conflict(vec![why]));
            }
        };
        if ask.vcpu.is_some_and(|vcpu| vcpu > 1) {
            let why = format!("vm/{name} asks for more than the group allows");
            return Err(Refusal::Invalid(vec![why]));
        }
        for (state, after) in [(world::State::Conflict, 0), (world::State::Slot, 100)] {
            let (world, group, name) = (self.clone(), group.clone(), name.clone());
            let Object::Vm(mut vm) = world::vm_object(name.as_str(), 50, state) else {
                unreachable!("it is a VM");
            };
            vm.metadata.group = Some(group);
            vm.on_demand = Some(ask.clone());
            let put = async move {
                tokio::time::sleep(Duration::from_millis(after)).await;
                world.put(Object::Vm(vm));
            };
            match after {
                0 => put.await,
                _ if name.as_str().starts_with("stuck") => {}
                _ => drop(tokio::spawn(put)),
            }
        }
        Ok(NewVmResult {
            warnings: (name.as_str() == "odd")
                .then(|| "drop[0] never matches".to_owned())
                .into_iter()
                .collect(),
            name,
            applied,
        })
    }

    async fn remove_vm(&self, vm: Name) -> Result<(), Refusal> {
        match self.find(Kind::Vm, &vm)? {
            Object::Vm(found) if found.on_demand.is_none() => {
                let why = format!("vm/{vm} is one of those that its group counts");
                Err(Refusal::Conflict(vec![why]))
            }
            _ => self.delete(Kind::Vm, vm, Deletion::Graceful).await,
        }
    }

    async fn metrics(&self, vm: Name) -> Result<Metrics, Refusal> {
        let Object::Vm(object) = self.find(Kind::Vm, &vm)? else {
            panic!("vm/{vm} is no VM");
        };
        let hypervisor = object.spec.hypervisor;
        if hypervisor == Hypervisor::None {
            let cause = format!("vm/{vm} has no metrics: hypervisor is none");
            return Err(Refusal::Conflict(vec![cause]));
        }
        let counters = [
            ("net_eth0.rx_bytes_count", 4242),
            ("net_eth0.rx_fails", 0),
            ("vcpu.\u{1b}[2Jexits", 7),
        ];
        let counters = counters.map(|(name, count): (&str, u32)| (name.to_owned(), count.into()));
        Ok(Metrics {
            vm,
            hypervisor,
            since: CountingSince::of(hypervisor),
            counters: counters.into(),
            vmm_error: None,
        })
    }

    async fn power(&self, vm: Name, verb: PowerCommand) -> Result<Applied, Refusal> {
        let Object::Vm(mut object) = self.find(Kind::Vm, &vm)? else {
            panic!("vm/{vm} is no VM");
        };
        let power = match verb {
            PowerCommand::Pause => Power::Paused,
            PowerCommand::Resume | PowerCommand::Start => Power::Running,
            PowerCommand::Restart => Power::Restarting,
            PowerCommand::Stop => Power::Stopped,
        };
        if object.spec.hypervisor == Hypervisor::None {
            let cause = format!("cannot {verb} vm/{vm}: hypervisor is none");
            return Err(Refusal::Conflict(vec![cause]));
        }
        if object.power == power {
            return Ok(Applied::Unchanged);
        }
        object.power = power;
        let world = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            world.put(world::powered(object));
        });
        Ok(Applied::Configured)
    }

    async fn events(
        &self,
        object: Option<ObjectRef>,
        span: StreamMode,
    ) -> Result<BoxStream<'static, Event>, Refusal> {
        let wanted =
            move |event: &Event| object.as_ref().is_none_or(|object| event.object == *object);
        let (past, receiver) = {
            let events = self.events.lock().unwrap();
            (events.clone(), self.happenings.subscribe())
        };
        let past = stream::iter(past);
        let all = match span {
            StreamMode::Once => past.boxed(),
            StreamMode::Follow => past.chain(received(receiver)).boxed(),
        };
        Ok(all
            .filter(move |event| std::future::ready(wanted(event)))
            .boxed())
    }

    async fn write_console(&self, vm: Name, _: Bytes) -> Result<(), Refusal> {
        self.find(Kind::Vm, &vm)?;
        Err(Refusal::Conflict(vec![format!("vm/{vm} is not running")]))
    }

    async fn logs(
        &self,
        vm: Name,
        lines: Option<usize>,
        span: StreamMode,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, Refusal> {
        self.find(Kind::Vm, &vm)?;
        let line = |n: u32| {
            Ok(Bytes::from(format!(
                "[    0.{n:06}] line {n} of the guest\r\n"
            )))
        };
        let all: u32 = if vm.as_str() == "lab-1" { 100_000 } else { 3 };
        let last = lines.map_or(all, |lines| lines.try_into().expect("few lines"));
        let past = stream::iter((all.saturating_sub(last)..all).map(line));
        Ok(match span {
            StreamMode::Once => past.boxed(),
            StreamMode::Follow => {
                let later = received(self.happenings.subscribe())
                    .map(|event| Ok(Bytes::from(format!("{}\n", event.message))));
                past.chain(later).boxed()
            }
        })
    }

    async fn gc(&self, effect: Effect) -> Result<Vec<Orphan>, Refusal> {
        Ok(match effect {
            Effect::DryRun => world::leftovers(),
            Effect::Commit => Vec::new(),
        })
    }

    async fn doctor(&self) -> Result<Vec<Check>, Refusal> {
        Ok(world::checks())
    }

    async fn explain(&self, vm: Name, packet: Packet) -> Result<Explanation, Refusal> {
        let Object::Vm(found) = self.find(Kind::Vm, &vm)? else {
            return Err(Refusal::Failed("it is no VM".into()));
        };
        let (verdict, origin) = found.spec.network.policy().unwrap().evaluate(&packet);
        Ok(Explanation {
            note: (verdict == Verdict::Allow).then(|| "these rules are not in place yet".into()),
            vm,
            packet: packet::text(&packet),
            verdict,
            rule: format!("-A SLICE-POLICY -m comment --comment \"{verdict:?}\""),
            chain: "namespace SLICE-POLICY".into(),
            entry: origin.to_string(),
        })
    }

    async fn route(&self, group: Name) -> Result<RouteInfo, Refusal> {
        let Object::HostGroup(found) = self.find(Kind::HostGroup, &group)? else {
            return Err(Refusal::Failed("it is no group".into()));
        };
        let NetworkSpec::Bridge(bridge) = &found.spec.template.network else {
            let mode = found.spec.template.network.mode();
            let why = format!("hostgroup/{group} is in {mode} mode: no route leads to its VMs");
            return Err(Refusal::Conflict(vec![why]));
        };
        Ok(RouteInfo {
            bridge: bridge.bridge.clone(),
            subnet: found.status.range.unwrap(),
            host: (group.as_str() != "offline").then(|| [192, 168, 1, 20].into()),
            group,
        })
    }

    async fn version(&self) -> ServerInfo {
        ServerInfo {
            version: "9.9.9-test".into(),
            pid: 4242,
            started_at: world::created(),
            config_dir: Path::new("/etc/slice/groups.d").into(),
            state_dir: Path::new("/var/lib/slice").into(),
            run_dir: Path::new("/run/slice").into(),
        }
    }
}

fn received<T: Clone + Send + 'static>(receiver: broadcast::Receiver<T>) -> BoxStream<'static, T> {
    stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.ok().map(|item| (item, receiver))
    })
    .boxed()
}
