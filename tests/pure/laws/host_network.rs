//! The laws of the host network, and a model of the tables of the host.
//! Out of scope: which packets the chains pass.

use proptest::prelude::*;
use slicectl::api::lease::subnet;
use slicectl::host::routing_rule::RoutingRule;
use slicectl::host::rule::{Chain, Policy as ChainPolicy, Rule, Ruleset, Table, TableName, Target};
use slicectl::owner::Instance;
use slicectl::reconcile::host_network::rules::{self, TableChain};
use slicectl::reconcile::host_network::{
    Action, BridgeKind, BridgeSubnet, Commit, Desired, HostNetwork, Jump, Limits, Observed,
    RuleInput,
};
use slicectl::reconcile::limits::{Limit, TIMEOUTS};
use slicectl::reconcile::{Conflict, Reconcile};
use slicectl::store::HostRequirements;

use self::states::{case, requirements};
use crate::laws::model::{self, Model};

mod bridges;
mod states;

pub struct HostNetworkModel;

const TABLES: [TableName; 4] = [
    TableName::Raw,
    TableName::Mangle,
    TableName::Nat,
    TableName::Filter,
];

proptest! {
    #[test]
    fn a_converged_host_network_has_an_empty_plan(requirements in requirements(), docker in any::<bool>()) {
        let desired = expected(requirements, HostRequirements::default());
        model::rest::<HostNetworkModel>(&desired, &converged(&desired, docker))?;
    }

    #[test]
    fn any_host_network_converges((desired, world) in case(false)) {
        model::convergence::<HostNetworkModel>(&desired, world)?;
    }

    #[test]
    fn the_host_network_converges_after_a_crash_between_any_two_actions((desired, world) in case(false)) {
        model::prefix_safety::<HostNetworkModel>(&desired, world)?;
    }

    #[test]
    fn a_foreign_chain_or_rule_is_never_touched((desired, world) in case(true)) {
        model::modesty::<HostNetworkModel>(&desired, world)?;
    }

    #[test]
    fn deletion_leaves_nothing_of_the_host_network_and_all_foreign_rules((desired, world) in case(true)) {
        let nothing = Desired { previous: desired.requirements.clone(), requirements: HostRequirements::default(), ..desired };
        model::deletion::<HostNetworkModel>(&nothing, world)?;
    }

    #[test]
    fn without_a_pool_and_a_bridge_nothing_is_made(docker in any::<bool>()) {
        let nothing = expected(HostRequirements::default(), HostRequirements::default());
        prop_assert_eq!(HostNetworkModel::plan(&nothing, &bare(docker)).unwrap(), vec![]);
    }
}

impl Model for HostNetworkModel {
    type Desired = Desired;
    type World = Observed;
    type Action = Action;

    fn plan(desired: &Desired, world: &Observed) -> Result<Vec<Action>, Conflict> {
        HostNetwork::plan(desired, world)
    }

    fn apply(desired: &Desired, world: &mut Observed, action: &Action) {
        match action {
            Action::AddRoutingRule(priority, to) => {
                world
                    .routing
                    .push(RoutingRule::via_main_table(*priority, *to));
            }
            Action::RemoveRoutingRule(priority, to) => {
                let gone = RoutingRule::via_main_table(*priority, *to);
                world.routing.retain(|rule| *rule != gone);
            }
            Action::EnableForwarding => world.forwarding = true,
            Action::SetTimeouts => world.timeouts = Some(timeouts()),
            Action::RemoveTimeouts => {
                let mut tables = world.ruleset.tables().iter().flat_map(|t| &t.chains);
                let refers = |rule: &Rule| rule.to_string().contains("CT --timeout");
                let busy = tables.any(|chain| chain.rules.iter().any(refers));
                assert!(!busy, "a rule refers to the timeouts");
                world.timeouts = None;
            }
            Action::Commit(commit) => apply_commit(desired, world, commit),
            Action::CreateBridge(_)
            | Action::LabelBridge(_)
            | Action::ConfigureBridge(_)
            | Action::AddGateway(..)
            | Action::RemoveGateway(..)
            | Action::SetBridgeUp(_)
            | Action::DeleteBridge(_) => bridges::apply(desired, world, action),
        }
    }

    /// Every chain without our jumps, but for our chains; and which of our names strangers hold.
    fn foreign(desired: &Desired, world: &Observed) -> Vec<String> {
        let prefix = desired.instance.chain("");
        let mut foreign = Vec::new();
        for table in world.ruleset.tables() {
            for chain in &table.chains {
                if chain.name.starts_with(&prefix) && is_ours(desired, chain) {
                    continue;
                }
                let rules: Vec<String> = chain
                    .rules
                    .iter()
                    .filter(|rule| !jumps_to_us(&prefix, rule))
                    .map(ToString::to_string)
                    .collect();
                if chain.policy != Some(ChainPolicy::Accept) || !rules.is_empty() {
                    foreign.push(format!(
                        "{} {} {:?} {rules:?}",
                        table.name, chain.name, chain.policy
                    ));
                }
            }
        }
        foreign.extend(bridges::foreign(desired, world));
        foreign
    }

    fn ours(desired: &Desired, world: &Observed) -> Vec<String> {
        let prefix = desired.instance.chain("");
        let mut ours = Vec::new();
        for table in world.ruleset.tables() {
            for chain in &table.chains {
                if chain.name.starts_with(&prefix) && is_ours(desired, chain) {
                    ours.push(chain.name.clone());
                }
                let to_us = chain.rules.iter().filter(|rule| jumps_to_us(&prefix, rule));
                // A jump into a stranger's chain is the stranger's.
                let held = |rule: &&Rule| {
                    let target = world.ruleset.chain(table.name, rule.jump().unwrap());
                    target.is_none_or(|chain| is_ours(desired, chain))
                };
                ours.extend(to_us.filter(held).map(ToString::to_string));
            }
        }
        ours.extend(bridges::ours(desired, world));
        ours
    }

    fn is_as_desired(desired: &Desired, world: &Observed) -> bool {
        if desired.requirements.is_empty() {
            return Self::ours(desired, world).is_empty();
        }
        let prefix = desired.instance.chain("");
        let docker = world
            .ruleset
            .chain(TableName::Filter, "DOCKER-USER")
            .is_some();
        let expected = our_chains(desired, world);
        let written = expected
            .iter()
            .all(|(table, chain)| world.ruleset.chain(*table, &chain.name) == Some(chain));
        let is_desired = |table: TableName, chain: &Chain| {
            let same = |(at, expected): &&TableChain| *at == table && expected.name == chain.name;
            expected.iter().any(|placed| same(&placed))
        };
        let none_else = world.ruleset.tables().iter().all(|table| {
            let mut ours = table
                .chains
                .iter()
                .filter(|chain| chain.name.starts_with(&prefix) && is_ours(desired, chain));
            ours.all(|chain| is_desired(table.name, chain))
        });
        let first = our_jumps(desired, world, docker).iter().all(|jump| {
            let rules = world.ruleset.rules(jump.table, &jump.chain);
            let others = rules
                .iter()
                .take_while(|rule| **rule == neighbour())
                .count();
            let (first, rest) =
                rules[others..].split_at(jump.rules.len().min(rules.len() - others));
            first == jump.rules && !rest.iter().any(|rule| jumps_to_us(&prefix, rule))
        });
        let limited = world.timeouts == (!desired.requirements.is_empty()).then(timeouts);
        world.forwarding
            && limited
            && written
            && none_else
            && first
            && bridges::are_as_desired(desired, world)
    }
}

fn apply_commit(desired: &Desired, world: &mut Observed, commit: &Commit) {
    let prefix = desired.instance.chain("");
    let mut tables = Tables::of(&world.ruleset);
    for (table, chain) in &commit.write_chains {
        let place = tables.chain(*table, &chain.name);
        assert!(is_ours(desired, place), "{} is a stranger's", chain.name);
        *place = chain.clone();
    }
    for (table, chain, rule) in &commit.remove_jumps {
        assert!(jumps_to_us(&prefix, rule), "not our jump: {rule}");
        let rules = &mut tables.chain(*table, chain).rules;
        let at = rules
            .iter()
            .position(|found| found == rule)
            .expect("the rule to remove");
        rules.remove(at);
    }
    for jump in &commit.insert_jumps {
        assert!(jump.rules.iter().all(|rule| jumps_to_us(&prefix, rule)));
        let rules = &mut tables.chain(jump.table, &jump.chain).rules;
        rules.splice(0..0, jump.rules.iter().cloned());
    }
    for (table, name) in &commit.remove_chains {
        assert!(
            is_ours(desired, tables.chain(*table, name)),
            "{name} is a stranger's"
        );
        tables.remove(*table, name);
    }
    world.ruleset = tables.ruleset();
}

/// All four tables with their builtin chains, also the empty ones.
struct Tables(Vec<Table>);

impl Tables {
    fn of(ruleset: &Ruleset) -> Self {
        let chains = |name| Table {
            name,
            chains: ruleset.chains(name).to_vec(),
        };
        Self(TABLES.map(chains).to_vec())
    }

    fn chain(&mut self, table: TableName, name: &str) -> &mut Chain {
        let table = self.0.iter_mut().find(|found| found.name == table).unwrap();
        let at = table.chains.iter().position(|chain| chain.name == name);
        let at = at.unwrap_or_else(|| {
            let builtin = name.chars().all(|c| c.is_ascii_uppercase());
            table.chains.push(Chain {
                name: name.to_owned(),
                policy: builtin.then_some(ChainPolicy::Accept),
                rules: vec![],
            });
            table.chains.len() - 1
        });
        &mut table.chains[at]
    }

    /// The kernel refuses while a jump leads there.
    fn remove(&mut self, table: TableName, name: &str) {
        let table = self.0.iter_mut().find(|found| found.name == table).unwrap();
        let used = |chain: &Chain| chain.rules.iter().any(|rule| rule.jump() == Some(name));
        assert!(
            !table
                .chains
                .iter()
                .any(|chain| chain.name != name && used(chain)),
            "{name} is in use"
        );
        table.chains.retain(|chain| chain.name != name);
    }

    fn ruleset(self) -> Ruleset {
        Ruleset::new(self.0)
    }
}

fn is_ours(desired: &Desired, chain: &Chain) -> bool {
    let label = desired.instance.host_network_label().to_string();
    chain
        .rules
        .first()
        .is_none_or(|first| first.comment() == Some(label.as_str()))
}

fn jumps_to_us(prefix: &str, rule: &Rule) -> bool {
    rule.jump().is_some_and(|chain| chain.starts_with(prefix))
}

/// The jump of another daemon on this host.
fn neighbour() -> Rule {
    let other = Instance::of("/other".as_ref());
    Rule::when()
        .in_if(other.link_wildcard())
        .jump(other.chain("OUT"))
}

/// The desired state with these requirements after other requirements were met.
pub fn expected(requirements: HostRequirements, before: HostRequirements) -> Desired {
    Desired {
        instance: Instance::of("/state".as_ref()),
        requirements,
        previous: before,
    }
}

fn our_chains(desired: &Desired, world: &Observed) -> Vec<TableChain> {
    with_carried(desired, world, rules::chains)
}

fn our_jumps(desired: &Desired, world: &Observed, docker: bool) -> Vec<Jump> {
    with_carried(desired, world, |carried| rules::jumps(carried, docker))
}

fn with_carried<T>(desired: &Desired, world: &Observed, of: impl Fn(&RuleInput<'_>) -> T) -> T {
    let openings: Vec<_> = desired
        .requirements
        .openings
        .iter()
        .map(|(pool, entry)| (*pool, entry.parse().unwrap()))
        .collect();
    let mut sides = Vec::new();
    for (bridge, gateways) in &desired.requirements.bridges {
        for gateway in gateways {
            let existing = match world.bridges.get(bridge) {
                None => Some(BridgeKind::Managed),
                Some(seen) if bridges::is_ours(desired, bridge, seen) => Some(BridgeKind::Managed),
                Some(seen) if !seen.is_bridge => None,
                Some(seen) if seen.addresses.contains(gateway) => {
                    Some(BridgeKind::UnmanagedLocalGateway)
                }
                Some(_) => Some(BridgeKind::UnmanagedRemoteGateway),
            };
            sides.extend(existing.map(|existing| BridgeSubnet {
                bridge: bridge.clone(),
                subnet: subnet(*gateway),
                kind: existing,
            }));
        }
    }
    of(&RuleInput {
        instance: &desired.instance,
        pools: &desired.requirements.pools,
        host_ports: &openings,
        bridge_subnets: &sides,
        cni_subnets: &desired.requirements.cni_subnets,
        max_connections: &desired.requirements.max_connections,
        limits: &Limits {
            share: Limit::default_for(world.conntrack_max),
            on_link: world.on_link.clone(),
        },
        foreign: &world.foreign,
    })
}

/// What VMs' TCP connections have.
fn timeouts() -> std::collections::BTreeMap<u16, u32> {
    let of = |(_, state, seconds): (&str, u16, u32)| (state, seconds);
    TIMEOUTS.into_iter().map(of).collect()
}

/// Other people's rules alone.
pub fn bare(docker: bool) -> Observed {
    let stranger = |text: &str| text.parse::<Rule>().unwrap();
    let mut filter = vec![
        Chain::builtin(
            "INPUT",
            ChainPolicy::Drop,
            vec![stranger("-i lo -j ACCEPT")],
        ),
        Chain::builtin(
            "FORWARD",
            ChainPolicy::Drop,
            vec![stranger("-s 192.0.2.0/24 -j ACCEPT")],
        ),
        Chain::user("SLICE-OTHER-OUT", vec![stranger("-s 192.0.2.9/32 -j DROP")]),
    ];
    if docker {
        filter.push(Chain::user(
            "DOCKER-USER",
            vec![Rule::when().then(Target::Return)],
        ));
    }
    let nat = vec![Chain::builtin(
        "POSTROUTING",
        ChainPolicy::Accept,
        vec![stranger("-s 172.17.0.0/16 -j MASQUERADE")],
    )];
    let ruleset = Ruleset::new([
        Table {
            name: TableName::Filter,
            chains: filter,
        },
        Table {
            name: TableName::Nat,
            chains: nat,
        },
    ]);
    Observed {
        ruleset,
        ..Observed::default()
    }
}

/// Other people's rules, and ours as they must stand, and our bridges.
pub fn converged(desired: &Desired, docker: bool) -> Observed {
    let mut world = Observed {
        forwarding: true,
        bridges: bridges::converged(desired),
        timeouts: (!desired.requirements.is_empty()).then(timeouts),
        ..bare(docker)
    };
    let mut tables = Tables::of(&world.ruleset);
    for (table, chain) in our_chains(desired, &world) {
        let name = chain.name.clone();
        *tables.chain(table, &name) = chain;
    }
    for jump in our_jumps(desired, &world, docker) {
        let rules = &mut tables.chain(jump.table, &jump.chain).rules;
        rules.splice(0..0, jump.rules);
    }
    if !desired.requirements.is_empty() {
        world.ruleset = tables.ruleset();
    }
    world
}

/// Changes one chain.
pub fn edit(
    world: &mut Observed,
    table: TableName,
    chain: &str,
    change: impl FnOnce(&mut Vec<Rule>),
) {
    let mut tables = Tables::of(&world.ruleset);
    change(&mut tables.chain(table, chain).rules);
    world.ruleset = tables.ruleset();
}

/// Removes one chain and the jumps to it.
pub fn remove(world: &mut Observed, table: TableName, chain: &str) {
    let mut tables = Tables::of(&world.ruleset);
    for other in tables.0.iter_mut().flat_map(|table| &mut table.chains) {
        other.rules.retain(|rule| rule.jump() != Some(chain));
    }
    tables.remove(table, chain);
    world.ruleset = tables.ruleset();
}
