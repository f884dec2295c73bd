//! The host's bridges made of data: ours and others'.
//! Out of scope: the tables.

use std::collections::BTreeMap;

use proptest::prelude::*;
use slicectl::api::lease::subnet;
use slicectl::api::network::Mac;
use slicectl::owner;
use slicectl::reconcile::host_network::{Action, BridgeSeen, Desired, Observed};

/// A MAC of nobody's.
const STRANGE: Mac = Mac([2, 0, 0, 0, 0, 9]);

/// What somebody does to a bridge.
#[derive(Clone, Debug)]
pub enum Act {
    Delete,
    SetDown,
    TakeLabel,
    ChangeMac,
    ChangeMtu,
    StartTree,
    FlushAddresses,
    AddAddress,
    LeaveOneOfOurs,
    /// Puts another in its place, with the gateway's address or without.
    Replace {
        hosted: bool,
    },
    PutOtherLink,
}

pub fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        Just(Act::Delete),
        Just(Act::SetDown),
        Just(Act::TakeLabel),
        Just(Act::ChangeMac),
        Just(Act::ChangeMtu),
        Just(Act::StartTree),
        Just(Act::FlushAddresses),
        Just(Act::AddAddress),
        Just(Act::LeaveOneOfOurs),
        any::<bool>().prop_map(|hosted| Act::Replace { hosted }),
        Just(Act::PutOtherLink),
    ]
}

pub fn meddle(desired: &Desired, world: &mut Observed, at: usize, how: &Act) {
    let names: Vec<_> = desired.requirements.bridges.keys().cloned().collect();
    if let Act::LeaveOneOfOurs = how {
        let left = BridgeSeen {
            alias: None,
            ..born(desired, "brold")
        };
        world.bridges.insert("brold".into(), left);
        return;
    }
    let Some(name) = names.get(at % names.len().max(1)) else {
        return;
    };
    let stranger = BridgeSeen {
        is_bridge: !matches!(how, Act::PutOtherLink),
        // Only bridges are ever labelled so.
        alias: matches!(how, Act::PutOtherLink).then(|| label(desired)),
        mac: STRANGE,
        mtu: 9000,
        up: false,
        configured: false,
        addresses: match how {
            Act::Replace { hosted: true } => desired.requirements.bridges[name].clone(),
            _ => Default::default(),
        },
    };
    if let Act::Replace { .. } | Act::PutOtherLink = how {
        world.bridges.insert(name.clone(), stranger);
        return;
    }
    if let Act::Delete = how {
        world.bridges.remove(name);
    }
    let Some(seen) = world.bridges.get_mut(name) else {
        return;
    };
    match how {
        Act::SetDown => seen.up = false,
        Act::TakeLabel => seen.alias = None,
        Act::ChangeMac => seen.mac = STRANGE,
        Act::ChangeMtu => seen.mtu = 1400,
        Act::StartTree => seen.configured = false,
        Act::FlushAddresses => seen.addresses.clear(),
        Act::AddAddress => drop(seen.addresses.insert("203.0.113.1/24".parse().unwrap())),
        Act::Delete | Act::LeaveOneOfOurs | Act::Replace { .. } | Act::PutOtherLink => {}
    }
}

/// As the kernel would.
pub fn apply(desired: &Desired, world: &mut Observed, action: &Action) {
    match action {
        Action::CreateBridge(name) => {
            let bridge = born(desired, name);
            let before = world.bridges.insert(name.clone(), bridge);
            assert_eq!(before, None, "{name} is taken");
        }
        Action::LabelBridge(name) => {
            ours_mut(desired, world, name).alias = Some(label(desired));
        }
        Action::ConfigureBridge(name) => {
            let seen = ours_mut(desired, world, name);
            (seen.mac, seen.mtu, seen.configured) =
                (owner::bridge_mac(&desired.instance, name), 1500, true);
        }
        Action::AddGateway(name, address) => {
            let fresh = ours_mut(desired, world, name).addresses.insert(*address);
            assert!(fresh, "{address} is there");
        }
        Action::RemoveGateway(name, address) => {
            let expected = desired.requirements.bridges.get(name).cloned();
            let seen = ours_mut(desired, world, name);
            assert!(seen.addresses.remove(address), "{address} is not there");
            // With a first address the kernel takes away the others of its subnet.
            let expected = expected.unwrap_or_default();
            seen.addresses
                .retain(|other| subnet(*other) != subnet(*address) || !expected.contains(other));
        }
        Action::SetBridgeUp(name) => ours_mut(desired, world, name).up = true,
        Action::DeleteBridge(owned) => {
            ours_mut(desired, world, owned.resource());
            world.bridges.remove(owned.resource());
        }
        Action::Commit(_)
        | Action::SetTimeouts
        | Action::RemoveTimeouts
        | Action::AddRoutingRule(..)
        | Action::RemoveRoutingRule(..)
        | Action::EnableForwarding => unreachable!("no bridge's"),
    }
}

fn ours_mut<'w>(desired: &Desired, world: &'w mut Observed, name: &str) -> &'w mut BridgeSeen {
    let seen = world.bridges.get_mut(name).expect("a bridge");
    assert!(is_ours(desired, name, seen), "{name} is a stranger's");
    seen
}

/// Bridges of others whole; on ours, addresses that we were never to carry.
pub fn foreign(desired: &Desired, world: &Observed) -> Vec<String> {
    let mut foreign = Vec::new();
    for (name, seen) in &world.bridges {
        if !is_ours(desired, name, seen) {
            foreign.push(format!("{name} {seen:?}"));
        } else if desired.requirements.bridges.contains_key(name) {
            let footings = [&desired.requirements, &desired.previous];
            let known = |address: &&_| {
                let carried = footings
                    .iter()
                    .filter_map(|requirements| requirements.bridges.get(name));
                carried.flatten().any(|known| known == *address)
            };
            let others = seen.addresses.iter().filter(|address| !known(address));
            foreign.extend(others.map(|address| format!("{name} {address}")));
        }
    }
    foreign
}

pub fn ours(desired: &Desired, world: &Observed) -> Vec<String> {
    let ours = world.bridges.iter();
    let ours = ours.filter(|(name, seen)| is_ours(desired, name, seen));
    ours.map(|(name, _)| name.clone()).collect()
}

pub fn are_as_desired(desired: &Desired, world: &Observed) -> bool {
    let expected = &desired.requirements.bridges;
    let kept = expected.iter().all(|(name, gateways)| {
        let Some(seen) = world.bridges.get(name) else {
            return false;
        };
        let before = desired.previous.bridges.get(name).into_iter().flatten();
        let mut stale = before.filter(|address| !gateways.contains(*address));
        let right = seen.alias == Some(label(desired))
            && seen.mac == owner::bridge_mac(&desired.instance, name)
            && (seen.mtu, seen.up, seen.configured) == (1500, true, true)
            && gateways.is_subset(&seen.addresses)
            && !stale.any(|address| seen.addresses.contains(address));
        right || !is_ours(desired, name, seen)
    });
    let ours = ours(desired, world);
    kept && ours.iter().all(|name| expected.contains_key(name))
}

pub fn converged(desired: &Desired) -> BTreeMap<String, BridgeSeen> {
    let bridges = desired.requirements.bridges.iter();
    let made = bridges.map(|(name, gateways)| {
        let bridge = BridgeSeen {
            alias: Some(label(desired)),
            up: true,
            addresses: gateways.clone(),
            ..born(desired, name)
        };
        (name.clone(), bridge)
    });
    made.collect()
}

pub fn is_ours(desired: &Desired, name: &str, seen: &BridgeSeen) -> bool {
    let by_birth = seen.alias.is_none() && seen.mac == owner::bridge_mac(&desired.instance, name);
    seen.is_bridge && (by_birth || seen.alias == Some(label(desired)))
}

fn born(desired: &Desired, name: &str) -> BridgeSeen {
    BridgeSeen {
        is_bridge: true,
        alias: None,
        mac: owner::bridge_mac(&desired.instance, name),
        mtu: 1500,
        up: false,
        configured: true,
        addresses: Default::default(),
    }
}

fn label(desired: &Desired) -> String {
    desired.instance.host_network_label().to_string()
}
