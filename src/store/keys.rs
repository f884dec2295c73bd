//! Encodes the value that the world has for a key of the database.
//! Out of scope: reading the database into a world ([`super::load`]).

use super::load::{CLUSTER_KEY, RECOVERY_KEY};
use super::world::World;
use crate::api::meta::{Name, Uid};
use crate::api::stage::Stage;

/// The encoded value of a key in the world. `None`: the object does not exist.
pub(super) fn encode(world: &World, key: &str) -> Option<Vec<u8>> {
    let (kind, id) = key.split_once('/').unwrap_or((key, ""));
    let name = || id.parse::<Name>().ok();
    let uid = || id.parse::<Uid>().ok();
    let bytes = Bytes { world, key };
    match kind {
        "group" => bytes.of(world.groups.get(&name()?)?),
        "pool" => bytes.of(world.pools.get(&name()?)?),
        "vm" => bytes.of(world.vms.get(&uid()?)?),
        "lease" => bytes.of(world.leases.get(&name()?)?),
        "vmm-id" => bytes.of(world.vmm_ids.get(&uid()?)?),
        RECOVERY_KEY => bytes.of(world.recovery.as_ref()?),
        CLUSTER_KEY => bytes.of(world.fleet.facts.as_ref()?),
        "fleet-refusal" => bytes.of(world.fleet.refusals.get(&uid()?)?),
        "ground" => bytes.of(world.host_network.as_ref()?),
        "page" => {
            let (uid, stage) = id.split_once('/')?;
            let stage: Stage = serde_json::from_str(&format!("\"{stage}\"")).ok()?;
            bytes.of(world.status(uid.parse().ok()?, stage)?)
        }
        _ => None,
    }
}

struct Bytes<'w> {
    world: &'w World,
    key: &'w str,
}

impl Bytes<'_> {
    /// Encodes the object with the fields that a newer version has stored in it.
    fn of<T: serde::Serialize>(&self, value: &T) -> Option<Vec<u8>> {
        self.world.unknown.encode(self.key, value).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::host_group::HostGroup;
    use crate::store::load;

    #[test]
    fn an_encoded_world_is_read_back_unchanged() {
        let group = br#"{"meta":{"name":"web","uid":"11111111-2222-4333-8444-555555555555","generation":2,"created_at":"1970-01-01T00:00:00Z","deleting":false},"origin":{"from":"apply"},"spec":{"count":3,"update":"rolling","template":{"hypervisor":"none","vcpu":1,"ram_bytes":1,"network":{"mode":"isolated","policy":{"allow":[],"drop":[]},"tap_owner":{"uid":0}}}}}"#;
        let Ok(parsed) = serde_json::from_slice::<HostGroup>(group) else {
            panic!("the sample is not a group");
        };
        let pairs = vec![
            (
                b"group/web".to_vec(),
                serde_json::to_vec(&parsed).expect("JSON"),
            ),
            (
                b"vmm-id/11111111-2222-4333-8444-555555555555".to_vec(),
                b"7".to_vec(),
            ),
            (
                b"fleet-cluster".to_vec(),
                br#"{"cluster_id":7,"revision":8}"#.to_vec(),
            ),
            (
                b"fleet-refusal/11111111-2222-4333-8444-555555555555".to_vec(),
                br#"{"epoch":3,"reason":"it is full"}"#.to_vec(),
            ),
        ];
        let world = load::world(&pairs).expect("a world");
        let encoded = pairs.iter().map(|(key, _)| {
            let text = std::str::from_utf8(key).expect("UTF-8");
            (key.clone(), encode(&world, text).expect("it exists"))
        });
        let again = load::world(&encoded.collect::<Vec<_>>()).expect("a world");
        assert_eq!(again.groups, world.groups);
        assert_eq!(again.vmm_ids, world.vmm_ids);
        assert_eq!(again.fleet_facts(), world.fleet_facts());
        assert_eq!(again.fleet_refusals(), world.fleet_refusals());
        assert!(world.fleet_facts().is_some() && world.fleet_refusals().len() == 1);
        assert_eq!(encode(&world, "group/other"), None);
    }

    #[test]
    fn every_value_that_the_version_before_stored_is_encoded_to_the_same_bytes() {
        let stored = include_str!("../../tests/fixtures/state-2/pairs.tsv");
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = stored
            .lines()
            .map(|line| {
                let (key, value) = line.split_once('\t').expect("a key and a value");
                (key.into(), value.into())
            })
            .collect();
        let world = load::world(&pairs).expect("a world");
        // A field that is not known any more would be kept as it was, and its value would be lost to the program.
        assert!(
            world.unknown.fields().is_empty(),
            "{:?}",
            world.unknown.fields()
        );
        let mut kinds = std::collections::BTreeSet::new();
        for (key, value) in &pairs {
            let key = std::str::from_utf8(key).expect("a text");
            if key == load::FORMAT_KEY {
                continue;
            }
            kinds.insert(key.split('/').next().expect("a kind"));
            let encoded = encode(&world, key).expect(key);
            assert_eq!(
                std::str::from_utf8(&encoded),
                std::str::from_utf8(value),
                "{key}"
            );
        }
        assert_eq!(
            kinds.into_iter().collect::<Vec<_>>(),
            ["ground", "group", "lease", "page", "pool", "vm", "vmm-id"]
        );
    }
}
