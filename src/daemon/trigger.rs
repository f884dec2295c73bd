//! Maps kernel events to keys to enqueue.
//! Out of scope: the observation of the keys.
//!
//! # Why
//! An event triggers an observation; its content is not used as state. Our own actions cause events, too: events are collected for a short
//! time and each key is enqueued once, so that a namespace that is being created is observed once more and not thirty times.

mod activity;
mod gathered;
mod known;
mod networks;
mod window;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use self::activity::Activity;
use self::gathered::Pending;
use self::window::Window;
use super::removals::{Removals, Removed};
use crate::api::meta::Uid;
use crate::engine::{Engine, Key};
use crate::host::events::{Event, Events, LinkChange, What};
use crate::host::{Error, link};
use crate::owner::Instance;
use crate::store::Change;

/// How long events are collected that are likely caused by our own actions. Also the maximum for a burst of drift events.
const COALESCE: Duration = Duration::from_millis(600);

/// How long events are collected about objects that were at rest (drift). Each further event restarts the time, so a burst causes one
/// observation.
const DRIFT_COALESCE: Duration = Duration::from_millis(50);

/// Between two observations of an object that a conflicting writer changes: each is repaired at once, at a bounded rate.
const CONFLICT_INTERVAL: Duration = Duration::from_millis(20);

/// Time after our last change until an object counts as at rest: events of our own actions have been read by then.
const REST_TIME: Duration = Duration::from_millis(500);

/// All addresses.
const ALL_ADDRESSES: Ipv4Network = Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).unwrap();

/// Delay before the event stream is reopened after a failure.
const REOPEN_DELAY: Duration = Duration::from_secs(1);

/// State for mapping events to keys.
pub struct Trigger {
    instance: Instance,
    by_link: HashMap<String, Uid>,
    /// VM by the MAC address of its guest.
    by_mac: HashMap<[u8; 6], Uid>,
    by_entry: HashMap<String, Uid>,
    by_nsid: HashMap<i32, Uid>,
    by_index: HashMap<u32, Uid>,
    links: HashMap<Uid, HostLink>,
    /// Bridges to which VMs are connected.
    bridges: HashMap<String, Option<Bridge>>,
    /// Other bridges, by index.
    foreign: HashMap<u32, String>,
    /// Index of the last observed master of each VM's link.
    masters: HashMap<Uid, Option<u32>>,
    /// Timer for renewing the watches of directories.
    renew_timer: tokio::time::Interval,
    activity: Activity,
}

/// A bridge that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bridge {
    index: u32,
    mac: Option<[u8; 6]>,
}

/// A VM's link in the host namespace.
struct HostLink {
    link: String,
    index: Option<u32>,
    nsid: Option<i32>,
    mac: Option<[u8; 6]>,
}

impl Trigger {
    /// Creates a trigger that knows no VM yet.
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
            links: HashMap::new(),
            bridges: HashMap::new(),
            foreign: HashMap::new(),
            masters: HashMap::new(),
            renew_timer: renewals,
            activity: Activity::default(),
        }
    }

    /// Runs while the daemon runs.
    pub async fn run(mut self, engine: &Engine) {
        let mut changes = engine.store.watch();
        // At startup everything is observed anyway.
        let mut missed = Pending::default();
        while let Err(error) = self.listen(engine, &mut changes, missed).await {
            warn!(%error, "cannot receive kernel events; reopening the socket");
            tokio::time::sleep(REOPEN_DELAY).await;
            missed = Pending {
                everything: true,
                ..Pending::default()
            };
        }
    }

    async fn listen(
        &mut self,
        engine: &Engine,
        changes: &mut tokio::sync::broadcast::Receiver<Change>,
        missed: Pending,
    ) -> Result<(), Error> {
        let mut events = engine.host.host_netns.run(Events::listen).await?;
        let mut removals = watch_removals(engine);
        self.rebuild(engine).await?;
        let mut own = Window::with_content(missed, COALESCE);
        let mut drift = Window::default();
        let mut conflicts = Window::default();
        loop {
            let mut pending = Pending::default();
            tokio::select! {
                event = events.next() => self.map_event(event?, &mut pending),
                removed = next_removal(&mut removals) => {
                    if removed == Removed::Unknown {
                        removals = watch_removals(engine);
                    }
                    self.map_removal(removed, &mut pending);
                }
                // A parent directory that was moved or mounted over is not reported.
                _ = self.renew_timer.tick() => removals = watch_removals(engine),
                // As in `wake_by_changes`: a backlog is processed without a yield after each 128 changes.
                change = tokio::task::unconstrained(changes.recv()) => {
                    self.activity.note(&change);
                    if let Err(RecvError::Closed) = change {
                        return Ok(());
                    }
                    self.follow(engine, change).await?;
                }
                () = own.over() => own.take().enqueue(engine),
                () = conflicts.over() => {
                    let found = conflicts.take();
                    self.activity.record_enqueued(found.vms());
                    found.enqueue(engine);
                }
                () = drift.over() => {
                    let found = drift.take();
                    // Events caused by the repair itself are collected for longer.
                    self.activity.record_enqueued(found.vms());
                    found.enqueue(engine);
                }
            }
            if pending.urgent {
                // Until it is repaired, a VM is cut off.
                pending.merge(own.take());
                pending.merge(drift.take());
                std::mem::take(&mut pending).enqueue(engine);
            }
            if let Some(delay) = self.activity.contested(&pending, engine) {
                conflicts.add(std::mem::take(&mut pending), delay);
            }
            if pending.has_content() {
                match self.activity.is_at_rest(&pending) {
                    true => drift.add_and_extend(pending, DRIFT_COALESCE, COALESCE),
                    false => own.add(pending, COALESCE),
                }
            }
        }
    }

    /// Updates the mapping after a change of the store.
    async fn follow(
        &mut self,
        engine: &Engine,
        change: Result<Change, RecvError>,
    ) -> Result<(), Error> {
        match change {
            // A stage status may name the link by which a chain of plugins has connected a VM.
            Ok(Change::Vm(uid) | Change::StageStatus(uid)) => {
                if let Some(link) = self.update_vm(engine, uid)
                    && let Some(link) = link::get(&engine.host.netlink, &link).await?
                {
                    self.set_link(uid, link.index, link.peer_nsid, link.mac);
                }
                Ok(())
            }
            Ok(Change::HostNetwork) => self.update_bridges(engine).await,
            Ok(
                Change::Group(_)
                | Change::Observed(_)
                | Change::View
                | Change::Agent(_)
                | Change::Lease(_)
                | Change::Everything,
            )
            | Err(RecvError::Closed) => Ok(()),
            Err(RecvError::Lagged(_)) => self.rebuild(engine).await,
        }
    }

    fn map_event(&mut self, event: Event, gathered: &mut Pending) {
        if event.kind == What::Overrun {
            gathered.everything = true;
            return;
        }
        match event.nsid {
            Some(nsid) => {
                let Some(uid) = self.by_nsid.get(&nsid).copied() else {
                    return;
                };
                match event.kind {
                    What::Rules { generation } => {
                        gathered.rules.insert(nsid, (uid, generation));
                    }
                    _ => {
                        gathered.keys.insert(Key::Vm(uid));
                    }
                }
            }
            None => self.map_host_event(event.kind, gathered),
        }
    }

    fn map_host_event(&mut self, what: What, gathered: &mut Pending) {
        match what {
            What::Link(link) if self.bridges.contains_key(&link.name) => {
                self.map_bridge(link, gathered);
            }
            What::Link(link) => {
                self.map_other_bridge(&link, gathered);
                let Some(uid) = self.by_link.get(&link.name).copied() else {
                    // It may be a link of ours that was renamed.
                    gathered.keys.extend(self.on_link(Some(link.index)));
                    return;
                };
                match link.deleted {
                    true => self.clear_link(uid),
                    false => {
                        let before = self.links.get(&uid).and_then(|place| place.mac);
                        if before.is_some_and(|before| Some(before) != link.mac) {
                            self.mac_changed(link.mac, gathered);
                        }
                        // A packet filter knows a port by its master: until this is undone, rules about the link do not match.
                        let before = self.masters.get(&uid).copied().flatten();
                        let is_foreign = link
                            .master
                            .is_some_and(|index| self.bridge_at(index).is_none());
                        gathered.urgent |= is_foreign && before != link.master;
                        self.masters.insert(uid, link.master);
                        self.set_link(uid, link.index, link.peer_nsid, link.mac);
                    }
                }
                gathered.keys.insert(Key::Vm(uid));
            }
            What::Netconf { index: Some(index) } => {
                let key = self.on_link(Some(index)).unwrap_or(Key::HostNetwork);
                gathered.configured.insert(key);
            }
            What::Netconf { index: None } => {
                gathered.all_configured = true;
                gathered.keys.insert(Key::HostNetwork);
            }
            What::Rules { .. } => {
                gathered.keys.insert(Key::HostNetwork);
            }
            What::Addr { index } => {
                let bridge = self.bridge_at(index).cloned();
                gathered.addressed.extend(bridge);
                // Another link of the host: the rules of the host depend on its neighbours.
                let key = self.on_link(Some(index)).unwrap_or(Key::HostNetwork);
                gathered.keys.insert(key);
            }
            What::Neigh { index, ip } => {
                gathered.keys.extend(self.on_link(Some(index)));
                // The neighbour may be a VM on a shared bridge.
                if self.bridge_at(index).is_some()
                    && let Some(ip) = ip
                {
                    gathered.routed.insert(Ipv4Network::from(ip));
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
                    Some(dst) if dst.prefix() > 0 => gathered.routed.insert(dst),
                    Some(_) | None => drop(gathered.keys.insert(Key::HostNetwork)),
                }
            }
            What::RoutingRule => {
                gathered.keys.insert(Key::HostNetwork);
                gathered.routed.insert(ALL_ADDRESSES);
            }
            What::Overrun => {}
        }
    }

    /// Rules of the host name other bridges, so they are written again when one is created or deleted.
    fn map_other_bridge(&mut self, link: &LinkChange, gathered: &mut Pending) {
        let changed = match (link.bridge, link.deleted) {
            (true, false) => {
                self.foreign.insert(link.index, link.name.clone()).as_ref() != Some(&link.name)
            }
            (_, true) => self.foreign.remove(&link.index).is_some(),
            (false, false) => false,
        };
        if changed {
            gathered.keys.insert(Key::HostNetwork);
        }
    }

    fn map_bridge(&mut self, link: LinkChange, gathered: &mut Pending) {
        gathered.keys.insert(Key::HostNetwork);
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

    fn map_removal(&self, removed: Removed, gathered: &mut Pending) {
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
            return Some(Key::HostNetwork);
        }
        let uid = self.by_index.get(&index)?;
        Some(Key::Vm(*uid))
    }

    fn bridge_at(&self, index: u32) -> Option<&String> {
        let has_index = |bridge: &Option<Bridge>| bridge.is_some_and(|b| b.index == index);
        let found = self.bridges.iter().find(|(_, bridge)| has_index(bridge));
        found.map(|(name, _)| name)
    }

    /// A process with a TAP open can change its MAC to that of another port or of the bridge itself, which cuts off the other until it is
    /// repaired.
    fn mac_changed(&self, mac: Option<[u8; 6]>, gathered: &mut Pending) {
        let Some(mac) = mac else { return };
        let other = self.by_mac.get(&mac).copied();
        gathered.keys.extend(other.map(Key::Vm));
        let mut bridges = self.bridges.values().flatten();
        gathered.urgent |= other.is_some() || bridges.any(|bridge| bridge.mac == Some(mac));
    }
}

/// Without the watch, a removal is detected at the next resync.
fn watch_removals(engine: &Engine) -> Option<Removals> {
    Removals::watch(&engine.run_dir)
        .inspect_err(|error| warn!(%error, "cannot watch the run directory; changes are detected at the next resync"))
        .ok()
}

async fn next_removal(removals: &mut Option<Removals>) -> Removed {
    match removals {
        Some(removals) => removals.next().await,
        None => std::future::pending().await,
    }
}
