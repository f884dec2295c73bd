//! Whether the host sends packets for a VM's address over the VM's link, and which route or rule takes them if it does not.
//! Out of scope: our own routes and rules.
//!
//! # Why
//! The result depends on the kernel's decision for a packet, not on our routes: a more specific route, or a policy routing rule that
//! selects another table first, takes the packets while all our routes and rules are in place.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::host::netlink::Handle;
use crate::host::routing_rule::{self, LOCAL, MAIN, RoutingRule};
use crate::host::{self, link, route};
use crate::reconcile::Conflict;

/// The priority of the kernel's rule for the main table.
const MAIN_PRIORITY: u32 = 32766;

/// The route or rule that takes packets to a VM's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The route or rule.
    pub by: String,
    /// How the user can remove it.
    pub remedy: String,
}

impl Taken {
    /// The conflict that it causes for this VM.
    pub fn conflict(&self, ip: Ipv4Addr) -> Conflict {
        Conflict {
            thing: format!("{}, which takes packets to the VM's address {ip},", self.by),
            remedy: self.remedy.clone(),
        }
    }
}

/// Whether packets to `ip` are sent directly over a link.
pub(super) async fn is_routed(
    netlink: &Handle,
    ip: Ipv4Addr,
    index: u32,
) -> Result<bool, host::Error> {
    Ok(route::lookup(netlink, ip).await? == Some((index, None)))
}

/// Returns what takes packets to `ip` that a route of at least this prefix length in the main table is to send over a link. `None`: nothing
/// takes them, our route is missing.
pub(super) async fn taken(
    netlink: &Handle,
    ip: Ipv4Addr,
    index: u32,
    prefix: u8,
) -> Result<Option<Taken>, host::Error> {
    let winner = route::winner(netlink, ip).await?;
    let is_narrow = |found: &route::Winner| found.dst.prefix() >= prefix;
    match &winner {
        Some(found) if found.table == MAIN && !is_narrow(found) => return Ok(None),
        Some(found) if found.table == MAIN && found.link == Some(index) => return Ok(None),
        Some(_) | None => {}
    }
    let rules = routing_rule::list(netlink).await?;
    let concerns = |rule: &&RoutingRule| {
        let to = rule.to.is_none_or(|to| to.contains(ip));
        to && rule.priority < MAIN_PRIORITY && rule.priority > 0
    };
    let rules = rules.iter().filter(concerns);
    let Some(found) = winner else {
        let refusing = rules.clone().find(|rule| rule.table.is_none());
        return Ok(refusing.map(|rule| Taken {
            by: format!("routing rule {}", rule.priority),
            remedy: format!("remove it: ip rule del pref {}", rule.priority),
        }));
    };
    let name = match found.link {
        Some(link) => link::at(netlink, link).await?.map(|link| link.name),
        None => None,
    };
    let name = name.unwrap_or_else(|| "no link".to_owned());
    let dst = found.dst;
    Ok(Some(match found.table {
        MAIN => Taken {
            by: format!("route {dst} on {name}"),
            remedy: format!("remove it: ip route del {dst} dev {name}"),
        },
        LOCAL => Taken {
            by: format!("address {ip} on {name}"),
            remedy: format!("remove it: ip addr del {ip} dev {name}"),
        },
        table => {
            let rule = rules.clone().find(|rule| rule.table == Some(table));
            let rule = rule.map_or(0, |rule| rule.priority);
            Taken {
                by: format!("routing rule {rule} (lookup {table}) with route {dst} on {name}"),
                remedy: format!(
                    "remove it, or give it a priority above 100: ip rule del pref {rule}"
                ),
            }
        }
    }))
}
