//! The data that other machines need for a route to a group's VMs: the subnet and the host's address on the LAN.
//! Out of scope: the text of a route command (`cli`).

use std::net::Ipv4Addr;

use super::not_found::not_found;
use crate::api::host_group::HostGroup;
use crate::api::meta::Name;
use crate::api::network::NetworkSpec;
use crate::api::view::{Kind, RouteInfo};
use crate::engine::Engine;
use crate::host::netlink::Handle;
use crate::host::{self, addr, route};
use crate::wire::Refusal;

/// Returns the route of a bridge group; for other groups an error that explains why there is none.
pub(super) async fn of(engine: &Engine, group: Name) -> Result<RouteInfo, Refusal> {
    let (found, subnet) = engine.store.read(|world| {
        let found = world.group(&group).cloned();
        let found = found.ok_or_else(|| not_found(world, Kind::HostGroup, &group))?;
        Ok::<_, Refusal>((found, world.pool(&group).map(|pool| pool.range)))
    })?;
    let bridge = bridge_of(&found).map_err(|why| Refusal::Conflict(vec![why]))?;
    let Some(subnet) = subnet else {
        let message = format!("hostgroup/{group} has no subnet yet: see slicectl describe");
        return Err(Refusal::Conflict(vec![message]));
    };
    let host = lan_address(&engine.host.netlink)
        .await
        .map_err(|error| Refusal::Failed(error.to_string()))?;
    Ok(RouteInfo {
        group,
        bridge,
        subnet,
        host,
    })
}

fn bridge_of(group: &HostGroup) -> Result<String, String> {
    let name = &group.meta.name;
    match &group.spec.template.network {
        NetworkSpec::Bridge(bridge) => Ok(bridge.bridge.clone()),
        NetworkSpec::Isolated(_) => Err(format!(
            "hostgroup/{name} is in isolated mode: its VMs are not reachable from outside; routes exist only in bridge mode"
        )),
        NetworkSpec::Cni(cni) => Err(format!(
            "hostgroup/{name} is in cni mode: the plugins of network \"{}\" determine how its VMs are reached; \
             slicectl prints routes only for bridge mode",
            cni.network_name
        )),
    }
}

/// The first address of the link of the best default route.
async fn lan_address(netlink: &Handle) -> Result<Option<Ipv4Addr>, host::Error> {
    let routes = route::list(netlink).await?;
    let best = routes
        .iter()
        .filter(|route| route.dst.prefix() == 0)
        .filter_map(|route| Some((route.metric, route.link?)))
        .min();
    let Some((_, link)) = best else {
        return Ok(None);
    };
    let addresses = addr::list(netlink, addr::Of::Index(link)).await?;
    Ok(addresses.first().map(|addr| addr.net.ip()))
}
