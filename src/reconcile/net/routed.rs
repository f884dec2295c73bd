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
pub struct RouteConflict {
    /// The route or rule.
    pub by: String,
    /// How the user can remove it.
    pub remedy: String,
}

impl RouteConflict {
    /// The conflict that it causes for this VM.
    pub fn conflict(&self, ip: Ipv4Addr) -> Conflict {
        Conflict {
            object: format!("{}, which takes packets to the VM's address {ip},", self.by),
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
pub(super) async fn route_conflict(
    netlink: &Handle,
    ip: Ipv4Addr,
    index: u32,
    prefix: u8,
) -> Result<Option<RouteConflict>, host::Error> {
    let best_route = route::match_route(netlink, ip).await?;
    let is_specific = |found: &route::MatchedRoute| found.dst.prefix() >= prefix;
    match &best_route {
        Some(found) if found.table == MAIN && !is_specific(found) => return Ok(None),
        Some(found) if found.table == MAIN && found.link == Some(index) => return Ok(None),
        Some(_) | None => {}
    }
    let rules = routing_rule::list(netlink).await?;
    let applies = |rule: &&RoutingRule| {
        let to = rule.to.is_none_or(|to| to.contains(ip));
        to && rule.priority < MAIN_PRIORITY && rule.priority > 0
    };
    let rules = rules.iter().filter(applies);
    let Some(found) = best_route else {
        let unreachable_rule = rules.clone().find(|rule| rule.table.is_none());
        return Ok(unreachable_rule.map(|rule| RouteConflict {
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
        MAIN => RouteConflict {
            by: format!("route {dst} on {name}"),
            remedy: format!("remove it: ip route del {dst} dev {name}"),
        },
        LOCAL => RouteConflict {
            by: format!("address {ip} on {name}"),
            remedy: format!("remove it: ip addr del {ip} dev {name}"),
        },
        table => {
            let rule = rules.clone().find(|rule| rule.table == Some(table));
            let rule = rule.map_or(0, |rule| rule.priority);
            RouteConflict {
                by: format!("routing rule {rule} (lookup {table}) with route {dst} on {name}"),
                remedy: format!(
                    "remove it, or give it a priority above 100: ip rule del pref {rule}"
                ),
            }
        }
    }))
}
