//! States of a slot: built, left by a crash, meddled with, taken by strangers.
//! Out of scope: the laws they are held to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use proptest::prelude::*;
use slicectl::api::network::{Block, Mac, TapOwner};
use slicectl::owner::Instance;
use slicectl::reconcile::firewall::antispoof::{self, program_isolated};
use slicectl::reconcile::net::NetnsSeen;
use slicectl::reconcile::net::isolated::{
    Desired, HostLink, Inside, Observed, Slot, TapSeen, Uplink,
};
use slicectl::reconcile::net::{MTU, NEXT_HOP};

pub fn subnet(address: Ipv4Network) -> Ipv4Network {
    Ipv4Network::new(address.network(), address.prefix()).unwrap()
}

pub fn gateway(block: Block) -> Ipv4Network {
    Ipv4Network::new(block.gateway(), 30).unwrap()
}

pub fn slot() -> Slot {
    Slot {
        block: Block::around(Ipv4Addr::new(169, 254, 100, 4)),
        tap_owner: TapOwner {
            uid: 1000,
            gid: None,
        },
        record: "{}".to_owned(),
    }
}

/// One slot.
pub fn expected() -> Desired {
    let uid = "7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a44".parse().unwrap();
    let instance = Instance::of("/state".as_ref());
    Desired {
        label: instance.vm_label(&"web-1".parse().unwrap(), uid),
        run_dir: "/run/slice".into(),
        slot: Some(slot()),
    }
}

/// It, built.
pub fn converged(desired: &Desired, index: u32) -> Observed {
    let (names, slot) = (desired.names(), slot());
    Observed {
        record: Some(slot.record.clone()),
        dir: true,
        netns: NetnsSeen::Present(Some(desired.label.to_string())),
        handle: Some(desired.netns()),
        host_link: Some(HostLink {
            alias: Some(desired.label.to_string()),
            mac: names.host_mac,
            index: index + 100,
            peer: Some(index),
            up: true,
            mtu: MTU,
            addresses: [gateway(slot.block)].into(),
            neighbours: [(slot.block.guest(), names.uplink_mac)].into(),
            routed: true,
            route_conflict: None,
            configured: true,
            has_master: false,
        }),
        inside: Some(Inside {
            tap: Some(TapSeen {
                owner: Some(slot.tap_owner),
                mac: names.tap_mac,
                up: true,
                mtu: MTU,
                addresses: [gateway(slot.block)].into(),
                neighbours: [(slot.block.guest(), names.guest_mac)].into(),
                routes: [slot.block.network()].into(),
                program: Some(program()),
                has_master: false,
            }),
            uplink: Some(Uplink {
                index,
                peer: Some(index + 100),
                mac: names.uplink_mac,
                up: true,
                mtu: MTU,
                neighbours: [(NEXT_HOP, names.host_mac)].into(),
                has_master: false,
            }),
            default_via: Some(NEXT_HOP),
            drifted: BTreeMap::new(),
        }),
    }
}

pub const OTHER_MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

pub fn mac(right: Mac) -> impl Strategy<Value = Mac> + Clone {
    prop_oneof![4 => Just(right), 1 => Just(OTHER_MAC)]
}

pub fn mtu() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(MTU), 1 => Just(1400)]
}

pub fn addresses() -> impl Strategy<Value = BTreeSet<Ipv4Network>> {
    let some = vec![gateway(slot().block), "10.9.8.7/24".parse().unwrap()];
    prop::sample::subsequence(some, 0..=2).prop_map(|some| some.into_iter().collect())
}

pub fn neighbours(ip: Ipv4Addr, right: Mac) -> impl Strategy<Value = BTreeMap<Ipv4Addr, Mac>> {
    prop::option::weighted(0.7, mac(right))
        .prop_map(move |mac| mac.map(|mac| (ip, mac)).into_iter().collect())
}

pub fn host_link(indices: impl Strategy<Value = Option<u32>>) -> impl Strategy<Value = HostLink> {
    let names = expected().names();
    let label = Just(Some(expected().label.to_string()));
    let identity = prop_oneof![
        4 => (label, mac(names.host_mac)),
        1 => (Just(None), Just(names.host_mac)),
    ];
    let pinned = neighbours(slot().block.guest(), names.uplink_mac);
    (
        identity,
        indices,
        any::<[bool; 3]>(),
        mtu(),
        addresses(),
        pinned,
    )
        .prop_map(
            |((alias, mac), peer, [up, routed, bare], mtu, addresses, neighbours)| HostLink {
                alias,
                mac,
                index: 50,
                peer,
                up,
                mtu,
                routed: routed && up,
                route_conflict: None,
                has_master: mtu != MTU && bare,
                addresses,
                neighbours,
                configured: bare,
            },
        )
}

/// The name of what judges the guest's frames.
pub fn program() -> String {
    let (names, block) = (expected().names(), slot().block);
    let program = program_isolated(names.guest_mac, block.guest(), block.gateway());
    antispoof::digest(&program)
}

pub fn tap_seen() -> impl Strategy<Value = TapSeen> {
    let names = expected().names();
    let right = slot().tap_owner;
    let owner = prop_oneof![
        4 => Just(Some(right)),
        1 => Just(Some(TapOwner { uid: 7, gid: Some(7) })),
        1 => Just(None),
    ];
    let pinned = neighbours(slot().block.guest(), names.guest_mac);
    (
        owner,
        mac(names.tap_mac),
        any::<[bool; 2]>(),
        mtu(),
        addresses(),
        pinned,
        prop_oneof![4 => Just(Some(program())), 1 => Just(None), 1 => Just(Some("other".to_owned()))],
    )
        .prop_map(
            |(owner, mac, [up, routed], mtu, addresses, neighbours, program)| TapSeen {
                has_master: mtu != MTU && routed,
                program,
                owner,
                mac,
                up,
                mtu,
                routes: addresses
                    .iter()
                    .filter(|_| up && routed)
                    .map(|a| subnet(*a))
                    .collect(),
                addresses,
                neighbours,
            },
        )
}

pub fn uplink_seen() -> impl Strategy<Value = (Uplink, Option<Ipv4Addr>)> {
    let names = expected().names();
    let peer = prop_oneof![4 => Just(Some(50)), 1 => Just(None), 1 => Just(Some(51))];
    let pinned = neighbours(NEXT_HOP, names.host_mac);
    (
        peer,
        mac(names.uplink_mac),
        any::<[bool; 2]>(),
        mtu(),
        pinned,
    )
        .prop_map(|(peer, mac, [up, routed], mtu, neighbours)| {
            let uplink = Uplink {
                index: 3,
                peer,
                mac,
                up,
                mtu,
                neighbours,
                has_master: false,
            };
            (uplink, (up && routed).then_some(NEXT_HOP))
        })
}

pub fn inside_seen() -> impl Strategy<Value = Inside> {
    let setting_drift = prop::option::of(Just((
        "net.ipv4.conf.all.arp_ignore".to_owned(),
        "1".to_owned(),
    )));
    (
        prop::option::weighted(0.8, tap_seen()),
        prop::option::weighted(0.8, uplink_seen()),
        setting_drift,
    )
        .prop_map(|(tap, uplink, setting_drift)| {
            let (uplink, default_via) = uplink.map_or((None, None), |(up, via)| (Some(up), via));
            Inside {
                tap,
                uplink,
                default_via,
                drifted: setting_drift.into_iter().collect(),
            }
        })
}

/// Any state that a crash, or somebody's meddling, may have left of the slot.
pub fn ours() -> impl Strategy<Value = Observed> {
    let record = prop_oneof![
        Just(None),
        Just(Some("{}".to_owned())),
        Just(Some("old".to_owned()))
    ];
    let peer = prop_oneof![4 => Just(Some(3)), 1 => Just(None), 1 => Just(Some(4))];
    (
        record,
        any::<[bool; 2]>(),
        prop::option::weighted(0.8, host_link(peer)),
        prop::option::weighted(0.8, inside_seen()),
    )
        .prop_map(|(record, [dir, handle], host_link, inside)| Observed {
            dir: dir || record.is_some(),
            record,
            netns: match inside {
                Some(_) => NetnsSeen::Present(Some(expected().label.to_string())),
                None => NetnsSeen::Absent,
            },
            handle: handle.then(|| expected().netns()),
            host_link,
            inside,
        })
}

/// The same, with strangers' things under our names.
pub fn anyones() -> impl Strategy<Value = Observed> {
    let alias = prop_oneof![Just(None), Just(Some("stranger".to_owned()))];
    (ours(), any::<[bool; 3]>(), alias).prop_map(|(mut world, [link, netns, handle], alias)| {
        if let Some(seen) = world.host_link.as_mut().filter(|_| link) {
            seen.alias.clone_from(&alias);
            // A link whose other end is in our namespace is no stranger's, whatever it is labelled.
            (seen.mac, seen.peer) = (OTHER_MAC, None);
        }
        if netns && world.inside.take().is_some() {
            world.netns = NetnsSeen::Present(alias);
        }
        if handle {
            world.handle = Some("/run/netns/elsewhere".into());
        }
        world
    })
}
