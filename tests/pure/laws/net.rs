//! The Net stage's laws, and a namespace, a TAP and a veth made of data.
//! Out of scope: the laws in general.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::Ipv4Network;
use proptest::prelude::*;
use slicectl::reconcile::net::NetnsSeen;
use slicectl::reconcile::net::isolated::{
    Action, Desired, HostLink, Inside, IsolatedNet, Observed, Side, TapSeen, Uplink,
};
use slicectl::reconcile::net::{MTU, NEXT_HOP};
use slicectl::reconcile::{Conflict, Reconcile};

use self::states::{anyones, converged, expected, gateway, ours, slot, subnet};
use crate::laws::model::{self, Model};

mod states;

pub struct NetModel;

proptest! {
    #[test]
    fn a_slot_at_rest_has_an_empty_plan(index in 1_u32..9) {
        model::rest::<NetModel>(&expected(), &converged(&expected(), index))?;
    }

    #[test]
    fn any_slot_converges(world in ours()) {
        model::convergence::<NetModel>(&expected(), world)?;
    }

    #[test]
    fn a_slot_converges_after_a_crash_between_any_two_actions(world in ours()) {
        model::prefix_safety::<NetModel>(&expected(), world)?;
    }

    #[test]
    fn a_strangers_namespace_link_or_handle_is_never_touched(world in anyones()) {
        model::modesty::<NetModel>(&expected(), world)?;
    }

    #[test]
    fn a_foreign_link_in_the_way_is_a_conflict(world in anyones()) {
        let foreign = !NetModel::foreign(&expected(), &world).is_empty();
        prop_assert_eq!(NetModel::plan(&expected(), &world).is_err(), foreign);
    }

    #[test]
    fn deletion_leaves_nothing_of_a_slot_and_all_that_is_a_strangers(world in anyones()) {
        let nothing = Desired { slot: None, ..expected() };
        model::deletion::<NetModel>(&nothing, world)?;
    }

    #[test]
    fn a_veth_or_tap_that_fits_is_never_created_again(world in ours()) {
        let plan = NetModel::plan(&expected(), &world).unwrap();
        let inside = world.inside.clone().unwrap_or_default();
        if inside.tap.is_some_and(|tap| tap.owner == Some(slot().tap_owner)) {
            prop_assert!(!plan.iter().any(|action| matches!(action, Action::CreateTap(_) | Action::DeleteNetnsLink(Side::Tap))));
        }
        if pair(world.host_link.as_ref(), inside.uplink.as_ref()) {
            prop_assert!(!plan.iter().any(|action| matches!(action, Action::CreateVeth | Action::DeleteHostLink(_))));
        }
    }
}

impl Model for NetModel {
    type Desired = Desired;
    type World = Observed;
    type Action = Action;

    fn plan(desired: &Desired, world: &Observed) -> Result<Vec<Action>, Conflict> {
        IsolatedNet::plan(desired, world)
    }

    fn apply(desired: &Desired, world: &mut Observed, action: &Action) {
        let names = desired.names();
        match action {
            Action::WriteRecord | Action::UpdateRecord => {
                world.record = desired.slot.as_ref().map(|slot| slot.record.clone());
                world.dir = true;
            }
            Action::CreateNetns => {
                assert_eq!(world.netns, NetnsSeen::Absent, "its place is taken");
                world.netns = NetnsSeen::Present(Some(desired.label.to_string()));
                world.inside = Some(Inside::default());
            }
            Action::LinkHandle => {
                assert_eq!(world.handle, None, "its place is taken");
                world.handle = Some(desired.netns());
            }
            Action::SetSysctls(keys) => inside(world)
                .drifted
                .retain(|key, value| keys.get(key) != Some(value)),
            Action::DeleteNetnsLink(Side::Tap) => inside(world).tap = None,
            Action::DeleteNetnsLink(Side::Uplink) => {
                delete_peer_of_uplink(world);
                delete_uplink(world);
            }
            Action::DeleteNetnsLink(Side::Host) => panic!("the host's end is not inside"),
            Action::DeleteHostLink(link) => {
                assert_eq!(*link.resource(), names.host_link);
                assert!(
                    !is_foreign_link(desired, world),
                    "that link is a stranger's"
                );
                if is_paired(world) {
                    delete_uplink(world);
                }
                world.host_link = None;
            }
            Action::CreateTap(owner) => {
                let tap = &mut inside(world).tap;
                assert!(tap.is_none(), "its place is taken");
                *tap = Some(TapSeen {
                    owner: Some(*owner),
                    mac: names.tap_mac,
                    up: false,
                    mtu: MTU,
                    addresses: BTreeSet::new(),
                    neighbours: BTreeMap::new(),
                    routes: BTreeSet::new(),
                    program: None,
                    has_master: false,
                });
            }
            Action::SetTapFilter { digest } => tap(world).program = Some(digest.clone()),
            Action::CreateVeth => create_veth(desired, world),
            Action::LabelHostLink => {
                let host = host(desired, world);
                (host.alias, host.configured) = (Some(desired.label.to_string()), true);
            }
            Action::ClearMaster(Side::Host) => host(desired, world).has_master = false,
            Action::ClearMaster(Side::Tap) => tap(world).has_master = false,
            Action::ClearMaster(Side::Uplink) => uplink(world).has_master = false,
            Action::Configure(side) => configure(desired, world, *side),
            Action::AddAddress(side, address) => add_address(desired, world, *side, *address),
            Action::AddNeighbour(side, ip, mac) => {
                let neighbours = match side {
                    Side::Host => &mut host(desired, world).neighbours,
                    Side::Tap => &mut tap(world).neighbours,
                    Side::Uplink => &mut uplink(world).neighbours,
                };
                neighbours.insert(*ip, *mac);
            }
            Action::AddBlockRoute(Side::Host, _) => {
                assert!(host(desired, world).up, "a route needs a link that is up");
                host(desired, world).routed = true;
            }
            Action::AddBlockRoute(Side::Tap, block) => {
                assert!(tap(world).up, "a route needs a link that is up");
                tap(world).routes.insert(block.network());
            }
            Action::AddBlockRoute(Side::Uplink, _) => panic!("the block is not over there"),
            Action::AddDefaultRoute => {
                assert!(uplink(world).up, "a route needs a link that is up");
                inside(world).default_via = Some(NEXT_HOP);
            }
            Action::UnlinkHandle => {
                assert_eq!(
                    world.handle.take(),
                    Some(desired.netns()),
                    "that handle is a stranger's"
                );
            }
            Action::DeleteNetns(path) => {
                assert_eq!(*path.resource(), desired.netns());
                assert_eq!(
                    world.netns,
                    NetnsSeen::Present(Some(desired.label.to_string()))
                );
                delete_peer_of_uplink(world);
                world.netns = NetnsSeen::Absent;
                world.inside = None;
            }
            Action::RemoveRunDir => {
                world.record = None;
                world.dir = false;
            }
        }
    }

    fn foreign(desired: &Desired, world: &Observed) -> Vec<String> {
        let mut foreign = Vec::new();
        if is_foreign_link(desired, world) {
            foreign.push(format!("{:?}", world.host_link));
        }
        let label = desired.label.to_string();
        if let NetnsSeen::Present(alias) = &world.netns
            && alias.as_ref() != Some(&label)
        {
            foreign.push(format!("namespace {alias:?}"));
        }
        let handle = world
            .handle
            .iter()
            .filter(|handle| **handle != desired.netns());
        foreign.extend(handle.map(|handle| format!("handle {}", handle.display())));
        foreign
    }

    fn ours(desired: &Desired, world: &Observed) -> Vec<String> {
        let label = desired.label.to_string();
        let mut ours = Vec::new();
        if world.host_link.is_some() && !is_foreign_link(desired, world) {
            ours.push("link".to_owned());
        }
        if world.netns == NetnsSeen::Present(Some(label)) {
            ours.push("namespace".to_owned());
        }
        if world.handle == Some(desired.netns()) {
            ours.push("handle".to_owned());
        }
        if world.dir || world.record.is_some() {
            ours.push("run directory".to_owned());
        }
        ours
    }

    fn is_as_desired(desired: &Desired, world: &Observed) -> bool {
        let Some(slot) = &desired.slot else {
            return Self::ours(desired, world).is_empty();
        };
        let names = desired.names();
        let (Some(host), Some(inside)) = (&world.host_link, &world.inside) else {
            return false;
        };
        let (Some(tap), Some(uplink)) = (&inside.tap, &inside.uplink) else {
            return false;
        };
        let (guest, gateway) = (slot.block.guest(), gateway(slot.block));
        world.dir
            && world.record.as_ref() == Some(&slot.record)
            && world.handle == Some(desired.netns())
            && inside.drifted.is_empty()
            && inside.default_via == Some(NEXT_HOP)
            && pair(Some(host), Some(uplink))
            && host.alias == Some(desired.label.to_string())
            && (host.up, host.mtu, host.mac) == (true, MTU, names.host_mac)
            && host.configured
            && host.routed
            && host.addresses.contains(&gateway)
            && host.neighbours.get(&guest) == Some(&names.uplink_mac)
            && (uplink.up, uplink.mtu, uplink.mac) == (true, MTU, names.uplink_mac)
            && uplink.neighbours.get(&NEXT_HOP) == Some(&names.host_mac)
            && (tap.up, tap.mtu, tap.mac) == (true, MTU, names.tap_mac)
            && tap.owner == Some(slot.tap_owner)
            && tap.addresses.contains(&gateway)
            && tap.routes.contains(&slot.block.network())
            && tap.neighbours.get(&guest) == Some(&names.guest_mac)
    }
}

fn inside(world: &mut Observed) -> &mut Inside {
    world.inside.as_mut().expect("a namespace")
}

fn tap(world: &mut Observed) -> &mut TapSeen {
    inside(world).tap.as_mut().expect("a TAP")
}

fn uplink(world: &mut Observed) -> &mut Uplink {
    inside(world).uplink.as_mut().expect("an uplink")
}

fn host<'w>(desired: &Desired, world: &'w mut Observed) -> &'w mut HostLink {
    assert!(
        !is_foreign_link(desired, world),
        "that link is a stranger's"
    );
    world.host_link.as_mut().expect("the host's end")
}

fn delete_uplink(world: &mut Observed) {
    if let Some(inside) = &mut world.inside {
        inside.uplink = None;
        inside.default_via = None;
    }
}

/// One end of a veth takes the other with it.
fn delete_peer_of_uplink(world: &mut Observed) {
    if is_paired(world) {
        world.host_link = None;
    }
}

fn is_paired(world: &Observed) -> bool {
    let uplink = world
        .inside
        .as_ref()
        .and_then(|inside| inside.uplink.as_ref());
    pair(world.host_link.as_ref(), uplink)
}

/// Each names the other as its peer.
fn pair(host: Option<&HostLink>, uplink: Option<&Uplink>) -> bool {
    host.zip(uplink)
        .is_some_and(|(h, u)| h.peer == Some(u.index) && u.peer == Some(h.index))
}

/// Neither our label nor, without one, our birthmark.
fn is_foreign_link(desired: &Desired, world: &Observed) -> bool {
    let label = desired.label.to_string();
    world
        .host_link
        .as_ref()
        .is_some_and(|link| match &link.alias {
            Some(alias) => *alias != label,
            None => link.mac != desired.names().host_mac,
        })
}

fn create_veth(desired: &Desired, world: &mut Observed) {
    let names = desired.names();
    assert!(world.host_link.is_none(), "its place is taken");
    assert!(inside(world).uplink.is_none(), "its place is taken");
    world.host_link = Some(HostLink {
        alias: None,
        mac: names.host_mac,
        index: 70,
        peer: Some(3),
        up: false,
        mtu: MTU,
        addresses: BTreeSet::new(),
        neighbours: BTreeMap::new(),
        routed: false,
        route_conflict: None,
        configured: false,
        has_master: false,
    });
    inside(world).uplink = Some(Uplink {
        index: 3,
        peer: Some(70),
        mac: names.uplink_mac,
        up: false,
        mtu: MTU,
        neighbours: BTreeMap::new(),
        has_master: false,
    });
}

/// A link that comes up gets the routes of its addresses, as the kernel does it.
fn configure(desired: &Desired, world: &mut Observed, side: Side) {
    let names = desired.names();
    match side {
        Side::Host => {
            let host = host(desired, world);
            host.routed |= !host.up && host.addresses.contains(&gateway(slot().block));
            (host.up, host.mtu, host.mac) = (true, MTU, names.host_mac);
        }
        Side::Tap => {
            let tap = tap(world);
            if !tap.up {
                tap.routes.extend(tap.addresses.iter().map(|a| subnet(*a)));
            }
            (tap.up, tap.mtu, tap.mac) = (true, MTU, names.tap_mac);
        }
        Side::Uplink => {
            let uplink = uplink(world);
            (uplink.up, uplink.mtu, uplink.mac) = (true, MTU, names.uplink_mac);
        }
    }
}

fn add_address(desired: &Desired, world: &mut Observed, side: Side, address: Ipv4Network) {
    match side {
        Side::Host => {
            let host = host(desired, world);
            host.addresses.insert(address);
            host.routed |= host.up;
        }
        Side::Tap => {
            let tap = tap(world);
            tap.addresses.insert(address);
            if tap.up {
                tap.routes.insert(subnet(address));
            }
        }
        Side::Uplink => panic!("up0 has no address"),
    }
}
