//! The laws of bridge mode's Net stage, and a TAP and a bridge made of data.
//! Out of scope: the laws in general.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use slicectl::api::network::{Mac, TapOwner};
use slicectl::owner::{self, Instance};
use slicectl::reconcile::net::bridge::{
    Action, BridgeNet, BridgeSeen, Desired, Entry, Location, Observed, Slot, TapSeen,
};
use slicectl::reconcile::{Conflict, Reconcile};

use crate::laws::model::{self, Model};

pub struct PortModel;

const STRANGE: Mac = Mac([2, 0, 0, 0, 0, 9]);

proptest! {
    #[test]
    fn a_port_at_rest_has_an_empty_plan(desired in expected(), bridge in bridge()) {
        model::rest::<PortModel>(&desired, &converged(&desired, bridge))?;
    }

    #[test]
    fn any_port_converges(desired in expected(), world in ours()) {
        model::convergence::<PortModel>(&desired, world)?;
    }

    #[test]
    fn a_port_converges_after_a_crash_between_any_two_actions(desired in expected(), world in ours()) {
        model::prefix_safety::<PortModel>(&desired, world)?;
    }

    #[test]
    fn a_strangers_link_bridge_or_neighbour_is_never_touched(desired in expected(), world in anyones()) {
        model::modesty::<PortModel>(&desired, world)?;
    }

    #[test]
    fn a_stranger_in_the_ports_way_is_a_conflict(desired in expected(), world in anyones()) {
        let tap = world.tap.as_ref().is_some_and(|tap| !is_ours(&desired, tap));
        let bridge = world.bridge.as_ref().is_some_and(|bridge| !bridge.is_bridge);
        let foreign = tap || bridge || is_strange_pin(&desired, &world);
        prop_assert_eq!(PortModel::plan(&desired, &world).is_err(), foreign);
    }

    #[test]
    fn deletion_leaves_nothing_of_a_port_and_all_that_is_a_strangers(desired in expected(), world in anyones()) {
        model::deletion::<PortModel>(&nothing(&desired), world)?;
    }

    #[test]
    fn a_change_of_isolation_or_antispoof_sets_flags_and_nothing_else(before in expected(), after in expected(), bridge in bridge()) {
        let plan = PortModel::plan(&after, &converged(&before, bridge)).unwrap();
        let only_flags = plan.iter().all(|action| *action == Action::SetPort);
        prop_assert!(only_flags && plan.is_empty() == (before == after), "{plan:?}");
    }

    #[test]
    fn a_tap_that_fits_is_never_created_again(desired in expected(), world in ours()) {
        let fits = world.tap.as_ref().is_some_and(|tap| tap.owner == Some(slot(&desired).tap_owner));
        let plan = PortModel::plan(&desired, &world).unwrap();
        let anew = plan.iter().any(|action| matches!(action, Action::CreateTap(_)));
        prop_assert_eq!(anew, !fits);
    }
}

impl Model for PortModel {
    type Desired = Desired;
    type World = Observed;
    type Action = Action;

    fn plan(desired: &Desired, world: &Observed) -> Result<Vec<Action>, Conflict> {
        BridgeNet::plan(desired, world)
    }

    fn apply(desired: &Desired, world: &mut Observed, action: &Action) {
        let names = desired.names();
        match action {
            Action::WriteRecord | Action::UpdateRecord => {
                world.record = Some(slot(desired).record.clone());
                world.dir = true;
            }
            Action::RenameTap(owned) => {
                assert_eq!(world.renamed.take().as_ref(), Some(owned.resource()));
                ours_mut(desired, world);
            }
            Action::DeleteTap(owned) => {
                let name = world.renamed.take().unwrap_or(desired.tap.clone());
                assert_eq!(owned.resource(), &name);
                ours_mut(desired, world);
                world.tap = None;
                forget_port(world);
            }
            Action::CreateTap(owner) => {
                assert_eq!(world.tap, None, "the name is taken");
                world.tap = Some(TapSeen {
                    alias: Some(desired.label.to_string()),
                    owner: Some(*owner),
                    mac: names.port_mac,
                    mtu: world.bridge.as_ref().expect("a bridge").mtu,
                    // Of a bridge of ours it is a port from the start.
                    enslaved: bridge_is_ours(desired, world),
                    isolated: false,
                    learning: true,
                    unicast_flood: true,
                    configured: true,
                    guarded: false,
                });
            }
            Action::Configure => {
                let mtu = world.bridge.as_ref().expect("a bridge").mtu;
                let tap = ours_mut(desired, world);
                (tap.mac, tap.mtu, tap.configured) = (names.port_mac, mtu, true);
            }
            Action::Enslave => {
                let tap = ours_mut(desired, world);
                assert!(!tap.enslaved);
                (tap.enslaved, tap.isolated, tap.guarded) = (true, false, false);
                (tap.learning, tap.unicast_flood) = (true, true);
            }
            Action::SetPort => {
                let expected = slot(desired).clone();
                let tap = ours_mut(desired, world);
                assert!(tap.enslaved, "no port");
                (tap.isolated, tap.guarded) = (expected.isolated, true);
                (tap.learning, tap.unicast_flood) = (!expected.antispoof, !expected.antispoof);
            }
            Action::PinMac => {
                assert!(ours_mut(desired, world).enslaved, "no port");
                world.entry = Some(Entry::Sticky);
            }
            Action::PinNeighbour => {
                assert!(!is_strange_pin(desired, world), "a stranger's neighbour");
                world.neighbour = Some(names.guest_mac);
            }
            Action::UnpinNeighbour(remains) => {
                assert_eq!(Some(remains), desired.last_location.as_ref());
                assert_eq!(world.neighbour.take(), Some(names.guest_mac));
            }
            Action::RemoveRunDir => (world.dir, world.record) = (false, None),
        }
    }

    fn foreign(desired: &Desired, world: &Observed) -> Vec<String> {
        let tap = world.tap.as_ref().filter(|tap| !is_ours(desired, tap));
        let mut foreign = vec![format!("{:?}", world.bridge)];
        foreign.extend(tap.map(|tap| format!("{tap:?}")));
        if is_strange_pin(desired, world) {
            foreign.push(format!("{:?}", world.neighbour));
        }
        foreign
    }

    fn ours(desired: &Desired, world: &Observed) -> Vec<String> {
        let tap = world.tap.as_ref().filter(|tap| is_ours(desired, tap));
        let mut ours: Vec<String> = tap.map(|tap| format!("{tap:?}")).into_iter().collect();
        if world.neighbour == Some(desired.names().guest_mac) {
            ours.push("neighbour".into());
        }
        if world.dir || world.record.is_some() {
            ours.push("directory".into());
        }
        ours
    }

    fn is_as_desired(desired: &Desired, world: &Observed) -> bool {
        let Some(slot) = &desired.slot else {
            return Self::ours(desired, world).is_empty();
        };
        let names = desired.names();
        let tap = world.tap.as_ref().zip(world.bridge.as_ref());
        let tap = tap.is_some_and(|(tap, bridge)| {
            is_ours(desired, tap)
                && tap.owner == Some(slot.tap_owner)
                && (tap.mac, tap.mtu) == (names.port_mac, bridge.mtu)
                && (tap.enslaved, tap.configured, tap.guarded) == (true, true, true)
                && (tap.isolated, tap.learning) == (slot.isolated, !slot.antispoof)
                && tap.unicast_flood != slot.antispoof
        });
        let reported =
            (world.entry, world.neighbour) == (Some(Entry::Sticky), Some(names.guest_mac));
        tap && reported && world.dir && world.record.as_ref() == Some(&slot.record)
    }
}

fn is_ours(desired: &Desired, tap: &TapSeen) -> bool {
    tap.alias == Some(desired.label.to_string())
}

fn ours_mut<'w>(desired: &Desired, world: &'w mut Observed) -> &'w mut TapSeen {
    let tap = world.tap.as_mut().expect("a TAP");
    assert!(is_ours(desired, tap), "a stranger's");
    tap
}

/// With a port go the entries that lead to it.
fn forget_port(world: &mut Observed) {
    if world.entry == Some(Entry::Sticky) {
        world.entry = None;
    }
}

/// Another MAC for the VM's address, on a bridge that is not ours.
fn is_strange_pin(desired: &Desired, world: &Observed) -> bool {
    let pinned = world.neighbour;
    !bridge_is_ours(desired, world) && pinned.is_some_and(|mac| mac != desired.names().guest_mac)
}

fn bridge_is_ours(desired: &Desired, world: &Observed) -> bool {
    let instance = &desired.label.instance;
    world.bridge.as_ref().is_some_and(|bridge| {
        let by_birth = bridge.alias.is_none() && bridge.mac == owner::bridge_mac(instance, "brvm0");
        by_birth || bridge.alias == Some(instance.host_network_label().to_string())
    })
}

fn slot(desired: &Desired) -> &Slot {
    desired.slot.as_ref().expect("a slot")
}

fn nothing(desired: &Desired) -> Desired {
    let slot = slot(desired);
    Desired {
        slot: None,
        last_location: Some(Location {
            bridge: slot.bridge.clone(),
            ip: slot.ip,
        }),
        ..desired.clone()
    }
}

fn expected() -> impl Strategy<Value = Desired> {
    any::<[bool; 2]>().prop_map(|[isolated, antispoof]| {
        let uid = "7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a44".parse().unwrap();
        let instance = Instance::of("/state".as_ref());
        Desired {
            label: instance.vm_label(&"web-1".parse().unwrap(), uid),
            run_dir: "/run/slice".into(),
            tap: "vmtap0".into(),
            slot: Some(Slot {
                bridge: "brvm0".into(),
                ip: "192.168.137.2".parse().unwrap(),
                tap_owner: TapOwner {
                    uid: 1000,
                    gid: None,
                },
                isolated,
                antispoof,
                record: "{}".into(),
            }),
            last_location: None,
        }
    })
}

fn one() -> Desired {
    expected()
        .new_tree(&mut Default::default())
        .unwrap()
        .current()
}

fn bridge() -> impl Strategy<Value = BridgeSeen> {
    let instance = Instance::of("/state".as_ref());
    let label = instance.host_network_label().to_string();
    let born = owner::bridge_mac(&instance, "brvm0");
    let whose = prop_oneof![
        Just((Some(label), born)),
        Just((None, born)),
        Just((None, STRANGE)),
        Just((Some("uplink".to_owned()), STRANGE)),
    ];
    (whose, prop_oneof![Just(1500), Just(9000)]).prop_map(|((alias, mac), mtu)| BridgeSeen {
        is_bridge: true,
        alias,
        mac,
        mtu,
        host_addresses: Default::default(),
    })
}

fn converged(desired: &Desired, bridge: BridgeSeen) -> Observed {
    let slot = slot(desired);
    Observed {
        record: Some(slot.record.clone()),
        dir: true,
        tap: Some(TapSeen {
            alias: Some(desired.label.to_string()),
            owner: Some(slot.tap_owner),
            mac: desired.names().port_mac,
            mtu: bridge.mtu,
            enslaved: true,
            isolated: slot.isolated,
            learning: !slot.antispoof,
            unicast_flood: !slot.antispoof,
            configured: true,
            guarded: true,
        }),
        bridge: Some(bridge),
        entry: Some(Entry::Sticky),
        neighbour: Some(desired.names().guest_mac),
        route_conflict: None,
        renamed: None,
    }
}

fn tap(alias: impl Strategy<Value = Option<String>>) -> impl Strategy<Value = TapSeen> {
    let owners = [Some(1000), Some(0), None].map(|uid| uid.map(|uid| TapOwner { uid, gid: None }));
    let macs = vec![one().names().port_mac, STRANGE];
    (
        alias,
        prop::sample::select(owners.to_vec()),
        prop::sample::select(macs),
        prop::sample::select(vec![1500, 9000, 1400]),
        any::<[bool; 6]>(),
    )
        .prop_map(|(alias, owner, mac, mtu, flags)| {
            let [enslaved, isolated, learning, unicast_flood, bare, guarded] = flags;
            TapSeen {
                alias,
                owner,
                mac,
                mtu,
                enslaved,
                isolated,
                learning,
                unicast_flood,
                configured: bare,
                guarded,
            }
        })
}

fn world(
    tap: impl Strategy<Value = TapSeen>,
    bridge: impl Strategy<Value = BridgeSeen>,
) -> impl Strategy<Value = Observed> {
    let guest = one().names().guest_mac;
    (
        prop::option::of(tap),
        bridge,
        prop::sample::select(vec![None, Some(Entry::Sticky), Some(Entry::Other)]),
        prop::sample::select(vec![None, Some(guest), Some(STRANGE)]),
        prop::sample::select(vec![None, Some("{}"), Some("old")]),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(tap, bridge, entry, pinned, record, dir, renamed)| {
            let leads = tap.as_ref().is_some_and(|tap| tap.enslaved);
            let label = one().label.to_string();
            let is_ours = |tap: &TapSeen| tap.alias.as_ref() == Some(&label) && tap.owner.is_some();
            let renamed = renamed && record.is_some() && tap.as_ref().is_some_and(is_ours);
            Observed {
                renamed: renamed.then(|| "other0".to_owned()),
                record: record.map(ToOwned::to_owned),
                dir: dir || record.is_some(),
                tap,
                bridge: Some(bridge),
                entry: entry.filter(|entry| leads || *entry == Entry::Other),
                neighbour: pinned,
                route_conflict: None,
            }
        })
}

/// Left by a crash or meddled with, but nobody else's.
fn ours() -> impl Strategy<Value = Observed> {
    let world = world(tap(Just(Some(one().label.to_string()))), bridge());
    world.prop_filter("nobody else's", |world| !is_strange_pin(&one(), world))
}

fn anyones() -> impl Strategy<Value = Observed> {
    let desired = one();
    let other = desired.label.instance.vm_label(
        &"db-1".parse().unwrap(),
        "7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a45".parse().unwrap(),
    );
    let aliases = vec![
        Some(desired.label.to_string()),
        Some(other.to_string()),
        Some("mine".to_owned()),
        None,
    ];
    let bridge = (bridge(), prop::bool::weighted(0.9));
    let bridge = bridge.prop_map(|(seen, bridge)| BridgeSeen {
        is_bridge: bridge,
        ..seen
    });
    world(tap(prop::sample::select(aliases)), bridge)
}
