//! The bridges: managed bridges are created and kept as specified, unmanaged bridges are used as they are. Pure.
//! Out of scope: their ports; the rules about them ([`super::rules`]).
//!
//! # Why
//! A link that has the name of a required bridge but is not a bridge blocks neither the host network nor other groups: it is not changed,
//! no rules are written for it, and the VMs that require it report it (the Net stage).

use std::collections::BTreeSet;

use ipnetwork::Ipv4Network;

use super::rule_input::{BridgeKind, BridgeSubnet};
use super::state::{Action, BridgeSeen, Desired, Observed};
use crate::api::lease::subnet;
use crate::owner::{self};
use crate::reconcile::net::MTU;

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let required = &desired.requirements.bridges;
    let mut plan = Vec::new();
    for (name, gateways) in required {
        match observed.bridges.get(name) {
            None => plan_creation(name, gateways, &mut plan),
            Some(seen) if seen.owned(desired, name).is_some() => {
                plan_changes(desired, name, seen, &mut plan);
            }
            Some(_) => {}
        }
    }
    let unneeded = observed.bridges.iter();
    let unwanted = unneeded.filter(|(name, _)| !required.contains_key(*name));
    plan.extend(
        unwanted
            .filter_map(|(name, seen)| seen.owned(desired, name))
            .map(Action::DeleteBridge),
    );
    plan
}

fn plan_creation(name: &str, gateways: &BTreeSet<Ipv4Network>, plan: &mut Vec<Action>) {
    plan.push(Action::CreateBridge(name.to_owned()));
    plan.push(Action::LabelBridge(name.to_owned()));
    let add = |gateway: &Ipv4Network| Action::AddGateway(name.to_owned(), *gateway);
    plan.extend(gateways.iter().map(add));
    plan.push(Action::SetBridgeUp(name.to_owned()));
}

fn plan_changes(desired: &Desired, name: &str, seen: &BridgeSeen, plan: &mut Vec<Action>) {
    let bridge = || name.to_owned();
    if seen.alias.is_none() {
        plan.push(Action::LabelBridge(bridge()));
    }
    let mac = owner::bridge_mac(&desired.instance, name);
    if seen.mac != mac || seen.mtu != MTU || !seen.configured {
        plan.push(Action::ConfigureBridge(bridge()));
    }
    let gateways = desired.requirements.bridges.get(name);
    let is_required = |address: &&Ipv4Network| gateways.is_some_and(|all| all.contains(*address));
    // An address that was never specified was added by another program.
    let previous = desired.previous.bridges.get(name).into_iter().flatten();
    let stale =
        previous.filter(|address| !is_required(address) && seen.addresses.contains(*address));
    plan.extend(stale.map(|address| Action::RemoveGateway(bridge(), *address)));
    let missing = gateways.into_iter().flatten();
    let missing = missing.filter(|address| !seen.addresses.contains(*address));
    plan.extend(missing.map(|address| Action::AddGateway(bridge(), *address)));
    if !seen.up {
        plan.push(Action::SetBridgeUp(bridge()));
    }
}

/// What the rules need to know of each subnet on a bridge.
pub(super) fn bridge_subnets(desired: &Desired, observed: &Observed) -> Vec<BridgeSubnet> {
    let mut sides = Vec::new();
    for (name, gateways) in &desired.requirements.bridges {
        let seen = observed.bridges.get(name);
        if seen.is_some_and(|seen| !seen.is_bridge) {
            continue;
        }
        sides.extend(gateways.iter().map(|gateway| BridgeSubnet {
            bridge: name.clone(),
            subnet: subnet(*gateway),
            kind: match seen {
                Some(seen) if seen.owned(desired, name).is_none() => {
                    match seen.addresses.contains(gateway) {
                        true => BridgeKind::UnmanagedLocalGateway,
                        false => BridgeKind::UnmanagedRemoteGateway,
                    }
                }
                Some(_) | None => BridgeKind::Managed,
            },
        }));
    }
    sides
}
