//! Decodes the keys and values of the database into the world.
//! Out of scope: whether they are what was written.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::disk::Pair;
use super::unknown::UnknownFields;
use super::world::{Recovery, World};
use crate::api::lease::Lease;
use crate::api::meta::Uid;
use crate::api::vm::Vm;

/// The format number, inside the database.
pub(super) const FORMAT_KEY: &str = "format";
/// The database's own position record: part of every batch, and not part of the content digest.
pub(super) const POSITION_KEY: &str = "seal";
/// Exists until the state of a database that was set aside is recovered.
pub(super) const RECOVERY_KEY: &str = "recovery";
/// The etcd cluster of the fleet.
pub(super) const CLUSTER_KEY: &str = "fleet-cluster";
/// The number of the reserve ([`super::reserve`]) up to which its entries are in the database.
pub(super) const RESERVE_KEY: &str = "reserve";

/// Decodes all pairs.
///
/// # Errors
/// A message with the key that cannot be decoded, and the reason.
pub(super) fn world(pairs: &[Pair]) -> Result<World, String> {
    let mut world = World::default();
    for (key, value) in pairs {
        let key = std::str::from_utf8(key).map_err(|_| "a key is not valid UTF-8".to_owned())?;
        decode_into(&mut world, key, value).map_err(|e| format!("{key}: {e}"))?;
    }
    Ok(world)
}

pub(super) fn decode_into(world: &mut World, key: &str, value: &[u8]) -> Result<(), String> {
    let (kind, id) = key.split_once('/').unwrap_or((key, ""));
    let name = || id.parse().map_err(|e| format!("{e}"));
    let unknown = &mut world.unknown;
    match kind {
        FORMAT_KEY | POSITION_KEY => {}
        RESERVE_KEY => {
            world.reserve_number = serde_json::from_slice(value).map_err(|e| e.to_string())?;
        }
        RECOVERY_KEY => world.recovery = Some(json::<Recovery>(unknown, key, value)?),
        "group" => {
            world.groups.insert(name()?, json(unknown, key, value)?);
        }
        "pool" => {
            world.pools.insert(name()?, json(unknown, key, value)?);
        }
        "vm" => {
            let vm: Vm = json(unknown, key, value)?;
            let indexes = world.by_group.entry(vm.group.clone()).or_default();
            indexes.insert(vm.index, vm.meta.uid);
            if vm.on_demand.is_some() {
                world.on_demand.insert(vm.meta.name.clone(), vm.meta.uid);
            }
            world.vms.insert(vm.meta.uid, vm);
        }
        "lease" => {
            let lease: Lease = json(unknown, key, value)?;
            world.insert_lease(lease);
        }
        "page" => {
            let (uid, stage) = id
                .split_once('/')
                .ok_or("the name of the stage is missing")?;
            let uid: Uid = uid.parse().map_err(|e| format!("{e}"))?;
            let stage =
                serde_json::from_value(Value::String(stage.into())).map_err(|e| e.to_string())?;
            let status = json(unknown, key, value)?;
            world
                .stage_statuses
                .entry(uid)
                .or_default()
                .insert(stage, status);
        }
        "vmm-id" => {
            let uid: Uid = id.parse().map_err(|e| format!("{e}"))?;
            let id = json(unknown, key, value)?;
            world.insert_vmm_id(uid, id);
        }
        CLUSTER_KEY => world.fleet.facts = Some(json(unknown, key, value)?),
        "fleet-refusal" => {
            let uid: Uid = id.parse().map_err(|e| format!("{e}"))?;
            let refusal = json(unknown, key, value)?;
            world.fleet.refusals.insert(uid, refusal);
        }
        "ground" => world.host_network = Some(json(unknown, key, value)?),
        other => return Err(format!("unknown kind {other:?}")),
    }
    Ok(())
}

fn json<T: Serialize + DeserializeOwned>(
    unknown: &mut UnknownFields,
    key: &str,
    bytes: &[u8],
) -> Result<T, String> {
    let value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    unknown.record(key, bytes, &value)?;
    Ok(value)
}
