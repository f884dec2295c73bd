//! What stands in the host's own tables, and which bridges.
//! Not here: what ought to.

use std::collections::BTreeMap;

use super::Ground;
use super::bridges::BridgeSeen;
use super::plan::{Desired, Observed};
use crate::api::network::Mac;
use crate::host::link::Link;
use crate::host::rule::TableName;
use crate::host::{self, addr, link, sysctl};
use crate::reconcile::net::host_links;

/// The host's switch. Ours to turn on; other people may need it, so never ours to turn off.
pub(super) const FORWARDING: &str = "net.ipv4.ip_forward";

pub(super) async fn observe(ground: &Ground, desired: &Desired) -> Result<Observed, host::Error> {
    let backend = ground.backend.clone();
    let bridges = observe_bridges(ground, desired).await?;
    ground
        .home
        .run(move || {
            let tables = [
                TableName::Raw,
                TableName::Mangle,
                TableName::Nat,
                TableName::Filter,
            ];
            Ok(Observed {
                ruleset: backend.read(&tables)?,
                forwarding: sysctl::read(FORWARDING)? == "1",
                bridges,
            })
        })
        .await
}

async fn observe_bridges(
    ground: &Ground,
    desired: &Desired,
) -> Result<BTreeMap<String, BridgeSeen>, host::Error> {
    let mut seen = BTreeMap::new();
    for bridge in link::list_bridges(&ground.netlink).await? {
        let wanted = desired.footing.bridges.contains_key(&bridge.name);
        let mut found = look(&bridge);
        if wanted || found.owned(desired, &bridge.name).is_some() {
            let addresses = addr::list(&ground.netlink, addr::Of::Link(bridge.index)).await;
            // The kernel's own word: it has gone since it was listed.
            let Some(addresses) = host::error::absent_is_none(addresses)? else {
                continue;
            };
            found.addresses = addresses.into_iter().map(|found| found.net).collect();
            seen.insert(bridge.name, found);
        }
    }
    for name in desired.footing.bridges.keys() {
        if !seen.contains_key(name)
            && let Some(other) = link::get(&ground.netlink, name).await?
        {
            seen.insert(name.clone(), look(&other));
        }
    }
    Ok(seen)
}

pub(super) fn look(link: &Link) -> BridgeSeen {
    let info = link.bridge.unwrap_or_default();
    BridgeSeen {
        bridge: link.bridge.is_some(),
        alias: link.alias.clone(),
        mac: Mac(link.mac.unwrap_or_default()),
        mtu: link.mtu,
        up: link.up,
        calm: (info.stp, info.forward_delay) == (false, 0)
            && (info.snooping, info.group_fwd_mask) == (false, 0)
            && host_links::is_bridge(link),
        addresses: Default::default(),
    }
}
