//! Finds foreign chains at the hook `forward` that drop packets from VMs to the internet, or the replies.
//! Out of scope: how a chain is evaluated ([`crate::host::iptables::foreign`]); changing a foreign chain, which does not belong to us.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnetwork::Ipv4Network;

use super::bridges;
use super::rule_input::BridgeKind;
use super::state::{Desired, HostDrop, Observed};
use crate::host::iptables::Flavour;
use crate::host::iptables::foreign::{BaseChain, ForwardChains, Link, Probe, Verdicts};
use crate::host::netlink::Handle;
use crate::host::netns::Netns;
use crate::host::{self, link, route};

/// A range of VM addresses, and the host's links that carry their packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedRange {
    /// The links.
    pub links: Links,
    /// The range.
    pub range: Ipv4Network,
}

/// Links of VMs, as the rules of other programs match them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Links {
    /// The host's ends of isolated VMs' veths: the prefix of their names.
    Isolated(String),
    /// A bridge that the host routes for.
    Bridge(String),
    /// Links that a CNI plugin has created; they are identified by their subnet.
    Cni,
}

impl std::fmt::Display for RoutedRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.links {
            Links::Isolated(prefix) => write!(f, "{prefix}*"),
            Links::Bridge(name) => f.write_str(name),
            Links::Cni => write!(f, "{}", self.range),
        }
    }
}

/// A foreign chain that drops packets of VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The chain.
    pub chain: BaseChain,
    /// The VMs that send or receive these packets.
    pub range: RoutedRange,
    /// Only replies are dropped.
    pub replies_only: bool,
}

/// The result of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Found {
    /// All foreign chains.
    pub chains: Vec<BaseChain>,
    /// Those that drop packets.
    pub dropped: Vec<Dropped>,
}

/// A public address that no rule is likely to contain. Nothing is sent to it.
const PUBLIC_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 9);

/// Evaluates every foreign chain for every range. `uplink` is the link of the default route.
pub async fn evaluate(
    home: &Netns,
    netlink: &Handle,
    chains: &Arc<ForwardChains>,
    flavour: Flavour,
    guarded: Vec<RoutedRange>,
    uplink: Option<&link::Link>,
) -> Result<Found, host::Error> {
    let uplink = match uplink {
        Some(uplink) => probe_link(uplink),
        // Without a default route: a name that no rule matches.
        None => Link {
            name: "?".to_owned(),
            index: None,
        },
    };
    let mut probes = Vec::new();
    let mut evaluated = Vec::new();
    for of in guarded {
        let Some(link) = example_link(netlink, &of).await? else {
            continue;
        };
        let src = of.range.nth(2).unwrap_or(of.range.ip());
        let of_plugin = of.links == Links::Cni;
        let outgoing = Probe {
            in_if: link.clone(),
            out_if: uplink.clone(),
            src,
            dst: PUBLIC_ADDRESS,
            is_reply: false,
            uses_cni: of_plugin,
        };
        let reply = Probe {
            in_if: uplink.clone(),
            out_if: link,
            src: PUBLIC_ADDRESS,
            dst: src,
            is_reply: true,
            uses_cni: of_plugin,
        };
        probes.extend([outgoing, reply]);
        evaluated.push(of);
    }
    let chains = chains.clone();
    let evaluate = home.run(move || chains.evaluate(flavour, &probes));
    Ok(collect(evaluated, evaluate.await?))
}

/// If outgoing packets are dropped, dropped replies are not reported in addition.
fn collect(evaluated: Vec<RoutedRange>, results: Verdicts) -> Found {
    let mut dropped = Vec::new();
    for (of, drops) in evaluated.into_iter().zip(results.drops.chunks(2)) {
        let (outgoing, answers) = (&drops[0], &drops[1]);
        let drop = |by: &BaseChain, answers| Dropped {
            chain: by.clone(),
            range: of.clone(),
            replies_only: answers,
        };
        dropped.extend(outgoing.iter().map(|by| drop(by, false)));
        let only = answers.iter().filter(|by| !outgoing.contains(by));
        dropped.extend(only.map(|by| drop(by, true)));
    }
    Found {
        chains: results.chains,
        dropped,
    }
}

/// Returns a link of these VMs; `None` if no such link exists now.
async fn example_link(netlink: &Handle, of: &RoutedRange) -> Result<Option<Link>, host::Error> {
    let found = match &of.links {
        Links::Isolated(prefix) => {
            return Ok(Some(Link {
                name: format!("{prefix}aaaaaaaa"),
                index: None,
            }));
        }
        Links::Bridge(name) => link::get(netlink, name).await?,
        Links::Cni => {
            let address = of.range.nth(2).unwrap_or(of.range.ip());
            match route::lookup(netlink, address).await? {
                Some((index, None)) => link::at(netlink, index).await?,
                Some((_, Some(_))) | None => None,
            }
        }
    };
    Ok(found.as_ref().map(probe_link))
}

fn probe_link(link: &link::Link) -> Link {
    Link {
        name: link.name.clone(),
        index: Some(link.index),
    }
}

/// The ranges that the host routes for.
pub(super) fn routed_ranges(desired: &Desired, observed: &Observed) -> Vec<RoutedRange> {
    let veths = || Links::Isolated(desired.instance.link_prefix());
    let pools = desired.requirements.pools.iter().map(|pool| RoutedRange {
        links: veths(),
        range: *pool,
    });
    let bridge_subnets = bridges::bridge_subnets(desired, observed).into_iter();
    // The gateway of the other subnets is another machine.
    let routed = bridge_subnets
        .filter(|bridge_subnet| bridge_subnet.kind != BridgeKind::UnmanagedRemoteGateway);
    let routed = routed.map(|side| RoutedRange {
        links: Links::Bridge(side.bridge),
        range: side.subnet,
    });
    let cni_subnets = desired
        .requirements
        .cni_subnets
        .iter()
        .map(|range| RoutedRange {
            links: Links::Cni,
            range: *range,
        });
    pools.chain(routed).chain(cni_subnets).collect()
}

/// The messages that VMs and groups report.
pub(super) fn host_drops(found: &Found) -> Vec<HostDrop> {
    let to_host_drop = |Dropped {
                            chain: by,
                            range: of,
                            replies_only: answers,
                        }: &Dropped| {
        let what = match answers {
            false => "packets from",
            true => "replies to",
        };
        let remedy = match by.is_iptables_forward() {
            false => "`slicectl doctor` shows the command that accepts them",
            true => {
                "no plugin of their CNI network accepts them there; `slicectl doctor` shows the remedy"
            }
        };
        HostDrop {
            range: of.range,
            message: format!("{by}, which is not ours, drops {what} {of}: {remedy}"),
        }
    };
    found.dropped.iter().map(to_host_drop).collect()
}
