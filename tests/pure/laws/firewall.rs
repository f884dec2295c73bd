//! The laws of the Firewall stage, on a model of the rules, the IPv6 block, the flows and the forwarding of a namespace.
//! Out of scope: which packets the rules pass.

use proptest::prelude::*;
use slicectl::api::network::{Block, Mac};
use slicectl::api::policy::{Entry, Policy};
use slicectl::host::rule::{Chain, Policy as ChainPolicy, Rule, Ruleset, Table, TableName, Target};
use slicectl::reconcile::firewall::isolated::{
    Action, Desired, IsolatedFirewall, Observed, Rules, rules,
};
use slicectl::reconcile::limits::Limit;
use slicectl::reconcile::{Conflict, Reconcile};

use crate::laws::model::{self, Model};

pub struct FirewallModel;

/// What a look shows, and what it shows only once the rules stand.
#[derive(Clone, Debug)]
pub struct World {
    pub seen: Observed,
    /// Tracked flows that the desired rules forbid.
    pub forbidden: usize,
}

proptest! {
    #[test]
    fn rules_at_rest_have_an_empty_plan(policy in policy()) {
        let desired = expected(&policy);
        model::rest::<FirewallModel>(&desired, &converged(&desired))?;
    }

    #[test]
    fn any_rules_converge((desired, world) in case()) {
        model::convergence::<FirewallModel>(&desired, world)?;
    }

    #[test]
    fn rules_converge_after_a_crash_between_any_two_actions((desired, world) in case()) {
        model::prefix_safety::<FirewallModel>(&desired, world)?;
    }

    #[test]
    fn without_rules_the_forwarding_switch_is_shut((desired, world) in case()) {
        model::deletion::<FirewallModel>(&Desired { rules: None, ..desired }, world)?;
    }

    #[test]
    fn only_an_observation_of_rules_and_blocked_ipv6_turns_forwarding_on((desired, world) in case()) {
        let plan = FirewallModel::plan(&desired, &world).unwrap();
        let found = world.seen.ruleset == desired.rules.unwrap().ruleset && world.seen.ipv6_blocked;
        prop_assert!(found || !plan.contains(&Action::EnableForwarding));
    }

    #[test]
    fn a_forwarding_switch_that_fails_open_is_shut_before_anything_else((desired, world) in case()) {
        let existing = world.seen.ruleset == desired.rules.as_ref().unwrap().ruleset;
        let fails_open = ["INPUT", "FORWARD"]
            .iter()
            .any(|chain| world.seen.ruleset.policy(TableName::Filter, chain) != ChainPolicy::Drop);
        let plan = FirewallModel::plan(&desired, &world).unwrap();
        let shuts = plan.iter().position(|action| *action == Action::DisableForwarding);
        prop_assert_eq!(shuts, (world.seen.forwarding && !existing && fails_open).then_some(0));
    }

    #[test]
    fn whatever_is_done_the_forwarding_switch_is_never_opened_on_wrong_rules((desired, mut world) in case()) {
        for _ in 0..4 {
            for action in FirewallModel::plan(&desired, &world).unwrap() {
                let before = world.seen.forwarding;
                FirewallModel::apply(&desired, &mut world, &action);
                let opened = world.seen.forwarding && !before;
                prop_assert!(!opened || world.seen.ruleset == desired.rules.as_ref().unwrap().ruleset);
            }
        }
    }

    #[test]
    fn the_predicted_state_is_the_one_that_the_steps_lead_to((desired, mut world) in case()) {
        for _ in 0..3 {
            let observed = look(&desired, &world);
            let plan = IsolatedFirewall::plan(&desired, &observed).unwrap();
            let predicted = IsolatedFirewall::predict(&desired, &observed, &plan).unwrap();
            for action in &plan {
                FirewallModel::apply(&desired, &mut world, action);
            }
            // Which flows are forbidden is seen only when the rules are in place.
            let seen = Observed { forbidden_flows: predicted.forbidden_flows, ..look(&desired, &world) };
            prop_assert_eq!(predicted, seen);
        }
    }

    #[test]
    fn a_live_change_does_not_shut_the_forwarding_switch(from in policy(), to in policy()) {
        let existing = converged(&expected(&from));
        let plan = FirewallModel::plan(&expected(&to), &existing).unwrap();
        prop_assert!(!plan.contains(&Action::DisableForwarding));
    }
}

impl Model for FirewallModel {
    type Desired = Desired;
    type World = World;
    type Action = Action;

    fn plan(desired: &Desired, world: &World) -> Result<Vec<Action>, Conflict> {
        IsolatedFirewall::plan(desired, &look(desired, world))
    }

    fn apply(desired: &Desired, world: &mut World, action: &Action) {
        let rules = desired.rules.as_ref();
        match action {
            Action::DisableForwarding => world.seen.forwarding = false,
            Action::EnableForwarding => world.seen.forwarding = true,
            Action::BlockIpv6 => world.seen.ipv6_blocked = true,
            Action::CommitRules { digest } => {
                let rules = rules.expect("rules to commit");
                assert_eq!(*digest, rules.digest);
                world.seen.ruleset = rules.ruleset.clone();
            }
            Action::DeleteFlows(count) => {
                assert_eq!(*count, world.forbidden);
                world.forbidden = 0;
            }
        }
    }

    fn foreign(_: &Desired, _: &World) -> Vec<String> {
        Vec::new()
    }

    fn ours(_: &Desired, world: &World) -> Vec<String> {
        let open = world.seen.forwarding.then(|| "an open gate".to_owned());
        open.into_iter().collect()
    }

    fn is_as_desired(desired: &Desired, world: &World) -> bool {
        match &desired.rules {
            None => !world.seen.forwarding,
            Some(rules) => {
                world.seen.forwarding
                    && world.seen.ipv6_blocked
                    && world.seen.ruleset == rules.ruleset
                    && (world.forbidden == 0
                        || rules.checked_against.as_ref() == Some(&rules.digest))
            }
        }
    }
}

/// As [`Firewall::observe`] looks.
fn look(desired: &Desired, world: &World) -> Observed {
    let is_forbidden_checked = desired.rules.as_ref().is_some_and(|rules| {
        world.seen.ruleset == rules.ruleset && rules.checked_against.as_ref() != Some(&rules.digest)
    });
    Observed {
        forbidden_flows: if is_forbidden_checked {
            world.forbidden
        } else {
            0
        },
        ..world.seen.clone()
    }
}

/// What a policy wants.
pub fn expected(policy: &Policy) -> Desired {
    let block = Block::around([169, 254, 100, 4].into());
    let ruleset = rules::compile(policy, block, Mac([2, 0, 0, 0, 0, 1]), Limit::of(512));
    Desired {
        netns: "/run/slice/netns/slice-abcdefghijkl".into(),
        lock: "/run/slice/vm/7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a44/xtables.lock".into(),
        rules: Some(Rules {
            digest: rules::digest(&ruleset),
            ruleset,
            checked_against: None,
            policy: policy.clone(),
            guest: block.guest(),
            limit: 512,
        }),
    }
}

/// It, standing.
pub fn converged(desired: &Desired) -> World {
    let seen = Observed {
        netns: true,
        ruleset: desired.rules.as_ref().unwrap().ruleset.clone(),
        ipv6_blocked: true,
        forwarding: true,
        generation: None,
        refused: None,
        forbidden_flows: 0,
    };
    World { seen, forbidden: 0 }
}

fn policy() -> impl Strategy<Value = Policy> {
    let entries: Vec<Entry> = [
        "10.0.0.0/8",
        "192.168.1.0/24:80-90/tcp",
        "1.1.1.1:53",
        "8.8.8.8/udp",
    ]
    .map(|entry| entry.parse().unwrap())
    .to_vec();
    let list = || prop::sample::subsequence(entries.clone(), 0..=4);
    (list(), list(), any::<bool>()).prop_map(|(allow, drop, allow_metadata)| Policy {
        allow,
        drop,
        allow_metadata,
        ..Policy::default()
    })
}

/// Nothing, another policy's rules, rules with one removed, flushed ones, opened ones, a stranger's.
fn meddled(desired: &Desired, other: &Desired, how: usize, at: usize) -> Ruleset {
    let right = desired.rules.as_ref().unwrap().ruleset.clone();
    let edit = |change: &dyn Fn(&mut Chain)| {
        let mut tables: Vec<Table> = right.tables().to_vec();
        tables
            .iter_mut()
            .flat_map(|table| &mut table.chains)
            .for_each(change);
        Ruleset::new(tables)
    };
    match how {
        0 => Ruleset::default(),
        1 => other.rules.as_ref().unwrap().ruleset.clone(),
        2 => edit(&|chain| drop(chain.rules.pop())),
        3 => edit(&|chain| chain.rules.clear()),
        4 => edit(&|chain| chain.policy = chain.policy.map(|_| ChainPolicy::Accept)),
        5 => edit(&|chain| {
            chain
                .rules
                .insert(at.min(chain.rules.len()), Rule::when().then(Target::Accept))
        }),
        _ => right,
    }
}

fn case() -> impl Strategy<Value = (Desired, World)> {
    (
        policy(),
        policy(),
        0_usize..9,
        0_usize..4,
        any::<[bool; 3]>(),
        0_usize..3,
    )
        .prop_map(|(policy, other, how, at, [sealed, open, judged], flows)| {
            let mut desired = expected(&policy);
            let ruleset = meddled(&desired, &expected(&other), how, at);
            let rules = desired.rules.as_mut().unwrap();
            rules.checked_against = judged.then(|| rules.digest.clone());
            let seen = Observed {
                netns: true,
                ruleset,
                ipv6_blocked: sealed,
                forwarding: open,
                generation: None,
                refused: None,
                forbidden_flows: 0,
            };
            (
                desired,
                World {
                    seen,
                    forbidden: flows,
                },
            )
        })
}
