//! The mapping from links, namespaces and bridges to VMs, which events are looked up in.
//! Out of scope: the events.

use std::collections::HashMap;
use std::hash::Hash;

use super::{Bridge, HostLink, Trigger};
use crate::api::meta::Uid;
use crate::engine::Engine;
use crate::host::Error;
use crate::host::link::{self, Link};
use crate::owner;

impl Trigger {
    /// Records the index of a VM's host link, and the id that the namespace of its peer has here. Not every message about a link
    /// contains that id.
    pub(super) fn set_link(
        &mut self,
        uid: Uid,
        index: u32,
        nsid: Option<i32>,
        mac: Option<[u8; 6]>,
    ) {
        let Some(entry) = self.links.get(&uid) else {
            return;
        };
        let nsid = nsid.or(entry.nsid);
        self.clear_link(uid);
        self.by_index.insert(index, uid);
        if let Some(nsid) = nsid {
            self.by_nsid.insert(nsid, uid);
        }
        if let Some(place) = self.links.get_mut(&uid) {
            (place.index, place.nsid, place.mac) = (Some(index), nsid, mac);
        }
    }

    /// Removes the index and the namespace id of a VM's link: the kernel reuses them.
    pub(super) fn clear_link(&mut self, uid: Uid) {
        let Some(entry) = self.links.get_mut(&uid) else {
            return;
        };
        let (index, nsid) = (entry.index.take(), entry.nsid.take());
        entry.mac = None;
        if let Some(index) = index {
            remove_if_mapped(&mut self.by_index, index, uid);
        }
        if let Some(nsid) = nsid {
            remove_if_mapped(&mut self.by_nsid, nsid, uid);
        }
    }

    /// Rebuilds the mapping for all VMs from the store and the current links.
    pub(super) async fn rebuild(&mut self, engine: &Engine) -> Result<(), Error> {
        let uids: Vec<Uid> = engine
            .store
            .read(|world| world.vms().map(|vm| vm.meta.uid).collect());
        self.by_link.clear();
        self.by_mac.clear();
        self.by_entry.clear();
        self.by_index.clear();
        self.by_nsid.clear();
        self.links.clear();
        self.bridges = bridges_of(engine).map(|name| (name, None)).collect();
        for uid in uids {
            let _looked_up_below = self.update_vm(engine, uid);
        }
        self.foreign.clear();
        for link in link::list(&engine.host.netlink).await? {
            if link.kind.as_deref() == Some("bridge") && !self.bridges.contains_key(&link.name) {
                self.foreign.insert(link.index, link.name.clone());
            }
            if let Some(bridge) = self.bridges.get_mut(&link.name) {
                *bridge = Some(Bridge::of(&link));
            }
            if let Some(uid) = self.by_link.get(&link.name).copied() {
                self.set_link(uid, link.index, link.peer_nsid, link.mac);
            }
        }
        Ok(())
    }

    /// Updates the bridges to which VMs are connected. For a bridge that existed before its first VM there is no event, so it is looked up.
    pub(super) async fn update_bridges(&mut self, engine: &Engine) -> Result<(), Error> {
        let mut known = std::mem::take(&mut self.bridges);
        for name in bridges_of(engine) {
            let bridge = match known.remove(&name).flatten() {
                Some(known) => Some(known),
                None => {
                    let found = link::get(&engine.host.netlink, &name).await?;
                    found.as_ref().map(Bridge::of)
                }
            };
            self.bridges.insert(name, bridge);
        }
        Ok(())
    }

    /// Updates the mapping for one VM. Returns its link if it is new in the mapping and may already exist.
    pub(super) fn update_vm(&mut self, engine: &Engine, uid: Uid) -> Option<String> {
        let Some(connected) = engine.host_link(uid) else {
            let names = owner::vm_names(&self.instance, uid);
            self.by_entry.remove(&names.netns);
            self.by_entry.remove(&uid.to_string());
            self.by_mac.remove(&names.guest_mac.0);
            self.forget(uid);
            return None;
        };
        let link = connected.link;
        if self.links.get(&uid).is_some_and(|place| place.link == link) {
            return None;
        }
        let names = owner::vm_names(&self.instance, uid);
        self.forget(uid);
        self.by_mac.insert(names.guest_mac.0, uid);
        self.by_entry.insert(names.netns, uid);
        self.by_entry.insert(uid.to_string(), uid);
        self.by_link.insert(link.clone(), uid);
        let entry = HostLink {
            link: link.clone(),
            index: None,
            nsid: None,
            mac: None,
        };
        self.links.insert(uid, entry);
        connected.exists.then_some(link)
    }

    fn forget(&mut self, uid: Uid) {
        self.clear_link(uid);
        self.masters.remove(&uid);
        if let Some(place) = self.links.remove(&uid) {
            self.by_link.remove(&place.link);
        }
    }
}

impl Bridge {
    fn of(link: &Link) -> Self {
        Self {
            index: link.index,
            mac: link.mac,
        }
    }
}

fn bridges_of(engine: &Engine) -> impl Iterator<Item = String> + use<> {
    let network = engine.store.read(crate::store::World::host_requirements);
    network.bridges.into_keys()
}

/// Removes `number` if it is mapped to this VM.
fn remove_if_mapped<K: Eq + Hash>(numbers: &mut HashMap<K, Uid>, number: K, uid: Uid) {
    if numbers.get(&number) == Some(&uid) {
        numbers.remove(&number);
    }
}
