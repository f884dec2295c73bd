//! Footings, and what people do to the host's tables.
//! Not here: the laws; how a commit is carried out.

use proptest::prelude::*;
use slicectl::host::rule::Rule;
use slicectl::reconcile::ground::rules::jumps;
use slicectl::reconcile::ground::{Desired, Observed};
use slicectl::store::Footing;

use super::{bare, converged, edit, neighbour, our_chains, remove, wanted};

pub fn footing() -> impl Strategy<Value = Footing> {
    let pools = vec!["169.254.100.0/22", "169.254.104.0/22", "169.254.108.0/23"];
    let openings = vec!["10.0.0.1:53/udp", "10.0.0.1:80-90/tcp", "192.168.1.1:3128"];
    (
        prop::sample::subsequence(pools, 1..=3),
        prop::sample::subsequence(openings, 0..=3),
    )
        .prop_map(|(pools, openings)| {
            let pools: Vec<_> = pools
                .into_iter()
                .map(|pool| pool.parse().unwrap())
                .collect();
            let first = pools[0];
            Footing {
                pools: pools.into_iter().collect(),
                openings: openings
                    .into_iter()
                    .map(|entry| (first, entry.to_owned()))
                    .collect(),
                ..Footing::default()
            }
        })
}

/// One act of meddling with our chains and jumps.
#[derive(Clone, Debug)]
enum Meddling {
    FlushOurs(usize),
    RemoveOurs(usize),
    DropLastRule(usize),
    Unjump(usize),
    JumpTwice(usize),
    PutFirst(usize),
    Takeover(usize),
    Neighbour(usize),
    ForwardingOff,
}

fn meddling(strangers: bool) -> impl Strategy<Value = Meddling> {
    let harmless = prop_oneof![
        (0_usize..6).prop_map(Meddling::FlushOurs),
        (0_usize..6).prop_map(Meddling::RemoveOurs),
        (0_usize..6).prop_map(Meddling::DropLastRule),
        (0_usize..5).prop_map(Meddling::Unjump),
        (0_usize..5).prop_map(Meddling::JumpTwice),
        (0_usize..5).prop_map(Meddling::PutFirst),
        (0_usize..5).prop_map(Meddling::Neighbour),
        Just(Meddling::ForwardingOff),
    ];
    match strangers {
        false => harmless.boxed(),
        true => prop_oneof![3 => harmless, 1 => (0_usize..6).prop_map(Meddling::Takeover)].boxed(),
    }
}

fn meddle(desired: &Desired, world: &mut Observed, how: &Meddling) {
    let chains = our_chains(desired);
    let jumps = jumps(&desired.instance, false);
    let stranger = || "-s 192.0.2.77/32 -j ACCEPT".parse::<Rule>().unwrap();
    match *how {
        Meddling::FlushOurs(at) => edit(world, chains[at].0, &chains[at].1.name, Vec::clear),
        Meddling::RemoveOurs(at) => remove(world, chains[at].0, &chains[at].1.name),
        Meddling::DropLastRule(at) => edit(world, chains[at].0, &chains[at].1.name, |rules| {
            drop(rules.pop())
        }),
        Meddling::Unjump(at) => edit(world, jumps[at].table, &jumps[at].chain, |rules| {
            rules.retain(|rule| !jumps[at].rules.contains(rule));
        }),
        Meddling::JumpTwice(at) => edit(world, jumps[at].table, &jumps[at].chain, |rules| {
            let target = jumps[at].rules[0].jump();
            if rules.iter().any(|rule| rule.jump() == target) {
                rules.push(jumps[at].rules[0].clone());
            }
        }),
        Meddling::PutFirst(at) => edit(world, jumps[at].table, &jumps[at].chain, |rules| {
            rules.insert(0, stranger())
        }),
        Meddling::Takeover(at) => edit(world, chains[at].0, &chains[at].1.name, |rules| {
            rules.insert(0, stranger())
        }),
        Meddling::Neighbour(at) => edit(world, jumps[at].table, &jumps[at].chain, |rules| {
            rules.insert(0, neighbour())
        }),
        Meddling::ForwardingOff => world.forwarding = false,
    }
}

/// What is wanted, and a ground that carried the same or something else before people meddled with it.
pub fn case(strangers: bool) -> impl Strategy<Value = (Desired, Observed)> {
    let meddlings = prop::collection::vec(meddling(strangers), 0..5);
    (
        footing(),
        prop::option::of(footing()),
        any::<[bool; 2]>(),
        meddlings,
    )
        .prop_map(|(now, before, [built, docker], meddlings)| {
            let desired = wanted(now);
            let before = before.map_or_else(|| desired.clone(), wanted);
            let mut world = match built {
                true => converged(&before, docker),
                false => bare(docker),
            };
            for how in &meddlings {
                meddle(&desired, &mut world, how);
            }
            (desired, world)
        })
}
