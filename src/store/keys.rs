//! What the world says for a key of the database.
//! Not here: reading the database into a world ([`super::disk`]).

use super::world::World;
use crate::api::meta::{Name, Uid};
use crate::api::rung::Rung;

/// The value of a key as the world has it now; `None`: there is no such object.
pub(super) fn encode(world: &World, key: &str) -> Option<Vec<u8>> {
    let (kind, id) = key.split_once('/').unwrap_or((key, ""));
    let name = || id.parse::<Name>().ok();
    let uid = || id.parse::<Uid>().ok();
    match kind {
        "group" => bytes(world.groups.get(&name()?)?),
        "pool" => bytes(world.pools.get(&name()?)?),
        "vm" => bytes(world.vms.get(&uid()?)?),
        "lease" => bytes(world.leases.get(&name()?)?),
        "vmm-id" => bytes(world.vmm_ids.get(&uid()?)?),
        "ground" => bytes(world.ground.as_ref()?),
        "page" => {
            let (uid, rung) = id.split_once('/')?;
            let rung: Rung = serde_json::from_str(&format!("\"{rung}\"")).ok()?;
            bytes(world.page(uid.parse().ok()?, rung)?)
        }
        _ => None,
    }
}

fn bytes<T: serde::Serialize>(value: &T) -> Option<Vec<u8>> {
    serde_json::to_vec(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::host_group::HostGroup;
    use crate::store::disk::take_in;

    #[test]
    fn what_is_encoded_is_read_back_as_the_same_world() {
        let group = br#"{"meta":{"name":"web","uid":"11111111-2222-4333-8444-555555555555","generation":2,"created_at":"1970-01-01T00:00:00Z","deleting":false},"origin":{"from":"apply"},"spec":{"count":3,"update":"rolling","template":{"hypervisor":"none","vcpu":1,"ram_bytes":1,"network":{"mode":"isolated","policy":{"allow":[],"drop":[]},"tap_owner":{"uid":0}}}}}"#;
        let Ok(parsed) = serde_json::from_slice::<HostGroup>(group) else {
            panic!("the sample is a group");
        };
        let mut world = World::default();
        take_in(&mut world, "group/web", &serde_json::to_vec(&parsed).expect("JSON"))
            .expect("a group");
        take_in(&mut world, "vmm-id/11111111-2222-4333-8444-555555555555", b"7").expect("an id");
        let keys = ["group/web", "vmm-id/11111111-2222-4333-8444-555555555555"];
        let mut again = World::default();
        for key in keys {
            let value = encode(&world, key).expect("it is there");
            take_in(&mut again, key, &value).expect("it is read");
        }
        assert_eq!(again.groups, world.groups);
        assert_eq!(again.vmm_ids, world.vmm_ids);
        assert_eq!(encode(&world, "group/other"), None);
    }
}
