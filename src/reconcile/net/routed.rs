//! Whether the host sends packets for a VM's address over the VM's link, and who takes them if it does not.
//! Out of scope: the routes and rules of ours.
//!
//! # Why
//! The question is what the kernel does with a packet, not which routes of ours there are: a narrower route, or a rule of policy routing
//! that has another table asked first, takes the packets while all our routes and rules are in place.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::host::netlink::Handle;
use crate::host::routing_rule::{self, LOCAL, MAIN, RoutingRule};
use crate::host::{self, link, route};
use crate::reconcile::Conflict;

/// Of the kernel's rule that has the main table asked.
const MAIN_PRIORITY: u32 = 32766;

/// What takes packets for a VM's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The route or rule.
    pub by: String,
    /// What a person can do about it.
    pub remedy: String,
}

impl Taken {
    /// That it is in the way of this VM.
    pub fn conflict(&self, ip: Ipv4Addr) -> Conflict {
        Conflict {
            thing: format!("{}, which takes packets to the VM's address {ip},", self.by),
            remedy: self.remedy.clone(),
        }
    }
}

/// Whether packets to `ip` go straight over a link.
pub(super) async fn is_routed(
    netlink: &Handle,
    ip: Ipv4Addr,
    index: u32,
) -> Result<bool, host::Error> {
    Ok(route::lookup(netlink, ip).await? == Some((index, None)))
}

/// Who takes packets to `ip` that a route of at least this length in the main table is to lead over a link. None: nobody, that route
/// is missing.
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
