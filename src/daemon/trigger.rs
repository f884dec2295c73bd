//! What the kernel tells, as keys to look at.
//! Not here: what is found there.
//!
//! # Why
//! An event says *look*, never *what*. Our own actions make events, too: they are gathered for a moment and each key is
//! nudged once, so that a namespace in the making is looked at once more and not thirty times.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tracing::{debug, warn};

use super::removals::{Removals, Removed};
use crate::api::meta::Uid;
use crate::host::events::{Event, Events, What};
use crate::host::rule::Generation;
use crate::host::{Error, link};
use crate::owner::{self, Instance};
use crate::reconcile::engine::{Engine, Key};
use crate::store::Change;

/// How long events are gathered. Drift is repaired within 2 s; this is the part of it that we choose to wait.
const GATHER: Duration = Duration::from_millis(600);

/// After a failure of the stream, before it is opened anew.
const PAUSE: Duration = Duration::from_secs(1);

/// Which key an event is about.
pub struct Trigger {
    instance: Instance,
    by_link: HashMap<String, Uid>,
    by_entry: HashMap<String, Uid>,
    by_nsid: HashMap<i32, Uid>,
    by_index: HashMap<u32, Uid>,
    places: HashMap<Uid, Place>,
    /// The bridges that VMs are on, with their index while they are there.
    bridges: HashMap<String, Option<u32>>,
}

/// Where a VM's link stands in the host namespace.
struct Place {
    link: String,
    index: Option<u32>,
    nsid: Option<i32>,
}

/// Whom to nudge.
#[derive(Default)]
struct Gathered {
    keys: HashSet<Key>,
    /// VMs whose rules changed, and what the last change left behind.
    rules: HashMap<Uid, Generation>,
    everything: bool,
}

impl Trigger {
    /// Knows no VM yet.
    pub fn new(instance: Instance) -> Self {
        Self {
            instance,
            by_link: HashMap::new(),
            by_entry: HashMap::new(),
            by_nsid: HashMap::new(),
            by_index: HashMap::new(),
            places: HashMap::new(),
            bridges: HashMap::new(),
        }
    }

    /// For as long as the daemon runs.
    pub async fn run(mut self, engine: &Engine) {
        let mut changes = engine.store.watch();
        // At the start everything is looked at anyway.
        let mut missed = Gathered::default();
        while let Err(error) = self.listen(engine, &mut changes, missed).await {
            warn!(%error, "the kernel's events cannot be heard; listening anew");
            tokio::time::sleep(PAUSE).await;
            missed = Gathered {
                everything: true,
                ..Gathered::default()
            };
        }
    }

    async fn listen(
        &mut self,
        engine: &Engine,
        changes: &mut tokio::sync::broadcast::Receiver<Change>,
        mut gathered: Gathered,
    ) -> Result<(), Error> {
        let mut events = engine.hands.home.run(Events::listen).await?;
        let mut removals = watch_removals(engine);
        self.learn(engine).await?;
        let timer = tokio::time::sleep(GATHER);
        tokio::pin!(timer);
        let mut armed = gathered.is_something();
        loop {
            tokio::select! {
                event = events.next() => {
                    self.take_in(event?, &mut gathered);
                    if !armed && gathered.is_something() {
                        timer.as_mut().reset(tokio::time::Instant::from_std(crate::clock::monotonic()) + GATHER);
                        armed = true;
                    }
                }
                removed = next_removal(&mut removals) => {
                    if removed == Removed::Unknown {
                        removals = watch_removals(engine);
                    }
                    self.take_in_removal(removed, &mut gathered);
                    if !armed && gathered.is_something() {
                        timer.as_mut().reset(tokio::time::Instant::from_std(crate::clock::monotonic()) + GATHER);
                        armed = true;
                    }
                }
                change = changes.recv() => match change {
                    // A page may tell by which link a chain of plugins has connected a VM.
                    Ok(Change::Vm(uid) | Change::Page(uid)) => {
                        if let Some(link) = self.learn_one(engine, uid)
                            && let Some(link) = link::get(&engine.hands.netlink, &link).await?
                        {
                            self.place(uid, link.index, link.peer_nsid);
                        }
                    }
                    Ok(Change::Ground) => self.learn_bridges(engine),
                    Ok(Change::Group(_) | Change::Lease(_)) => {}
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                        self.learn(engine).await?;
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return Ok(()),
                },
                () = &mut timer, if armed => {
                    armed = false;
                    self.tell(engine, std::mem::take(&mut gathered));
                }
            }
        }
    }

    fn take_in(&mut self, event: Event, gathered: &mut Gathered) {
        if event.what == What::Overrun {
            gathered.everything = true;
            return;
        }
        match event.nsid {
            Some(nsid) => {
                let Some(uid) = self.by_nsid.get(&nsid).copied() else {
                    return;
                };
                match event.what {
                    What::Rules { generation } => drop(gathered.rules.insert(uid, generation)),
                    _ => drop(gathered.keys.insert(Key::Vm(uid))),
                }
            }
            None => match event.what {
                What::Link {
                    name,
                    index,
                    deleted,
                    peer_nsid,
                } => {
                    if let Some(bridge) = self.bridges.get_mut(&name) {
                        *bridge = (!deleted).then_some(index);
                        gathered.keys.insert(Key::Ground);
                        return;
                    }
                    let Some(uid) = self.by_link.get(&name).copied() else {
                        return;
                    };
                    self.place(uid, index, peer_nsid.filter(|_| !deleted));
                    gathered.keys.insert(Key::Vm(uid));
                }
                What::Rules { .. } | What::Netconf => {
                    gathered.keys.insert(Key::Ground);
                }
                What::Addr { index } | What::Neigh { index } | What::Filter { index } => {
                    gathered.keys.extend(self.on_link(Some(index)));
                }
                What::Route { index } => gathered.keys.extend(self.on_link(index)),
                What::Overrun => {}
            },
        }
    }

    fn take_in_removal(&self, removed: Removed, gathered: &mut Gathered) {
        match removed {
            Removed::Unknown => gathered.everything = true,
            Removed::Entry(name) => {
                let uid = self.by_entry.get(&name);
                gathered.keys.extend(uid.map(|uid| Key::Vm(*uid)));
            }
        }
    }

    fn on_link(&self, index: Option<u32>) -> Option<Key> {
        let index = index?;
        if self.bridges.values().any(|bridge| *bridge == Some(index)) {
            return Some(Key::Ground);
        }
        let uid = self.by_index.get(&index)?;
        Some(Key::Vm(*uid))
    }

    /// Where a VM's host link stands, and by which number we know the namespace of its other end.
    fn place(&mut self, uid: Uid, index: u32, nsid: Option<i32>) {
        let Some(place) = self.places.get_mut(&uid) else {
            return;
        };
        place.index = Some(index);
        place.nsid = nsid;
        self.by_index.insert(index, uid);
        if let Some(nsid) = nsid {
            self.by_nsid.insert(nsid, uid);
        }
    }

    /// Learns all VMs and where they stand now.
    async fn learn(&mut self, engine: &Engine) -> Result<(), Error> {
        let uids: Vec<Uid> = engine
            .store
            .read(|world| world.vms().map(|vm| vm.meta.uid).collect());
        self.by_link.clear();
        self.by_entry.clear();
        self.by_index.clear();
        self.by_nsid.clear();
        self.places.clear();
        self.learn_bridges(engine);
        for uid in uids {
            let _all_are_looked_for_below = self.learn_one(engine, uid);
        }
        for link in link::list(&engine.hands.netlink).await? {
            if let Some(index) = self.bridges.get_mut(&link.name) {
                *index = Some(link.index);
            }
            if let Some(uid) = self.by_link.get(&link.name).copied() {
                self.place(uid, link.index, link.peer_nsid);
            }
        }
        Ok(())
    }

    fn learn_bridges(&mut self, engine: &Engine) {
        let footing = engine.store.read(crate::store::World::footing);
        let known = std::mem::take(&mut self.bridges);
        let index = |name: &String| known.get(name).copied().flatten();
        self.bridges = footing
            .bridges
            .into_keys()
            .map(|name| (name.clone(), index(&name)))
            .collect();
    }

    /// A link that this VM is now known to have, and that may have been made before we knew.
    fn learn_one(&mut self, engine: &Engine, uid: Uid) -> Option<String> {
        let Some(connected) = engine.host_link(uid) else {
            let names = owner::vm_names(&self.instance, uid);
            self.by_entry.remove(&names.netns);
            self.by_entry.remove(&uid.to_string());
            self.forget(uid);
            return None;
        };
        let link = connected.link;
        if self
            .places
            .get(&uid)
            .is_some_and(|place| place.link == link)
        {
            return None;
        }
        let names = owner::vm_names(&self.instance, uid);
        self.forget(uid);
        self.by_entry.insert(names.netns, uid);
        self.by_entry.insert(uid.to_string(), uid);
        self.by_link.insert(link.clone(), uid);
        let place = Place {
            link: link.clone(),
            index: None,
            nsid: None,
        };
        self.places.insert(uid, place);
        connected.stands.then_some(link)
    }

    fn forget(&mut self, uid: Uid) {
        let Some(place) = self.places.remove(&uid) else {
            return;
        };
        self.by_link.remove(&place.link);
        place.index.map(|index| self.by_index.remove(&index));
        place.nsid.map(|nsid| self.by_nsid.remove(&nsid));
    }

    fn tell(&self, engine: &Engine, gathered: Gathered) {
        if gathered.everything {
            debug!("events were lost: look at everything");
            engine.nudge_everything();
            return;
        }
        let news =
            |(uid, generation): &(Uid, Generation)| !engine.seen_rules.covers(*uid, *generation);
        let by_rules = gathered.rules.into_iter().filter(news);
        let mut keys = gathered.keys;
        keys.extend(by_rules.map(|(uid, _)| Key::Vm(uid)));
        for key in keys {
            engine.waker.nudge(key);
        }
    }
}

/// Without it such a removal is seen at the next resync.
fn watch_removals(engine: &Engine) -> Option<Removals> {
    Removals::watch(&engine.run_dir)
        .inspect_err(|error| warn!(%error, "the run directory cannot be watched; it is looked at now and then"))
        .ok()
}

async fn next_removal(removals: &mut Option<Removals>) -> Removed {
    match removals {
        Some(removals) => removals.next().await,
        None => std::future::pending().await,
    }
}

impl Gathered {
    fn is_something(&self) -> bool {
        self.everything || !self.keys.is_empty() || !self.rules.is_empty()
    }
}
