//! The places of VMs from a file, for tests without etcd; only in builds with debug assertions.
//! Out of scope: everything else.
//!
//! `SLICE_TEST_PLACES` names a file in JSON: `{"vms": {VM: NODE}, "nodes": {NODE: URL or null}, "gone": [NODE]}`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::api::meta::Name;
use crate::wire::peer::{Place, Whereabouts};

#[derive(Default, Deserialize)]
#[serde(default)]
struct Places {
    vms: BTreeMap<String, Name>,
    nodes: BTreeMap<Name, Option<String>>,
    gone: Vec<Name>,
}

fn read() -> Option<Places> {
    let path = std::env::var_os("SLICE_TEST_PLACES")?;
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn place(places: &Places, node: &Name) -> Place {
    Place {
        node: node.clone(),
        url: places.nodes.get(node).cloned().flatten(),
        version: "0.0.0".to_owned(),
    }
}

pub(super) fn whereabouts(vm: &Name) -> Option<Whereabouts> {
    let places = read()?;
    let node = places.vms.get(vm.as_str())?;
    Some(Whereabouts::At(place(&places, node)))
}

pub(super) fn others(own: Option<&Name>) -> Option<Vec<Place>> {
    let places = read()?;
    let others = places.nodes.keys().filter(|node| Some(*node) != own);
    Some(others.map(|node| place(&places, node)).collect())
}

pub(super) fn is_gone(node: &Name) -> bool {
    read().is_some_and(|places| places.gone.contains(node))
}
