//! What the kernel tells, as keys to look at.
//! Out of scope: what is found there.
//!
//! # Why
//! An event says *look*, never *what*. Our own actions make events, too: they are gathered for a moment and each key is
//! nudged once, so that a namespace in the making is looked at once more and not thirty times.

mod activity;
mod gathered;
mod known;
mod window;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use self::activity::Activity;
use self::gathered::Gathered;
use self::window::Window;
use super::removals::{Removals, Removed};
use crate::api::meta::Uid;
use crate::host::events::{Event, Events, LinkChange, What};
use crate::host::{Error, link};
use crate::owner::Instance;
use crate::reconcile::engine::{Engine, Key};
use crate::store::Change;

/// How long events are gathered that are likely to be of our own actions, and for how long a burst is gathered at most.
const GATHER: Duration = Duration::from_millis(600);

/// How long events are gathered about what was at rest: drift. Each event that follows begins the time again, so a burst causes one
/// look.
const DRIFT: Duration = Duration::from_millis(50);

/// Between two observations of an object that a conflicting writer changes: each is repaired at once, at a bounded rate.
const CONTESTED: Duration = Duration::from_millis(20);

/// So long after the last change of ours an object is at rest: the events of our own actions have been read by then.
const REST: Duration = Duration::from_millis(500);

/// All addresses.
const EVERYWHERE: Ipv4Network = Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).unwrap();

/// After a failure of the stream, before it is opened anew.
const PAUSE: Duration = Duration::from_secs(1);

/// Which key an event is about.
pub struct Trigger {
    instance: Instance,
    by_link: HashMap<String, Uid>,
    /// Whose guest has a MAC.
    by_mac: HashMap<[u8; 6], Uid>,
    by_entry: HashMap<String, Uid>,
    by_nsid: HashMap<i32, Uid>,
    by_index: HashMap<u32, Uid>,
    places: HashMap<Uid, Place>,
    /// The bridges that VMs are on.
    bridges: HashMap<String, Option<Bridge>>,
    /// Bridges of others, by index.
    foreign: HashMap<u32, String>,
    /// What each VM's link was last seen to be a port of.
    masters: HashMap<Uid, Option<u32>>,
    /// When what is watched in the file system is watched anew.
    renewals: tokio::time::Interval,
    activity: Activity,
}

/// A bridge that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bridge {
    index: u32,
    mac: Option<[u8; 6]>,
}

/// Where a VM's link stands in the host namespace.
struct Place {
    link: String,
    index: Option<u32>,
    nsid: Option<i32>,
    mac: Option<[u8; 6]>,
}

impl Trigger {
    /// Knows no VM yet.
    pub fn new(instance: Instance, resync: Duration) -> Self {
        let mut renewals = tokio::time::interval(resync);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            instance,
            by_link: HashMap::new(),
            by_mac: HashMap::new(),
            by_entry: HashMap::new(),
            by_nsid: HashMap::new(),
            by_index: HashMap::new(),
            places: HashMap::new(),
            bridges: HashMap::new(),
            foreign: HashMap::new(),
            masters: HashMap::new(),
            renewals,
            activity: Activity::default(),
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
        missed: Gathered,
    ) -> Result<(), Error> {
        let mut events = engine.hands.home.run(Events::listen).await?;
        let mut removals = watch_removals(engine);
        self.learn(engine).await?;
        let mut slow = Window::holding(missed, GATHER);
        let mut drift = Window::default();
        let mut hasty = Window::default();
        loop {
            let mut news = Gathered::default();
            tokio::select! {
                event = events.next() => self.take_in(event?, &mut news),
                removed = next_removal(&mut removals) => {
                    if removed == Removed::Unknown {
                        removals = watch_removals(engine);
                    }
                    self.take_in_removal(removed, &mut news);
                }
                // A directory above that was moved, or mounted over, tells nobody.
                _ = self.renewals.tick() => removals = watch_removals(engine),
                // As in `wake_by_changes`: a backlog is taken in without a yield after each 128 changes.
                change = tokio::task::unconstrained(changes.recv()) => {
                    self.activity.note(&change);
                    if let Err(RecvError::Closed) = change {
                        return Ok(());
                    }
                    self.follow(engine, change).await?;
                }
                () = slow.over() => slow.take().tell(engine),
                () = hasty.over() => {
                    let found = hasty.take();
                    self.activity.note_told(found.vms());
                    found.tell(engine);
                }
                () = drift.over() => {
                    let found = drift.take();
                    // What the repair itself causes is gathered for longer.
                    self.activity.note_told(found.vms());
                    found.tell(engine);
                }
            }
            if news.urgent {
                // While it lasts, somebody is cut off.
                news.merge(slow.take());
                news.merge(drift.take());
                std::mem::take(&mut news).tell(engine);
            }
            if let Some(delay) = self.activity.contested(&news, engine) {
                hasty.add(std::mem::take(&mut news), delay);
            }
            if news.is_something() {
                match self.activity.is_at_rest(&news) {
                    true => drift.add_and_extend(news, DRIFT, GATHER),
                    false => slow.add(news, GATHER),
                }
            }
        }
    }

    /// Learns what a change of the store means for whom the kernel reports about.
    async fn follow(
        &mut self,
        engine: &Engine,
        change: Result<Change, RecvError>,
    ) -> Result<(), Error> {
        match change {
            // A stage status may name the link by which a chain of plugins has connected a VM.
            Ok(Change::Vm(uid) | Change::Page(uid)) => {
                if let Some(link) = self.learn_one(engine, uid)
                    && let Some(link) = link::get(&engine.hands.netlink, &link).await?
                {
                    self.place(uid, link.index, link.peer_nsid, link.mac);
                }
                Ok(())
            }
            Ok(Change::Ground) => self.learn_bridges(engine).await,
            Ok(Change::Group(_) | Change::Observed(_) | Change::Lease(_) | Change::Everything)
            | Err(RecvError::Closed) => Ok(()),
            Err(RecvError::Lagged(_)) => self.learn(engine).await,
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
                    What::Rules { generation } => {
                        gathered.rules.insert(nsid, (uid, generation));
                    }
                    _ => {
                        gathered.keys.insert(Key::Vm(uid));
                    }
                }
            }
            None => self.take_in_from_home(event.what, gathered),
        }
    }

    fn take_in_from_home(&mut self, what: What, gathered: &mut Gathered) {
        match what {
            What::Link(link) if self.bridges.contains_key(&link.name) => {
                self.take_in_bridge(link, gathered);
            }
            What::Link(link) => {
                self.take_in_foreign(&link, gathered);
                let Some(uid) = self.by_link.get(&link.name).copied() else {
                    // One of ours may have been given another name.
                    gathered.keys.extend(self.on_link(Some(link.index)));
                    return;
                };
                match link.deleted {
                    true => self.displace(uid),
                    false => {
                        let before = self.places.get(&uid).and_then(|place| place.mac);
                        if before.is_some_and(|before| Some(before) != link.mac) {
                            self.moved_to(link.mac, gathered);
                        }
                        // A packet filter knows a port by its master: until this is undone, rules about the link do not match.
                        let before = self.masters.get(&uid).copied().flatten();
                        let stranger = link
                            .master
                            .is_some_and(|index| self.bridge_at(index).is_none());
                        gathered.urgent |= stranger && before != link.master;
                        self.masters.insert(uid, link.master);
                        self.place(uid, link.index, link.peer_nsid, link.mac);
                    }
                }
                gathered.keys.insert(Key::Vm(uid));
            }
            What::Netconf { index: Some(index) } => {
                let key = self.on_link(Some(index)).unwrap_or(Key::Ground);
                gathered.configured.insert(key);
            }
            What::Netconf { index: None } => {
                gathered.switched = true;
                gathered.keys.insert(Key::Ground);
            }
            What::Rules { .. } => {
                gathered.keys.insert(Key::Ground);
            }
            What::Addr { index } => {
                let bridge = self.bridge_at(index).cloned();
                gathered.addressed.extend(bridge);
                // Another link of the host: its neighbours are counted by the host's rules.
                let key = self.on_link(Some(index)).unwrap_or(Key::Ground);
                gathered.keys.insert(key);
            }
            What::Neigh { index, ip } => {
                gathered.keys.extend(self.on_link(Some(index)));
                // A VM's own, on a bridge that it shares with others.
                if self.bridge_at(index).is_some()
                    && let Some(ip) = ip
                {
                    gathered.route(Ipv4Network::from(ip));
                }
            }
            What::Filter { index } | What::Ipv6 { index } => {
                gathered.keys.extend(self.on_link(Some(index)));
            }
            What::Route { index, dst } => {
                gathered.keys.extend(self.on_link(index));
                // Routes of ours are reported with their link. A default route takes no packets from a more specific one, unless a routing
                // rule selects another table first; the observation of the host detects that.
                match dst {
                    Some(dst) if dst.prefix() > 0 => gathered.route(dst),
                    Some(_) | None => drop(gathered.keys.insert(Key::Ground)),
                }
            }
            What::RoutingRule => {
                gathered.keys.insert(Key::Ground);
                gathered.route(EVERYWHERE);
            }
            What::Overrun => {}
        }
    }

    /// Rules of the host name the bridges of others, so that they are written again when one comes or goes.
    fn take_in_foreign(&mut self, link: &LinkChange, gathered: &mut Gathered) {
        let news = match (link.bridge, link.deleted) {
            (true, false) => {
                self.foreign.insert(link.index, link.name.clone()).as_ref() != Some(&link.name)
            }
            (_, true) => self.foreign.remove(&link.index).is_some(),
            (false, false) => false,
        };
        if news {
            gathered.keys.insert(Key::Ground);
        }
    }

    fn take_in_bridge(&mut self, link: LinkChange, gathered: &mut Gathered) {
        gathered.keys.insert(Key::Ground);
        let now = (!link.deleted).then_some(Bridge {
            index: link.index,
            mac: link.mac,
        });
        let before = self.bridges.insert(link.name.clone(), now).flatten();
        if let (Some(before), Some(now)) = (before, now)
            && before.mac != now.mac
        {
            gathered.moved.insert(link.name);
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
        if self.bridge_at(index).is_some() {
            return Some(Key::Ground);
        }
        let uid = self.by_index.get(&index)?;
        Some(Key::Vm(*uid))
    }

    fn bridge_at(&self, index: u32) -> Option<&String> {
        let stands = |bridge: &Option<Bridge>| bridge.is_some_and(|b| b.index == index);
        let found = self.bridges.iter().find(|(_, bridge)| stands(bridge));
        found.map(|(name, _)| name)
    }

    /// Whoever holds a TAP may change its MAC, and take another's place on the bridge: that of a VM, which is cut off as long as
    /// it lasts, or of the bridge itself.
    fn moved_to(&self, mac: Option<[u8; 6]>, gathered: &mut Gathered) {
        let Some(mac) = mac else { return };
        let other = self.by_mac.get(&mac).copied();
        gathered.keys.extend(other.map(Key::Vm));
        let mut bridges = self.bridges.values().flatten();
        gathered.urgent |= other.is_some() || bridges.any(|bridge| bridge.mac == Some(mac));
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
