//! The kernel command line. Pure.
//! Out of scope: how it is passed to the VMM; arguments that only one VMM requires.
//!
//! - `ip=` is the kernel's own format (Documentation/admin-guide/nfs/nfsroot.rst); kernels without IP_PNP leave it to the init.
//! - `ip=` contains one address and one default route; its gateway is in the subnet of the address (`ic_setup_routes`). The guest's
//!   init reads the others, one parameter each, in this order: `slice.address=ADDRESS/LEN`, then `slice.route=NETWORK[,NEXT HOP]`.
//!   A `slice.route` replaces a route to the same network; without a next hop the network is on the link.
//! - `slice.mtu=BYTES` is for the guest's init, too, where its network card does not report it.
//! - `rdinit=` is set last for `agent: inject`.
//! - `root=` is set here for every VMM, so that a `root=` of the user takes precedence with every VMM.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::initrd::INIT;
use super::recipe::{Access, RecipeError, Slot};
use crate::api::guest_access::Agent;
use crate::api::vm::VmSpec;

/// Maximum length in bytes, of the kernel on x86 (`COMMAND_LINE_SIZE` without the terminating NUL) and of Firecracker.
const MAX_LENGTH: usize = 2047;

/// The number of name servers that `ip=` can contain.
pub const NAME_SERVERS: usize = 2;

/// The part of the command line that depends on the VMM.
pub(super) struct VmmParameters {
    /// Its parameters.
    pub parameters: String,
    /// Bytes that the VMM itself appends.
    pub reserved: usize,
}

/// The complete command line. The user's parameters are last, because the kernel uses the last value of most parameters.
pub(super) fn command_line(
    spec: &VmSpec,
    slot: &Slot,
    own: &VmmParameters,
) -> Result<String, RecipeError> {
    let user = spec.lifecycle.cmdline.as_deref();
    let mut line = format!(
        "console=ttyS0 quiet panic=-1 {} {}",
        own.parameters,
        address(spec, slot)
    );
    for further in &slot.connection.addresses {
        line.push_str(&format!(" slice.address={further}"));
    }
    for (network, next_hop) in &slot.connection.routes {
        let via = next_hop.map(|hop| format!(",{hop}")).unwrap_or_default();
        line.push_str(&format!(" slice.route={network}{via}"));
    }
    let has_root = |words: &str| words.split(' ').any(|word| word.starts_with("root="));
    if let Some(root) = slot.disks.first().filter(|_| !user.is_some_and(has_root)) {
        line.push_str(match root.access {
            Access::ReadOnly => " root=/dev/vda ro",
            Access::ReadWrite => " root=/dev/vda rw",
        });
    }
    if let Some(user) = user {
        line.push(' ');
        line.push_str(user);
    }
    // It executes the init of a `rdinit=` of the user, and must not be replaced by that.
    match spec.guest_access.agent {
        Agent::Inject => insert(&mut line, &format!("rdinit={INIT}")),
        Agent::Baked | Agent::None => {}
    }
    match line.len() + own.reserved {
        bytes if bytes > MAX_LENGTH => Err(RecipeError::CommandLineTooLong { bytes }),
        _ => Ok(line),
    }
}

/// Appends a parameter for the kernel. What follows `--` is for the init.
fn insert(line: &mut String, parameter: &str) {
    let end = line.find(" -- ").unwrap_or(line.len());
    line.insert_str(end, &format!(" {parameter}"));
}

/// `ip=ADDRESS::GATEWAY:NETMASK:HOSTNAME:DEVICE:off:DNS0:DNS1`.
fn address(spec: &VmSpec, slot: &Slot) -> String {
    let connection = &slot.connection;
    let text = |address: Option<&Ipv4Addr>| address.map(ToString::to_string).unwrap_or_default();
    // The user's name servers take precedence over the network's.
    let servers = match spec.dns_servers.as_slice() {
        [] => &connection.dns,
        _ => &spec.dns_servers,
    };
    let dns = |index: usize| text(servers.get(index));
    let net = Ipv4Network::new(connection.ip, connection.prefix_len).ok();
    let on_link = |gateway: &&Ipv4Addr| {
        connection.prefix_len < 32 && net.is_some_and(|net| net.contains(**gateway))
    };
    format!(
        "ip={}::{}:{}:{}:eth0:off:{}:{}",
        connection.ip,
        text(connection.gateway.as_ref().filter(on_link)),
        netmask(connection.prefix_len),
        slot.name,
        dns(0),
        dns(1),
    )
}

fn netmask(prefix_len: u8) -> Ipv4Addr {
    let host_bits = 32 - u32::from(prefix_len.min(32));
    Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_precedes_the_arguments_of_the_init() {
        for (line, expected) in [
            ("quiet", "quiet a=b"),
            ("quiet -- single", "quiet a=b -- single"),
            ("quiet x--y", "quiet x--y a=b"),
        ] {
            let mut line = line.to_owned();
            insert(&mut line, "a=b");
            assert_eq!(line, expected);
        }
    }

    #[test]
    fn a_netmask_has_as_many_bits_as_the_prefix() {
        assert_eq!(netmask(30), Ipv4Addr::new(255, 255, 255, 252));
        assert_eq!(netmask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
    }
}
