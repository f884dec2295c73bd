//! `route`: the command by which another machine reaches a bridge group's VMs.
//! Out of scope: finding out the subnet and the host's address.

use super::args::RouteArgs;
use super::failure::Failure;
use super::print;
use crate::api::view::Reach;
use crate::wire::Client;

/// `route GROUP [--via HOST_IP]`.
pub async fn route(client: &Client, args: RouteArgs) -> Result<(), Failure> {
    let mut reach = client.route(&args.group).await?;
    reach.host = args.via.or(reach.host);
    if reach.host.is_none() {
        return Err(Failure::one(
            "this host has no default route, so its address on the LAN is not known: say it with --via",
        ));
    }
    print::answer(args.output, &reach, commands)
}

fn commands(reach: &Reach) -> String {
    let Reach { group, subnet, .. } = reach;
    let Some(host) = reach.host else {
        return String::new();
    };
    if subnet.contains(host) {
        return format!(
            "# The VMs of {group} are in {subnet} with this host, {host}: no route is needed.\n"
        );
    }
    format!(
        "# The VMs of {group} are {subnet}, behind this host, {host}.\n\
         # On a Linux machine of its LAN, as root, until it restarts:\n\
         ip route add {subnet} via {host}\n\
         # On a Mac of its LAN, as root, until it restarts:\n\
         route -n add -net {subnet} {host}\n"
    )
}
