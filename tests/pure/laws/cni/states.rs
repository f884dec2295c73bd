//! States of a VM in CNI mode: attached, left by a crash, meddled with, in a stranger's way.
//! Out of scope: the laws they are held to.

use std::path::Path;

use proptest::prelude::*;
use slicectl::api::network::{Mac, TapOwner};
use slicectl::cni::{CniResult, Network, Version};
use slicectl::owner::Instance;
use slicectl::reconcile::net::NetnsSeen;
use slicectl::reconcile::net::cni::{
    Added, AddedSeen, ConflistSeen, DataPath, Desired, Eth, Inside, Intent, IntentSeen, Observed,
    Tap,
};

pub const MTU: u32 = 1450;

/// One VM.
pub fn expected() -> Desired {
    let uid = "7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a44".parse().unwrap();
    let instance = Instance::of("/state".as_ref());
    Desired {
        label: instance.vm_label(&"web-1".parse().unwrap(), uid),
        run_dir: "/run/slice".into(),
        network: Some("net".to_owned()),
        forced: false,
        data_path: Some(DataPath {
            tap_owner: TapOwner {
                uid: 1000,
                gid: None,
            },
            record: "{}".to_owned(),
            identity: None,
            requested: Default::default(),
        }),
    }
}

pub fn network(subnet: &str) -> Network {
    let text = format!(
        r#"{{"cniVersion": "1.0.0", "name": "net", "plugins": [{{"type": "bridge", "ipam": {{"type": "host-local", "subnet": "{subnet}"}}}}]}}"#
    );
    Network::parse(Path::new("/etc/cni/net.d/10-net.conflist"), &text).unwrap()
}

pub fn eth() -> Eth {
    Eth {
        mac: Mac([2, 0, 0, 0, 0, 0x0e]),
        veth: true,
        up: true,
        mtu: MTU,
        addresses: ["10.7.0.2/16".parse().unwrap()].into(),
    }
}

pub fn result() -> CniResult {
    let text = format!(
        r#"{{"interfaces": [{{"name": "cni0"}}, {{"name": "veth1"}}, {{"name": "eth0", "mac": "{}", "sandbox": "{}"}}],
             "ips": [{{"address": "10.7.0.2/16", "gateway": "10.7.0.1", "interface": 2}}]}}"#,
        eth().mac,
        expected().netns().display()
    );
    CniResult::parse(&text, Version::V1_0_0).unwrap()
}

fn intent() -> Intent {
    let network = network("10.7.0.0/16");
    let attachment = expected().attachment();
    Intent {
        adding: false,
        ..Intent::new(network.digest(), network.clone(), attachment)
    }
}

fn remembered(result: CniResult) -> AddedSeen {
    AddedSeen::Recorded(Box::new(Added {
        network: network("10.7.0.0/16"),
        attachment: expected().attachment(),
        result,
    }))
}

fn tap(owner: Option<u32>) -> Tap {
    Tap {
        owner: owner.map(|uid| TapOwner { uid, gid: None }),
        mtu: MTU,
        ipv6_off: true,
    }
}

/// It, attached.
pub fn converged(desired: &Desired) -> Observed {
    Observed {
        record: Some("{}".to_owned()),
        dir: true,
        netns: NetnsSeen::Present(Some(desired.label.to_string())),
        handle: Some(desired.netns()),
        conflist: ConflistSeen::Found(Box::new(network("10.7.0.0/16"))),
        intent: IntentSeen::Written(Box::new(intent())),
        added: remembered(result()),
        inside: Some(Inside {
            eth: Some(eth()),
            tap: Some(tap(Some(1000))),
        }),
        check_failure: None,
        limited: None,
    }
}

prop_compose! {
    fn any_eth()(mac in any::<bool>(), address in any::<bool>(), up in any::<bool>(), mtu in prop::sample::select(vec![MTU, 1500])) -> Eth {
        let mut eth = Eth { up, mtu, ..eth() };
        if mac {
            eth.mac = Mac([2, 9, 9, 9, 9, 9]);
        }
        if address {
            eth.addresses = ["10.7.0.9/16".parse().unwrap()].into();
        }
        eth
    }
}

prop_compose! {
    fn any_tap()(owner in prop::option::of(prop::sample::select(vec![0, 1000])), mtu in prop::sample::select(vec![MTU, 1500]), ipv6_off in any::<bool>()) -> Tap {
        Tap { mtu, ipv6_off, ..tap(owner) }
    }
}

fn any_inside() -> impl Strategy<Value = Inside> {
    let eth = prop_oneof![2 => Just(Some(eth())), 1 => prop::option::of(any_eth())];
    (eth, prop::option::of(any_tap())).prop_map(|(eth, tap)| Inside { eth, tap })
}

fn any_intent() -> impl Strategy<Value = IntentSeen> {
    prop_oneof![
        Just(IntentSeen::Absent),
        Just(IntentSeen::Damaged),
        Just(IntentSeen::Written(Box::new(intent()))),
        // A crash between the ADD and the check of its result.
        Just(IntentSeen::Written(Box::new(Intent {
            adding: true,
            ..intent()
        }))),
        (1..7_u32).prop_map(|failed| IntentSeen::Written(Box::new(Intent { failed, ..intent() }))),
    ]
}

fn any_added() -> impl Strategy<Value = AddedSeen> {
    prop_oneof![
        2 => Just(remembered(result())),
        1 => Just(AddedSeen::Absent),
        1 => Just(AddedSeen::Damaged),
        // Nothing that a guest could use.
        1 => Just(remembered(CniResult::parse("{}", Version::V1_0_0).unwrap())),
    ]
}

prop_compose! {
    /// Whatever crashes and people leave, but no stranger. Without a trace of an ADD there is no interface.
    pub fn ours()(
        record in prop::option::of(prop::sample::select(vec!["{}", "old"])),
        dir in any::<bool>(),
        inside in prop::option::weighted(0.8, any_inside()),
        handle in any::<bool>(),
        changed in any::<bool>(),
        intent in any_intent(),
        added in any_added(),
        complaint in prop::option::weighted(0.2, Just("a route is missing".to_owned())),
    ) -> Observed {
        let desired = expected();
        let traced = intent != IntentSeen::Absent || added != AddedSeen::Absent;
        let inside = inside.map(|inside| Inside { eth: inside.eth.filter(|_| traced), ..inside });
        let asked = matches!(added, AddedSeen::Recorded(_))
            && inside.as_ref().is_some_and(|inside| inside.eth.is_some());
        Observed {
            dir: dir || record.is_some() || intent != IntentSeen::Absent,
            record: record.map(str::to_owned),
            netns: match inside {
                Some(_) => NetnsSeen::Present(Some(desired.label.to_string())),
                None => NetnsSeen::Absent,
            },
            handle: handle.then(|| desired.netns()),
            conflist: ConflistSeen::Found(Box::new(network(match changed {
                true => "10.8.0.0/16",
                false => "10.7.0.0/16",
            }))),
            intent,
            added,
            inside,
            check_failure: complaint.filter(|_| asked),
            limited: None,
        }
    }
}

prop_compose! {
    /// The same, perhaps with a stranger's namespace or handle in our place.
    pub fn anyones()(
        world in ours(),
        netns in prop::option::weighted(0.3, prop::option::of(Just("slice/aaaaa/ground".to_owned()))),
        handle in prop::option::weighted(0.3, prop::sample::select(vec!["/run/netns/theirs", "/elsewhere"])),
    ) -> Observed {
        let mut world = world;
        if let Some(alias) = netns {
            world.netns = NetnsSeen::Present(alias);
            world.inside = None;
            world.check_failure = None;
        }
        if let Some(handle) = handle {
            world.handle = Some(handle.into());
        }
        world
    }
}
