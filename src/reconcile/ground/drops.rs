//! Finds foreign chains at the hook `forward` that drop packets from VMs to the internet, or the replies.
//! Out of scope: how a chain is evaluated ([`crate::host::iptables::foreign`]); changing a foreign chain, which does not belong to us.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::bridges;
use super::plan::{Desired, Observed};
use super::rules::Standing;
use crate::host::iptables::Flavour;
use crate::host::iptables::foreign::{BaseChain, ForwardChains, Link, Probe, Verdicts};
use crate::host::netlink::Handle;
use crate::host::netns::Netns;
use crate::host::{self, link, route};

/// A range of VM addresses, and the host's links that carry their packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// The links.
    pub links: Links,
    /// The range.
    pub range: Ipv4Network,
}

/// Links of VMs, as the rules of other programs match them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Links {
    /// The host's ends of isolated VMs' veths: the prefix of their names.
    Veths(String),
    /// A bridge that the host routes for.
    Bridge(String),
    /// Links that a CNI plugin has created; they are identified by their subnet.
    OfPlugin,
}

impl std::fmt::Display for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.links {
            Links::Veths(prefix) => write!(f, "{prefix}*"),
            Links::Bridge(name) => f.write_str(name),
            Links::OfPlugin => write!(f, "{}", self.range),
        }
    }
}

/// A foreign chain that drops packets of the VMs of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDrop {
    /// The range.
    pub range: Ipv4Network,
    /// Which chain drops which packets, and which command shows the remedy.
    pub message: String,
}

/// A foreign chain that drops packets of VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The chain.
    pub by: BaseChain,
    /// The VMs that send or receive these packets.
    pub of: Guarded,
    /// Only replies are dropped.
    pub answers: bool,
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
const ANYWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 9);

/// Evaluates every foreign chain for every range. `uplink` is the link of the default route.
pub async fn look(
    home: &Netns,
    netlink: &Handle,
    chains: &Arc<ForwardChains>,
    flavour: Flavour,
    guarded: Vec<Guarded>,
    uplink: Option<&link::Link>,
) -> Result<Found, host::Error> {
    let uplink = match uplink {
        Some(uplink) => named(uplink),
        // Without a default route: a name that no rule matches.
        None => Link {
            name: "?".to_owned(),
            index: None,
        },
    };
    let mut probes = Vec::new();
    let mut asked = Vec::new();
    for of in guarded {
        let Some(link) = example(netlink, &of).await? else {
            continue;
        };
        let src = of.range.nth(2).unwrap_or(of.range.ip());
        let of_plugin = of.links == Links::OfPlugin;
        let first = Probe {
            in_if: link.clone(),
            out_if: uplink.clone(),
            src,
            dst: ANYWHERE,
            answers: false,
            of_plugin,
        };
        let answer = Probe {
            in_if: uplink.clone(),
            out_if: link,
            src: ANYWHERE,
            dst: src,
            answers: true,
            of_plugin,
        };
        probes.extend([first, answer]);
        asked.push(of);
    }
    let chains = chains.clone();
    let ask = home.run(move || chains.ask(flavour, &probes));
    Ok(sort(asked, ask.await?))
}

/// If outgoing packets are dropped, dropped replies are not reported in addition.
fn sort(asked: Vec<Guarded>, verdicts: Verdicts) -> Found {
    let mut dropped = Vec::new();
    for (of, drops) in asked.into_iter().zip(verdicts.drops.chunks(2)) {
        let (first, answers) = (&drops[0], &drops[1]);
        let drop = |by: &BaseChain, answers| Dropped {
            by: by.clone(),
            of: of.clone(),
            answers,
        };
        dropped.extend(first.iter().map(|by| drop(by, false)));
        let only = answers.iter().filter(|by| !first.contains(by));
        dropped.extend(only.map(|by| drop(by, true)));
    }
    Found {
        chains: verdicts.chains,
        dropped,
    }
}

/// Returns a link of these VMs; `None` if no such link exists now.
async fn example(netlink: &Handle, of: &Guarded) -> Result<Option<Link>, host::Error> {
    let found = match &of.links {
        Links::Veths(prefix) => {
            return Ok(Some(Link {
                name: format!("{prefix}aaaaaaaa"),
                index: None,
            }));
        }
        Links::Bridge(name) => link::get(netlink, name).await?,
        Links::OfPlugin => {
            let inside = of.range.nth(2).unwrap_or(of.range.ip());
            match route::lookup(netlink, inside).await? {
                Some((index, None)) => link::at(netlink, index).await?,
                Some((_, Some(_))) | None => None,
            }
        }
    };
    Ok(found.as_ref().map(named))
}

fn named(link: &link::Link) -> Link {
    Link {
        name: link.name.clone(),
        index: Some(link.index),
    }
}

/// The ranges that the host routes for.
pub(super) fn guarded(desired: &Desired, observed: &Observed) -> Vec<Guarded> {
    let veths = || Links::Veths(desired.instance.link_prefix());
    let pools = desired.footing.pools.iter().map(|pool| Guarded {
        links: veths(),
        range: *pool,
    });
    let sides = bridges::sides(desired, observed).into_iter();
    // The gateway of the other subnets is another machine.
    let routed = sides.filter(|side| side.standing != Standing::Joined);
    let routed = routed.map(|side| Guarded {
        links: Links::Bridge(side.bridge),
        range: side.subnet,
    });
    let plugged = desired.footing.plugged.iter().map(|range| Guarded {
        links: Links::OfPlugin,
        range: *range,
    });
    pools.chain(routed).chain(plugged).collect()
}

/// The messages that VMs and groups report.
pub(super) fn told(found: &Found) -> Vec<HostDrop> {
    let tell = |Dropped { by, of, answers }: &Dropped| {
        let what = match answers {
            false => "packets from",
            true => "replies to",
        };
        let remedy = match by.is_own_forward() {
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
    found.dropped.iter().map(tell).collect()
}
