//! The group and the settings of each of our links in the host namespace. With these settings no message from a guest configures the host.
//! Out of scope: creating the links; what guests may send to each other (`firewall::antispoof`).
//!
//! # Why
//! - Packets of bridge VMs arrive on the bridge. Only there does the host need IPv4. It needs IPv6 nowhere: VMs get no IPv6 addresses, and
//!   IPv6 between VMs is bridged whether or not the host uses IPv6. With `disable_ipv6` the link has no address, route or neighbour, and
//!   loses those that it had. A port needs none of them, but it can be addressed: frames to 01:80:c2:00:00:0X are received at the port
//!   itself (`br_handle_frame`, net/bridge/br_input.c).
//! - `accept_ra`, `autoconf` and `accept_redirects` of IPv6 are read from the link alone. For IPv4, `accept_redirects` and
//!   `accept_source_route` also need `all` on a link that forwards (`IN_DEV_RX_REDIRECTS`, include/linux/inetdevice.h), so a 0 here turns
//!   them off; `arp_ignore` and `arp_announce` are the maximum of both. `forwarding` is compared for the same reason: without it, either
//!   `all` or the link turns them on.
//! - They are written while the link is down, and compared at every observation.

use crate::host::link::{Ipv4, Ipv4Key, Ipv6, Link};
use crate::host::netns::Netns;
use crate::host::{Error, sysctl};
use crate::owner::link_group;

/// A setting: the address family, the key below `conf/<link>`, its value.
type Setting = (&'static str, &'static str, &'static str);

/// Settings of a port of a bridge.
const PORT_SETTINGS: [Setting; 5] = [
    ("ipv6", "disable_ipv6", "1"),
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "autoconf", "0"),
    ("ipv6", "accept_redirects", "0"),
    ("ipv6", "proxy_ndp", "0"),
];

/// Further settings of a port, set with its MAC and MTU in one message. Netlink has no such message for IPv6 (`inet6_set_link_af`).
pub(in crate::reconcile) const PORT_IPV4: [(Ipv4Key, u32); 3] = [
    (Ipv4Key::AcceptRedirects, 0),
    (Ipv4Key::AcceptSourceRoute, 0),
    // No ARP request is answered: the port has no address.
    (Ipv4Key::ArpIgnore, 8),
];

/// Settings of the host's end of a veth. Its peer sends no IPv6, and its IPv4 packets are dropped before they are routed. Where IPv6 is
/// disabled, advertisements and redirects are not processed (`ip6_rcv_core`), so the other settings are not written for every VM.
const VETH_SETTINGS: [Setting; 1] = [("ipv6", "disable_ipv6", "1")];

/// Further settings of the host's end of a veth, set with its label in one message. A packet is forwarded if `forwarding` is on for the
/// link that it arrives on; the host's forwarding switch sets it on all existing links, and new links take `conf/default`.
pub(in crate::reconcile) const VETH_IPV4: [(Ipv4Key, u32); 1] = [(Ipv4Key::Forwarding, 1)];

/// Settings of a managed bridge.
const BRIDGE_SETTINGS: [Setting; 14] = [
    ("ipv6", "disable_ipv6", "1"),
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "autoconf", "0"),
    ("ipv6", "accept_redirects", "0"),
    ("ipv6", "proxy_ndp", "0"),
    ("ipv4", "forwarding", "1"),
    ("ipv4", "accept_redirects", "0"),
    ("ipv4", "secure_redirects", "0"),
    ("ipv4", "shared_media", "0"),
    ("ipv4", "accept_source_route", "0"),
    ("ipv4", "proxy_arp", "0"),
    ("ipv4", "arp_accept", "0"),
    // The host answers for its addresses on the bridge, and sends requests from them, not from those of its other links.
    ("ipv4", "arp_announce", "2"),
    // Only senders of its subnet are answered: `arp_process` creates a neighbour for every sender that is answered.
    ("ipv4", "arp_ignore", "2"),
];

/// Writes a port's settings.
pub(in crate::reconcile) fn write_port(home: &Netns, link: &str) -> Result<(), Error> {
    write(home, link, &PORT_SETTINGS)
}

/// Writes the settings of the host's end of a veth.
pub(in crate::reconcile) fn write_veth(home: &Netns, link: &str) -> Result<(), Error> {
    write(home, link, &VETH_SETTINGS)
}

/// Writes a bridge's settings.
pub(in crate::reconcile) fn write_bridge(home: &Netns, link: &str) -> Result<(), Error> {
    write(home, link, &BRIDGE_SETTINGS)
}

/// Uses slashes, because a link's name may contain dots. Settings that a link or a kernel without IPv6 does not have are skipped.
fn write(home: &Netns, link: &str, settings: &[Setting]) -> Result<(), Error> {
    let key = |(family, key, value): &Setting| (format!("net/{family}/conf/{link}/{key}"), *value);
    let values: Vec<(String, &str)> = settings.iter().map(key).collect();
    let values: Vec<(&str, &str)> = values
        .iter()
        .map(|(key, value)| (key.as_str(), *value))
        .collect();
    // Not through directories that are kept open, as in `Netns::write_sysctls`: links are created and removed.
    home.run_here(|| sysctl::write_many(&values))
}

/// Whether a port has its group and settings.
pub(in crate::reconcile) fn is_port(link: &Link) -> bool {
    let ipv4 = |ipv4: Ipv4| {
        (ipv4.accept_redirects, ipv4.accept_source_route) == (0, 0) && ipv4.arp_ignore == 8
    };
    link.group == link_group::PORT && link.ipv6.is_none_or(is_off) && link.ipv4.is_none_or(ipv4)
}

/// Whether the host's end of a veth has its group and settings.
pub(in crate::reconcile) fn is_veth(link: &Link) -> bool {
    let is_off = |ipv6: Ipv6| ipv6.disabled && ipv6.no_autogenerated_address;
    let forwards = |ipv4: Ipv4| ipv4.forwarding == 1;
    link.group == link_group::ISOLATED
        && link.ipv6.is_none_or(is_off)
        && link.ipv4.is_none_or(forwards)
}

/// Whether a bridge has its group and settings.
pub(in crate::reconcile) fn is_bridge(link: &Link) -> bool {
    let expected = |ipv4: Ipv4| Ipv4 {
        forwarding: 1,
        accept_redirects: 0,
        secure_redirects: 0,
        shared_media: 0,
        accept_source_route: 0,
        proxy_arp: 0,
        arp_accept: 0,
        arp_announce: 2,
        arp_ignore: 2,
        ..ipv4
    };
    link.group == link_group::BRIDGE
        && link.ipv4.is_none_or(|ipv4| ipv4 == expected(ipv4))
        && link.ipv6.is_none_or(is_off)
}

fn is_off(ipv6: Ipv6) -> bool {
    ipv6.disabled && ipv6.no_autogenerated_address && !ipv6.configurable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge() -> Link {
        Link {
            group: link_group::BRIDGE,
            ipv4: Some(Ipv4 {
                forwarding: 1,
                arp_announce: 2,
                arp_ignore: 2,
                ..Ipv4::default()
            }),
            ipv6: Some(OFF),
            ..Link::default()
        }
    }

    const OFF: Ipv6 = Ipv6 {
        disabled: true,
        configurable: false,
        no_autogenerated_address: true,
    };

    #[test]
    fn each_wrong_setting_of_a_bridge_is_detected() {
        assert!(is_bridge(&bridge()));
        let changes: [fn(&mut Link); 13] = [
            |link| link.group = 0,
            |link| link.group = link_group::PORT,
            |link| link.ipv6.as_mut().unwrap().disabled = false,
            |link| link.ipv6.as_mut().unwrap().configurable = true,
            |link| link.ipv4.as_mut().unwrap().forwarding = 0,
            |link| link.ipv4.as_mut().unwrap().accept_redirects = 1,
            |link| link.ipv4.as_mut().unwrap().secure_redirects = 1,
            |link| link.ipv4.as_mut().unwrap().shared_media = 1,
            |link| link.ipv4.as_mut().unwrap().accept_source_route = 1,
            |link| link.ipv4.as_mut().unwrap().proxy_arp = 1,
            |link| link.ipv4.as_mut().unwrap().arp_accept = 1,
            |link| link.ipv4.as_mut().unwrap().arp_announce = 0,
            |link| link.ipv4.as_mut().unwrap().arp_ignore = 0,
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut link = bridge();
            change(&mut link);
            assert!(!is_bridge(&link), "{number}");
        }
    }

    #[test]
    fn each_wrong_setting_of_a_port_and_a_veth_is_detected() {
        let port = Link {
            group: link_group::PORT,
            ipv4: Some(Ipv4 {
                arp_ignore: 8,
                ..Ipv4::default()
            }),
            ipv6: Some(OFF),
            ..Link::default()
        };
        let forwarding = Ipv4 {
            forwarding: 1,
            ..Ipv4::default()
        };
        let veth = Link {
            group: link_group::ISOLATED,
            ipv4: Some(forwarding),
            ..port.clone()
        };
        assert!(is_port(&port) && is_veth(&veth));
        assert!(!is_port(&veth) && !is_veth(&port));
        let changes: [fn(&mut Link); 3] = [
            |link| link.group = 0,
            |link| link.ipv6.as_mut().unwrap().disabled = false,
            |link| link.ipv6.as_mut().unwrap().no_autogenerated_address = false,
        ];
        for change in changes {
            let (mut port, mut veth) = (port.clone(), veth.clone());
            change(&mut port);
            change(&mut veth);
            assert!(!is_port(&port) && !is_veth(&veth));
        }
        let mut still = veth.clone();
        still.ipv4.as_mut().unwrap().forwarding = 0;
        assert!(!is_veth(&still));
        let mut configurable = port.clone();
        configurable.ipv6.as_mut().unwrap().configurable = true;
        assert!(!is_port(&configurable));
        let of_a_port: [fn(&mut Ipv4); 3] = [
            |ipv4| ipv4.accept_redirects = 1,
            |ipv4| ipv4.accept_source_route = 1,
            |ipv4| ipv4.arp_ignore = 0,
        ];
        for change in of_a_port {
            let mut port = port.clone();
            change(port.ipv4.as_mut().unwrap());
            assert!(!is_port(&port));
        }
        // A kernel without IPv6 has nothing to turn off.
        assert!(is_port(&Link { ipv6: None, ..port }) && is_veth(&Link { ipv6: None, ..veth }));
    }
}
