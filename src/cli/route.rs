//! `route`: prints the commands that add a route to a bridge group's VMs on another machine.
//! Out of scope: determining the subnet and the host's address.

use super::args::RouteArgs;
use super::failure::Failure;
use super::print;
use crate::api::view::RouteInfo;
use crate::wire::Client;

/// `route GROUP [--via HOST_IP]`.
pub async fn route(client: &Client, args: RouteArgs) -> Result<(), Failure> {
    let mut reach = client.route(&args.group).await?;
    reach.host = args.via.or(reach.host);
    if reach.host.is_none() {
        return Err(Failure::one(
            "this host has no default route, so its address on the LAN is unknown: specify it with --via",
        ));
    }
    print::answer(args.output, &reach, commands)
}

fn commands(reach: &RouteInfo) -> String {
    let RouteInfo { group, subnet, .. } = reach;
    let Some(host) = reach.host else {
        return String::new();
    };
    if subnet.contains(host) {
        return format!(
            "# This host, {host}, is in the subnet of the VMs of {group}, {subnet}: no route is needed.\n"
        );
    }
    format!(
        "# The VMs of {group} are in {subnet}, reachable via this host, {host}.\n\
         # On a Linux machine in the same LAN, as root, until it reboots:\n\
         ip route add {subnet} via {host}\n\
         # On a Mac in the same LAN, as root, until it reboots:\n\
         route -n add -net {subnet} {host}\n"
    )
}
