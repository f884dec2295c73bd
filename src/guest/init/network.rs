//! Configures the network of the guest from the kernel command line.
//! Out of scope: reading the command line (`parameters`).

use std::net::Ipv4Addr;
use std::time::Duration;

use futures::TryStreamExt;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::parameters::{Network, Route};
use crate::clock;

/// How long a link may take to appear: its driver was just loaded.
const LINK_TIMEOUT: Duration = Duration::from_secs(5);

/// Sets `lo` and the link of the network up and adds its addresses and routes.
///
/// # Errors
/// What failed, with the answer of the kernel.
pub async fn configure(network: Option<&Network>) -> Result<(), String> {
    let connection = rtnetlink::new_connection();
    let (connection, handle, _) = connection.map_err(|error| format!("open netlink: {error}"))?;
    let connection = tokio::spawn(connection);
    let result = async {
        if let Some(lo) = index(&handle, "lo").await? {
            set_up(&handle, lo, None).await?;
        }
        match network {
            Some(network) => link(&handle, network).await,
            None => Ok(()),
        }
    };
    let result = result.await;
    connection.abort();
    result
}

async fn link(handle: &Handle, network: &Network) -> Result<(), String> {
    let index = wait_for(handle, &network.device).await?;
    for subnet in &network.addresses {
        let request = handle.address();
        let (address, prefix_len) = (subnet.address.into(), subnet.prefix_len);
        let added = request.add(index, address, prefix_len).replace().execute();
        added
            .await
            .map_err(|error| format!("add address {address}/{prefix_len}: {error}"))?;
    }
    set_up(handle, index, network.mtu).await?;
    if let Some(gateway) = network.gateway {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(index)
            .gateway(gateway)
            .build();
        let added = handle.route().add(message).replace().execute();
        added
            .await
            .map_err(|error| format!("add a default route via {gateway}: {error}"))?;
    }
    for route in &network.routes {
        add_route(handle, index, route).await?;
    }
    Ok(())
}

async fn add_route(handle: &Handle, index: u32, route: &Route) -> Result<(), String> {
    let network = route.network;
    let message = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(network.address, network.prefix_len)
        .output_interface(index);
    let message = match route.via {
        Some(via) => message.gateway(via),
        None => message.scope(netlink_packet_route::route::RouteScope::Link),
    };
    let added = handle.route().add(message.build()).replace().execute();
    added.await.map_err(|error| {
        let (address, length) = (network.address, network.prefix_len);
        format!("add a route to {address}/{length}: {error}")
    })
}

async fn set_up(handle: &Handle, index: u32, mtu: Option<u32>) -> Result<(), String> {
    let message = LinkUnspec::new_with_index(index).up();
    let message = match mtu {
        Some(mtu) => message.mtu(mtu),
        None => message,
    };
    let set = handle.link().set(message.build()).execute();
    set.await
        .map_err(|error| format!("set link {index} up: {error}"))
}

/// The index of a link that may appear late.
async fn wait_for(handle: &Handle, name: &str) -> Result<u32, String> {
    let begin = clock::monotonic();
    loop {
        if let Some(index) = index(handle, name).await? {
            return Ok(index);
        }
        if begin.elapsed() > LINK_TIMEOUT {
            return Err(format!("link {name} not found"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The index of a link; `None` if it does not exist.
async fn index(handle: &Handle, name: &str) -> Result<Option<u32>, String> {
    let mut links = handle.link().get().execute();
    loop {
        let link = links.try_next().await;
        match link.map_err(|error| format!("list links: {error}"))? {
            None => return Ok(None),
            Some(link) => {
                let is_named = link.attributes.iter().any(|attribute| {
                    use netlink_packet_route::link::LinkAttribute;
                    matches!(attribute, LinkAttribute::IfName(found) if found == name)
                });
                if is_named {
                    return Ok(Some(link.header.index));
                }
            }
        }
    }
}
