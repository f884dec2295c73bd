//! Footings, and what people do to the host's tables.
//! Out of scope: the laws; how a commit is carried out.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::Ipv4Network;
use proptest::prelude::*;
use slicectl::host::rule::Rule;
use slicectl::reconcile::host_network::{Desired, Observed};
use slicectl::store::HostRequirements;

use super::{bare, bridges, converged, edit, expected, neighbour, our_chains, our_jumps, remove};

pub fn requirements() -> impl Strategy<Value = HostRequirements> {
    prop_oneof![
        (pools(1), bridges(0)).prop_map(|(pools, bridges)| HostRequirements { bridges, ..pools }),
        (pools(0), bridges(1)).prop_map(|(pools, bridges)| HostRequirements { bridges, ..pools }),
    ]
}

fn pools(least: usize) -> impl Strategy<Value = HostRequirements> {
    let pools = vec!["169.254.100.0/22", "169.254.104.0/22", "169.254.108.0/23"];
    let openings = vec!["10.0.0.1:53/udp", "10.0.0.1:80-90/tcp", "192.168.1.1:3128"];
    (
        prop::sample::subsequence(pools, least..=3),
        prop::sample::subsequence(openings, 0..=3),
        prop::sample::subsequence(vec!["10.88.0.0/16"], 0..=1),
    )
        .prop_map(|(pools, openings, cni_nets)| {
            let pools: BTreeSet<Ipv4Network> = pools
                .into_iter()
                .map(|pool| pool.parse().unwrap())
                .collect();
            let first = pools.first().copied();
            let open = |entry: &str| Some((first?, entry.to_owned()));
            HostRequirements {
                openings: openings.into_iter().filter_map(open).collect(),
                cni_subnets: cni_nets.iter().map(|net| net.parse().unwrap()).collect(),
                pools,
                ..HostRequirements::default()
            }
        })
}

fn bridges(least: usize) -> impl Strategy<Value = BTreeMap<String, BTreeSet<Ipv4Network>>> {
    let gateways = vec![
        ("brvm0", "192.168.137.1/24"),
        ("brvm0", "192.168.137.254/24"),
        ("brvm0", "192.168.138.1/24"),
        ("brvm1", "10.7.0.1/16"),
    ];
    prop::sample::subsequence(gateways, least..=4).prop_map(|gateways| {
        let mut bridges: BTreeMap<String, BTreeSet<Ipv4Network>> = BTreeMap::new();
        for (bridge, gateway) in gateways {
            let known = bridges.entry(bridge.to_owned()).or_default();
            known.insert(gateway.parse().unwrap());
        }
        bridges
    })
}

/// One act of meddling with our chains and jumps.
#[derive(Clone, Debug)]
enum Meddling {
    FlushOurs(usize),
    RemoveOurs(usize),
    DropFirstRule(usize),
    DropLastRule(usize),
    Unjump(usize),
    JumpTwice(usize),
    PutFirst(usize),
    Takeover(usize),
    Neighbour(usize),
    ForwardingOff,
    Bridge(usize, bridges::Act),
}

fn meddling(strangers: bool) -> impl Strategy<Value = Meddling> {
    let harmless = prop_oneof![
        (0_usize..14).prop_map(Meddling::FlushOurs),
        (0_usize..14).prop_map(Meddling::RemoveOurs),
        (0_usize..14).prop_map(Meddling::DropFirstRule),
        (0_usize..14).prop_map(Meddling::DropLastRule),
        (0_usize..5).prop_map(Meddling::Unjump),
        (0_usize..5).prop_map(Meddling::JumpTwice),
        (0_usize..5).prop_map(Meddling::PutFirst),
        (0_usize..5).prop_map(Meddling::Neighbour),
        Just(Meddling::ForwardingOff),
        (0_usize..2, bridges::act()).prop_map(|(at, how)| Meddling::Bridge(at, how)),
    ];
    match strangers {
        false => harmless.boxed(),
        true => prop_oneof![3 => harmless, 1 => (0_usize..14).prop_map(Meddling::Takeover)].boxed(),
    }
}

fn meddle(desired: &Desired, world: &mut Observed, how: &Meddling) {
    let chains = our_chains(desired, world);
    let jumps = our_jumps(desired, world, false);
    // Only chains that others of ours lead to may be left.
    if chains.is_empty() || jumps.is_empty() {
        return;
    }
    let stranger = || "-s 192.0.2.77/32 -j ACCEPT".parse::<Rule>().unwrap();
    let chain = |at: usize| &chains[at % chains.len()];
    let jump = |at: usize| &jumps[at % jumps.len()];
    match how {
        Meddling::FlushOurs(at) => edit(world, chain(*at).0, &chain(*at).1.name, Vec::clear),
        Meddling::RemoveOurs(at) => remove(world, chain(*at).0, &chain(*at).1.name),
        Meddling::DropFirstRule(at) => edit(world, chain(*at).0, &chain(*at).1.name, |rules| {
            drop(rules.drain(..rules.len().min(1)))
        }),
        Meddling::DropLastRule(at) => edit(world, chain(*at).0, &chain(*at).1.name, |rules| {
            drop(rules.pop())
        }),
        Meddling::Unjump(at) => edit(world, jump(*at).table, &jump(*at).chain, |rules| {
            rules.retain(|rule| !jump(*at).rules.contains(rule));
        }),
        Meddling::JumpTwice(at) => edit(world, jump(*at).table, &jump(*at).chain, |rules| {
            let target = jump(*at).rules[0].jump();
            if rules.iter().any(|rule| rule.jump() == target) {
                rules.push(jump(*at).rules[0].clone());
            }
        }),
        Meddling::PutFirst(at) => edit(world, jump(*at).table, &jump(*at).chain, |rules| {
            rules.insert(0, stranger())
        }),
        Meddling::Takeover(at) => edit(world, chain(*at).0, &chain(*at).1.name, |rules| {
            rules.insert(0, stranger())
        }),
        Meddling::Neighbour(at) => edit(world, jump(*at).table, &jump(*at).chain, |rules| {
            rules.insert(0, neighbour())
        }),
        Meddling::ForwardingOff => world.forwarding = false,
        Meddling::Bridge(at, how) => bridges::meddle(desired, world, *at, how),
    }
}

/// The desired state, and a host network that had the same or another one before people changed it.
pub fn case(strangers: bool) -> impl Strategy<Value = (Desired, Observed)> {
    let meddlings = prop::collection::vec(meddling(strangers), 0..5);
    (
        requirements(),
        prop::option::of(requirements()),
        any::<[bool; 2]>(),
        meddlings,
    )
        .prop_map(|(now, before, [built, docker], meddlings)| {
            let before = before.unwrap_or_else(|| now.clone());
            let mut world = match built {
                true => converged(
                    &expected(before.clone(), HostRequirements::default()),
                    docker,
                ),
                false => bare(docker),
            };
            let desired = expected(now, before);
            for how in &meddlings {
                meddle(&desired, &mut world, how);
            }
            (desired, world)
        })
}
