//! Checks whether forwarded packets of VMs can pass: `ip_forward`, the FORWARD chain and other programs with rules in it.
//! Out of scope: the back end of the rules; foreign forward chains (`native`).

use std::net::Ipv4Addr;

use super::filter::Observed;
use super::{Host, fail, ok, unseen, warn};
use crate::api::view::Check;
use crate::host::error_chain;
use crate::host::iptables::Flavour;
use crate::host::link::{self, Link};
use crate::host::rule::{Policy, Rule, Ruleset, TableName};
use crate::host::{route, sysctl};

const IP_FORWARD: &str = "ip_forward";
const UPLINK: &str = "uplink forwarding";
/// A public address: the route to it is the default route. No packet is sent to it.
const PUBLIC_ADDRESS: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);
const CHAIN: &str = "FORWARD chain";
const NETWORKS: &str = "CNI networks and FORWARD";
const BRIDGE_NF: &str = "bridge-nf-call-iptables";
const RP_FILTER: &str = "rp_filter";

const KEYS: [&str; 4] = [
    "net.ipv4.ip_forward",
    "net.bridge.bridge-nf-call-iptables",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.default.rp_filter",
];

pub(super) async fn checks(cx: &Host, observed: &Observed) -> Vec<Check> {
    let mut checks = match cx.home.run(|| sysctl::read_many(&KEYS)).await {
        Ok(values) => {
            let value = |index: usize| values.get(index).and_then(Option::as_deref);
            vec![
                evaluate_ip_forward(value(0)),
                evaluate_bridge_nf(value(1)),
                evaluate_rp_filter(value(2), value(3)),
            ]
        }
        Err(error) => vec![unseen(IP_FORWARD, &error_chain(&error))],
    };
    checks.push(uplink(cx).await);
    checks.push(evaluate_chain(observed, &cx.instance.chain("")));
    checks.extend(evaluate_networks(observed, &networks_without_firewall(cx)));
    checks
}

fn evaluate_ip_forward(ip_forward: Option<&str>) -> Check {
    match ip_forward {
        Some("1") => ok(IP_FORWARD, "on"),
        Some(_) => warn(
            IP_FORWARD,
            "off: VMs reach only their gateway",
            "sliced turns it on with the first VM; if it is off again, find the program that turns it off, and keep it on: \
             `echo net.ipv4.ip_forward=1 > /etc/sysctl.d/90-slice.conf && sysctl --system`.",
        ),
        None => fail(
            IP_FORWARD,
            "not supported by this kernel",
            "Use a kernel with IPv4 (CONFIG_INET), and mount /proc/sys.",
        ),
    }
}

/// A packet is forwarded if forwarding is on for its input link, regardless of the setting for all links.
async fn uplink(cx: &Host) -> Check {
    let asked = async {
        let netlink = cx.home.netlink()?;
        match route::lookup(&netlink, PUBLIC_ADDRESS).await? {
            Some((index, _)) => link::at(&netlink, index).await,
            None => Ok(None),
        }
    };
    match asked.await {
        Ok(None) => ok(
            UPLINK,
            "no default route: VMs reach only networks of the host",
        ),
        Ok(Some(found)) => evaluate_uplink(&found),
        Err(error) => unseen(UPLINK, &error_chain(&error)),
    }
}

fn evaluate_uplink(found: &Link) -> Check {
    let name = &found.name;
    match found.ipv4 {
        Some(ipv4) if ipv4.forwarding == 0 => warn(
            UPLINK,
            format!("off on {name}, the link of the default route: replies do not reach VMs"),
            format!(
                "Turn it on: `sysctl -w net.ipv4.conf.{name}.forwarding=1`, and find the program that turned it off (systemd-networkd: \
                 `IPv4Forwarding=yes`, before version 256 `IPForward=ipv4`, in the link's .network file)."
            ),
        ),
        Some(_) | None => ok(UPLINK, format!("on, on {name}")),
    }
}

/// Our rules match only links of ours that are not ports of a bridge.
fn evaluate_bridge_nf(value: Option<&str>) -> Check {
    let found = match value {
        Some("1") => {
            "on: bridged packets also traverse FORWARD, where the rules of isolated VMs do not match them"
        }
        Some(_) => "off: bridged packets do not traverse iptables",
        None => "br_netfilter is not loaded: bridged packets do not traverse iptables",
    };
    ok(BRIDGE_NF, found)
}

/// Strict (1) and loose (2) both accept a VM's packets: the route to their source uses the link on which they arrive.
fn evaluate_rp_filter(all: Option<&str>, default: Option<&str>) -> Check {
    let name = |value| match value {
        Some("0") => "off",
        Some("1") => "strict",
        Some("2") => "loose",
        Some(_) | None => "unknown",
    };
    let (all, default) = (name(all), name(default));
    ok(
        RP_FILTER,
        format!("all {all}, default {default}: VMs' packets pass with any of them"),
    )
}

/// Evaluates the chain in the back end that we use. `ours` is the name prefix of our chains.
fn evaluate_chain(observed: &Observed, ours: &str) -> Check {
    let ruleset = match observed.restore.as_ref().map(|restore| restore.kind) {
        Ok(Flavour::Legacy) => &observed.legacy,
        Ok(Flavour::Nft) | Err(_) => &observed.nft,
    };
    let ruleset = match ruleset {
        Ok(ruleset) => ruleset,
        Err(error) => return unseen(CHAIN, error),
    };
    let rules = ruleset.rules(TableName::Filter, "FORWARD");
    let policy = ruleset.policy(TableName::Filter, "FORWARD");
    let others = other_programs(ruleset);
    let first = rules.iter().position(|rule| jumps_to(rule, ours));
    let strangers = rules.iter().take(first.unwrap_or(0));
    let strangers = strangers.filter(|rule| !jumps_to(rule, "SLICE-")).count();
    match (first, strangers) {
        (Some(_), 0) => ok(
            CHAIN,
            format!("policy {policy}{others}: our jump is first and decides for VMs"),
        ),
        (Some(_), strangers) => warn(
            CHAIN,
            format!(
                "policy {policy}{others}: {strangers} foreign rule(s) before our jump may drop VMs' packets"
            ),
            "sliced moves its jump to the top within seconds; if this persists, `slicectl events` shows the conflict: find the program \
             that inserts rules at the top of FORWARD.",
        ),
        (None, _) if policy == Policy::Drop || !others.is_empty() => ok(
            CHAIN,
            format!(
                "policy {policy}{others}: no jump of ours yet; it will be the first rule, so isolated VMs and VMs on \
                 managed bridges are not affected"
            ),
        ),
        (None, _) => ok(
            CHAIN,
            format!("policy {policy}, no chains of other programs; no jump of ours yet"),
        ),
    }
}

/// CNI networks with packets that traverse FORWARD, and without a plugin that accepts them there.
fn networks_without_firewall(cx: &Host) -> Vec<String> {
    let names = cx.cni.networks().unwrap_or_default();
    let networks = names.iter().filter_map(|name| cx.cni.find(name).ok());
    networks
        .filter(|network| {
            let has = |name: &str| network.plugins.iter().any(|plugin| plugin.name == name);
            (has("bridge") || has("ptp")) && !has("firewall")
        })
        .map(|network| network.name)
        .collect()
}

/// Our jump in FORWARD does not match VMs in cni mode: the plugins configure their network.
fn evaluate_networks(observed: &Observed, networks: &[String]) -> Option<Check> {
    let ruleset = match observed.restore.as_ref().map(|restore| restore.kind) {
        Ok(Flavour::Legacy) => observed.legacy.as_ref(),
        Ok(Flavour::Nft) | Err(_) => observed.nft.as_ref(),
    };
    let policy = ruleset.ok()?.policy(TableName::Filter, "FORWARD");
    let names = networks.join(", ");
    (policy == Policy::Drop && !networks.is_empty()).then(|| {
        warn(
            NETWORKS,
            format!("policy {policy}, and no plugin of {names} accepts forwarded packets: VMs there reach nothing beyond this host"),
            "Add {\"type\": \"firewall\"} to the plugins of the network; it applies to VMs that are attached afterwards.",
        )
    })
}

/// Other programs with chains in the filter table, recognised by the names of their chains.
fn other_programs(ruleset: &Ruleset) -> String {
    let chains = ruleset.chains(TableName::Filter);
    let known = [
        ("DOCKER", "docker"),
        ("ufw-", "ufw"),
        ("KUBE-", "Kubernetes"),
        ("LIBVIRT_", "libvirt"),
        ("FORWARD_direct", "firewalld"),
        ("CNI-", "CNI plugins"),
    ];
    let found: Vec<_> = known
        .iter()
        .filter(|(prefix, _)| chains.iter().any(|chain| chain.name.starts_with(prefix)))
        .map(|(_, program)| *program)
        .collect();
    match found.is_empty() {
        true => String::new(),
        false => format!(", chains of {}", found.join(" and ")),
    }
}

fn jumps_to(rule: &Rule, prefix: &str) -> bool {
    rule.jump().is_some_and(|chain| chain.starts_with(prefix))
}

#[cfg(test)]
mod tests;
