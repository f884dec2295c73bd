//! The kernel command line, as far as it is for the init of a guest. Pure.
//! Out of scope: applying it.
//!
//! - `ip=ADDRESS::GATEWAY:NETMASK:HOSTNAME:DEVICE:off:DNS0:DNS1` (Documentation/admin-guide/nfs/nfsroot.rst). Kernels without
//!   `CONFIG_IP_PNP`, such as Debian's, leave it to the init.
//! - `slice.address=ADDRESS/LEN`: a further address.
//! - `slice.route=NETWORK[,NEXT HOP]`: a route; it replaces one to the same network. Without a next hop the network is on the link.
//! - `slice.mtu=BYTES`: the MTU, where the network card does not report it.

use std::net::Ipv4Addr;

/// What the command line says about the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// The host name.
    pub hostname: Option<String>,
    /// The network; `None` without `ip=`.
    pub network: Option<Network>,
    /// Parameters that are ignored because they are malformed.
    pub invalid: Vec<String>,
}

/// The network of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The name of the link.
    pub device: String,
    /// Addresses with the lengths of their prefixes; the first is that of `ip=`.
    pub addresses: Vec<Subnet>,
    /// The next hop of the default route.
    pub gateway: Option<Ipv4Addr>,
    /// Further routes.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// The MTU in bytes; `None`: that of the network card.
    pub mtu: Option<u32>,
}

/// An address and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The address.
    pub address: Ipv4Addr,
    /// 0 to 32.
    pub prefix_len: u8,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub network: Subnet,
    /// The next hop; `None`: the destination is on the link.
    pub via: Option<Ipv4Addr>,
}

impl Parameters {
    /// Reads `/proc/cmdline`.
    pub fn parse(line: &str) -> Self {
        let mut found = Self::default();
        let mut addresses = Vec::new();
        let mut routes = Vec::new();
        let mut mtu = None;
        for word in line.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else {
                continue;
            };
            let is_valid = match key {
                "ip" => found.interface(value),
                "slice.address" => push(&mut addresses, subnet(value)),
                "slice.route" => push(&mut routes, route(value)),
                "slice.mtu" => {
                    mtu = value.parse().ok();
                    mtu.is_some()
                }
                _ => true,
            };
            if !is_valid {
                found.invalid.push(word.to_owned());
            }
        }
        if let Some(network) = &mut found.network {
            network.addresses.extend(addresses);
            network.routes = routes;
            network.mtu = mtu;
        }
        found
    }

    /// The value of `ip=`. The last one takes effect, as in the kernel.
    fn interface(&mut self, value: &str) -> bool {
        let mut fields = value.split(':');
        let mut next = || fields.next().unwrap_or_default();
        let (address, _server, gateway) = (next(), next(), next());
        let (netmask, hostname, device) = (next(), next(), next());
        let _configuration = next();
        let dns = [next(), next()];
        let netmask = netmask.parse().ok().and_then(prefix_len);
        let (Ok(address), Some(prefix_len), false) = (address.parse(), netmask, device.is_empty())
        else {
            return false;
        };
        self.hostname = (!hostname.is_empty()).then(|| hostname.to_owned());
        self.network = Some(Network {
            device: device.to_owned(),
            addresses: vec![Subnet {
                address,
                prefix_len,
            }],
            gateway: gateway.parse().ok(),
            routes: Vec::new(),
            dns: dns
                .iter()
                .filter_map(|server| server.parse().ok())
                .collect(),
            mtu: None,
        });
        true
    }
}

fn push<T>(list: &mut Vec<T>, item: Option<T>) -> bool {
    let is_valid = item.is_some();
    list.extend(item);
    is_valid
}

/// The length of the prefix of a netmask without holes.
fn prefix_len(netmask: Ipv4Addr) -> Option<u8> {
    let bits = u32::from(netmask);
    let ones = bits.leading_ones();
    (bits.count_ones() == ones).then_some(u8::try_from(ones).ok()?)
}

/// `ADDRESS/LEN`.
fn subnet(text: &str) -> Option<Subnet> {
    let (address, length) = text.split_once('/')?;
    let prefix_len = length.parse().ok().filter(|length| *length <= 32)?;
    Some(Subnet {
        address: address.parse().ok()?,
        prefix_len,
    })
}

/// `NETWORK[,NEXT HOP]`.
fn route(text: &str) -> Option<Route> {
    let (network, via) = match text.split_once(',') {
        Some((network, via)) => (network, Some(via.parse().ok()?)),
        None => (text, None),
    };
    let network = subnet(network)?;
    Some(Route { network, via })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(line: &str) -> Network {
        Parameters::parse(line).network.expect("a network")
    }

    #[test]
    fn the_command_line_of_every_mode_is_read() {
        let line = "console=ttyS0 quiet nokaslr ip=169.254.100.2::169.254.100.1:255.255.255.252:sandbox-1:eth0:off:1.1.1.1:8.8.8.8 \
                    slice.address=10.1.0.2/16 slice.route=10.2.0.0/16,10.1.0.1 slice.route=10.3.0.1/32 slice.mtu=1400 root=/dev/vda rw";
        let read = Parameters::parse(line);
        assert_eq!(read.hostname.as_deref(), Some("sandbox-1"));
        assert_eq!(read.invalid, Vec::<String>::new());
        let subnet = |text| subnet(text).expect("a subnet");
        let expected = Network {
            device: "eth0".to_owned(),
            addresses: vec![subnet("169.254.100.2/30"), subnet("10.1.0.2/16")],
            gateway: Some(Ipv4Addr::new(169, 254, 100, 1)),
            routes: vec![
                Route {
                    network: subnet("10.2.0.0/16"),
                    via: Some(Ipv4Addr::new(10, 1, 0, 1)),
                },
                Route {
                    network: subnet("10.3.0.1/32"),
                    via: None,
                },
            ],
            dns: vec![Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)],
            mtu: Some(1400),
        };
        assert_eq!(read.network, Some(expected));
    }

    #[test]
    fn empty_fields_are_absent() {
        let found = network("ip=10.0.0.2:::255.255.255.255::eth0:off::");
        assert_eq!((found.gateway, found.dns.len()), (None, 0));
        assert_eq!(found.addresses[0].prefix_len, 32);
        assert_eq!(Parameters::parse("quiet").network, None);
    }

    #[test]
    fn malformed_parameters_are_named_and_ignored() {
        for word in [
            "ip=dhcp",
            "ip=10.0.0.2::::web:eth0",
            "ip=10.0.0.2:::255.0.255.0:web:eth0",
            "ip=10.0.0.2:::255.255.255.0:web:",
            "slice.address=10.0.0.2",
            "slice.address=10.0.0.2/33",
            "slice.route=10.0.0.0/8,nowhere",
            "slice.mtu=big",
        ] {
            let read = Parameters::parse(&format!("quiet {word} ro"));
            assert_eq!(read.invalid, [word]);
        }
    }

    #[test]
    fn the_last_interface_takes_effect() {
        let line = "ip=10.0.0.2:::255.0.0.0:a:eth0 ip=10.0.0.3:::255.0.0.0:b:eth1";
        let found = network(line);
        assert_eq!(found.device, "eth1");
        assert_eq!(found.addresses[0].address, Ipv4Addr::new(10, 0, 0, 3));
    }
}
