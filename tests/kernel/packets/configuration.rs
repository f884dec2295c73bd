//! Nothing that a guest on a bridge sends configures the host or the bridge: hostile frames, and the host before and after.
//! Out of scope: what guests may send to each other (`bridge_guard`, `reconcile::firewall::antispoof`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use test_support::frames::{self, Ip, UDP, ethernet, tagged};
use test_support::guest_stack::Guest;
use test_support::guest_stack::Kind::Udp;
use test_support::kernel;
use test_support::lab::{INTERNET, Lab, Place, lab, mac};

const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ROUTER: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x66];

/// The guest's link-local address, formed from its MAC (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> [u8; 16] {
    let [a, b, c, d, e, f] = mac;
    [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ]
}

fn ipv6(
    to: [u8; 6],
    from: [u8; 6],
    source: [u8; 16],
    destination: [u8; 16],
    next: u8,
    hops: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(source);
    packet.extend(destination);
    packet.extend(payload);
    ethernet(to, from, 0x86dd, &packet)
}

/// An ICMPv6 message with its checksum.
fn icmp6(source: [u8; 16], destination: [u8; 16], mut message: Vec<u8>) -> Vec<u8> {
    message[2..4].fill(0);
    let mut pseudo = Vec::new();
    pseudo.extend(source);
    pseudo.extend(destination);
    pseudo.extend((message.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    pseudo.extend(&message);
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    message
}

/// A router advertisement (RFC 4861 section 4.2): a default route, and a prefix to form addresses from.
fn advertisement(mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![
        134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1,
    ];
    message.extend(mac);
    message.extend([
        3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0,
    ]);
    message.extend([0xfd, 0x66, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    message
}

/// A message of neighbour discovery about that target.
fn neighbour(kind: u8, flags: u8, target: [u8; 16], option: u8, mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target);
    message.extend([option, 1]);
    message.extend(mac);
    message
}

/// Frames that would configure a host or a bridge, by name.
fn hostile(guest: &Guest, host: [u8; 6]) -> Vec<(&'static str, Vec<u8>)> {
    let own = link_local(guest.mac);
    let nd = |to: [u8; 6], source: [u8; 16], destination: [u8; 16], message: Vec<u8>| {
        let message = icmp6(source, destination, message);
        ipv6(to, guest.mac, source, destination, 58, 255, &message)
    };
    let ra = |to, source| nd(to, source, ALL_NODES, advertisement(guest.mac));
    let behind = |next: u8, header: &[u8]| {
        let message = icmp6(own, ALL_NODES, advertisement(guest.mac));
        let payload = [header, &message].concat();
        ipv6(
            ALL_NODES_MAC,
            guest.mac,
            own,
            ALL_NODES,
            next,
            255,
            &payload,
        )
    };
    let udp = |to: [u8; 6], from: u16, port: u16| {
        let mut data = vec![2, 1, 6, 0];
        data.resize(300, 0);
        let packet = Ip::new(
            guest.ip,
            Ipv4Addr::BROADCAST,
            UDP,
            frames::udp(from, port, &data),
        );
        ethernet(to, guest.mac, 0x0800, &packet.bytes())
    };
    let ipv4 = |protocol: u8, destination: [u8; 4], payload: Vec<u8>| {
        let packet = Ip::new(guest.ip, destination.into(), protocol, payload);
        ethernet(frames::BROADCAST, guest.mac, 0x0800, &packet.bytes())
    };
    // "Reach the internet host through me", about a packet of the host's.
    let redirect = {
        let inner = Ip::new(guest.gateway, INTERNET, UDP, frames::udp(1, 2, b"xx")).bytes();
        let mut message = vec![5, 1, 0, 0];
        message.extend(guest.ip.octets());
        message.extend(&inner[..28]);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let packet = Ip::new(guest.ip, guest.gateway, frames::ICMP, message);
        ethernet(host, guest.mac, 0x0800, &packet.bytes())
    };
    let query = [vec![130, 0, 0, 0, 0, 100, 0, 0], vec![0; 20]].concat();
    let query = icmp6(own, ALL_NODES, query);
    let query = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &query].concat();
    let igmp = vec![0x11, 0, 0xee, 0xff, 0, 0, 0, 0];
    let bpdu = {
        let mut frame = vec![1, 0x80, 0xc2, 0, 0, 0];
        frame.extend(guest.mac);
        // A root bridge of priority 0.
        frame.extend([0, 38, 0x42, 0x42, 3, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(guest.mac);
        frame.extend([0, 0, 0, 0, 0, 0]);
        frame.extend(guest.mac);
        frame.extend([0x80, 1, 0, 0, 20, 0, 2, 0, 15, 0]);
        frame
    };
    let mut all = vec![
        ("a router advertisement", ra(ALL_NODES_MAC, own)),
        (
            "a router advertisement of another",
            ra(ALL_NODES_MAC, ROUTER),
        ),
        ("a router advertisement to the bridge's MAC", ra(host, own)),
        (
            "a router advertisement to the port",
            ra([1, 0x80, 0xc2, 0, 0, 0xe], own),
        ),
        (
            "a tagged router advertisement",
            tagged(&ra(ALL_NODES_MAC, own), 0x8100, 0),
        ),
        (
            "a router advertisement behind options",
            behind(60, &[58, 0, 1, 4, 0, 0, 0, 0]),
        ),
        (
            "a router advertisement behind hop-by-hop options",
            behind(0, &[58, 0, 1, 4, 0, 0, 0, 0]),
        ),
        (
            "a router advertisement in a fragment",
            behind(44, &[58, 0, 0, 0, 0, 0, 0, 1]),
        ),
        (
            "an IPv6 redirect",
            nd(host, ROUTER, own, neighbour(137, 0, ROUTER, 2, guest.mac)),
        ),
        (
            "a neighbour advertisement of a router",
            nd(
                ALL_NODES_MAC,
                own,
                ALL_NODES,
                neighbour(136, 0xe0, ROUTER, 2, guest.mac),
            ),
        ),
        (
            "a neighbour advertisement about a foreign target",
            nd(
                ALL_NODES_MAC,
                own,
                ALL_NODES,
                neighbour(136, 0x20, ROUTER, 2, guest.mac),
            ),
        ),
        (
            "a neighbour solicitation of a forged source",
            nd(
                ALL_NODES_MAC,
                ROUTER,
                ALL_NODES,
                neighbour(135, 0, own, 1, guest.mac),
            ),
        ),
        (
            "an MLD query",
            ipv6(ALL_NODES_MAC, guest.mac, own, ALL_NODES, 0, 1, &query),
        ),
        ("a DHCP server", udp(frames::BROADCAST, 67, 68)),
        (
            "a DHCP server of another port",
            udp(frames::BROADCAST, 4000, 68),
        ),
        ("an ICMP redirect", redirect),
        ("an ICMP router advertisement", {
            let mut message = vec![9, 0, 0, 0, 1, 2, 7, 8];
            message.extend(guest.ip.octets());
            message.extend([0, 0, 0, 1]);
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            ipv4(frames::ICMP, [224, 0, 0, 1], message)
        }),
        ("an IGMP query", ipv4(2, [224, 0, 0, 1], igmp)),
        ("a spanning tree", bpdu),
    ];
    all.push((
        "a PIM hello",
        ipv4(
            103,
            [224, 0, 0, 13],
            vec![0x20, 0, 0xdf, 0xff, 0, 1, 0, 2, 0, 105],
        ),
    ));
    all
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What of the host may be configured from outside.
fn state(bridge: &str) -> BTreeMap<&'static str, String> {
    [
        // Of the bridge, its ports, and all that leads on: other links of the lab are still finding their addresses.
        (
            "IPv6 routes",
            "ip -6 route show table all | { grep -E 'default|proto ra|dev (br|vmtap)' || true; } | { grep -v multicast || true; } | sed 's/ expires [^ ]*//' | sort".to_owned(),
        ),
        (
            "IPv4 routes",
            "ip -4 route show table all; ip route get 203.0.113.10; ip route show cache".to_owned(),
        ),
        (
            "addresses",
            format!("ip -o addr show dev {bridge} | sed 's/valid_lft.*//'; ip -o addr show dev vmtap0"),
        ),
        (
            "the bridge",
            format!("bridge -d link show | sed 's/ state [A-Z]* //' | sed 's/[<,]*NO-CARRIER//'; cat /sys/class/net/{bridge}/bridge/root_id /sys/class/net/{bridge}/bridge/topology_change"),
        ),
        (
            "multicast routers and queriers",
            format!("bridge -d -s mdb show dev {bridge} | grep -i router || true; ip -d link show {bridge} | grep -o 'mcast_querier_ipv[46]_addr [^ ]*' || true"),
        ),
        ("neighbours", format!("ip -6 neigh show dev {bridge} | grep -i 'router\\|::66' || true")),
    ]
    .into_iter()
    .map(|(what, command)| (what, kernel::run(&command)))
    .collect()
}

fn bridge_mac(bridge: &str) -> [u8; 6] {
    mac(kernel::run(&format!("cat /sys/class/net/{bridge}/address")).trim())
}

/// As most distributions have it: the host is willing to be configured on every link.
const WILLING: &str = "sysctl -qw net.ipv6.conf.all.accept_ra=2 net.ipv6.conf.default.accept_ra=2 net.ipv6.conf.default.autoconf=1 net.ipv6.conf.default.accept_dad=0 net.ipv4.conf.all.accept_redirects=1 net.ipv4.conf.default.accept_redirects=1 net.ipv4.conf.all.accept_source_route=1";

/// Sends each, and says which changed anything.
fn configured_by(lab: &Lab, guest: &Guest, bridge: &str) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    for (name, frame) in hostile(guest, bridge_mac(bridge)) {
        let before = state(bridge);
        guest.send(&frame);
        // Answered by the host, so what came before was judged.
        guest.resolve(guest.gateway);
        std::thread::sleep(Duration::from_millis(30));
        let after = state(bridge);
        let changed = before.iter().filter(|(what, text)| after[*what] != **text);
        found.extend(changed.map(|(what, _)| {
            eprintln!("{name}: {what}:\n{}---\n{}", before[what], after[what]);
            (name, *what)
        }));
    }
    let id = lab.probe(guest, INTERNET, Udp(53));
    lab.net.sniffer.wait_for(id);
    found
}

#[test]
fn nothing_that_a_guest_sends_configures_the_host_on_a_managed_bridge() {
    lab(|lab| {
        kernel::run(WILLING);
        for policy in [
            "antispoof: true",
            "antispoof: false",
            "antispoof: false\nisolate_ports: true",
        ] {
            let network =
                format!("bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24\n{policy}");
            lab.apply_bridge("web", 1, &network);
            let guest = lab.port("web-1");
            assert_eq!(configured_by(lab, &guest, "brvm0"), [], "{policy}");
            let local = kernel::run("ip -6 -o addr show dev brvm0; ip -6 -o addr show dev vmtap0");
            assert_eq!(local, "", "no address that nobody gave");
            let ended = kernel::run(
                "cat /proc/sys/net/ipv6/conf/brvm0/accept_ra /proc/sys/net/ipv6/conf/brvm0/autoconf /proc/sys/net/ipv6/conf/vmtap0/accept_ra /proc/sys/net/ipv6/conf/vmtap0/autoconf /proc/sys/net/ipv6/conf/vmtap0/disable_ipv6",
            );
            assert_eq!(ended, "0\n0\n0\n0\n1\n");
        }
    });
}

/// A bridge of the administrator's with spanning tree, snooping and a router of its own behind a NIC.
fn office() -> Place {
    kernel::run(WILLING);
    let office = Place::settle("nic0", "192.168.7.5/24", "192.168.7.1/24");
    kernel::run(
        "ip addr flush dev nic0
         ip link add br0 address 02:00:00:00:00:b0 type bridge stp_state 1 forward_delay 0 mcast_snooping 1 mcast_querier 0
         ip link set nic0 master br0
         ip link set br0 up
         ip addr add 192.168.7.5/24 dev br0",
    );
    office
}

#[test]
fn nothing_that_a_guest_sends_configures_the_host_on_an_unmanaged_bridge() {
    lab(|lab| {
        let _office = office();
        let own = kernel::run("sysctl -a 2>/dev/null | grep '\\.br0\\.' | grep -v forwarding");
        for policy in [
            "antispoof: true",
            "antispoof: false",
            "antispoof: false\nisolate_ports: true",
        ] {
            let network = format!(
                "bridge: br0\ntap_prefix: vmtap\ngateway: 192.168.7.5/24\naddresses: [192.168.7.50/24]\n{policy}"
            );
            lab.apply_bridge("web", 1, &network);
            let guest = lab.port("web-1");
            let mut found = configured_by(lab, &guest, "br0");
            // On a bridge that is not ours, a guest that may send as anybody may also answer for others.
            if policy != "antispoof: true" {
                found.retain(|(name, what)| {
                    !(name.starts_with("a neighbour") && *what == "neighbours")
                });
            }
            assert_eq!(found, [], "{policy}");
        }
        assert_eq!(
            kernel::run("sysctl -a 2>/dev/null | grep '\\.br0\\.' | grep -v forwarding"),
            own,
            "the bridge is not ours"
        );
    });
}

#[test]
fn settings_of_our_bridges_and_ports_that_somebody_changes_come_back() {
    const KEYS: [(&str, &str, &str); 12] = [
        ("ipv6/conf/brvm0/disable_ipv6", "1", "0"),
        ("ipv6/conf/brvm0/accept_ra", "0", "2"),
        ("ipv6/conf/brvm0/autoconf", "0", "1"),
        ("ipv6/conf/brvm0/accept_redirects", "0", "1"),
        ("ipv4/conf/brvm0/accept_redirects", "0", "1"),
        ("ipv4/conf/brvm0/accept_source_route", "0", "1"),
        ("ipv4/conf/brvm0/arp_ignore", "2", "0"),
        ("ipv4/conf/brvm0/proxy_arp", "0", "1"),
        ("ipv6/conf/vmtap0/disable_ipv6", "1", "0"),
        ("ipv6/conf/vmtap0/accept_ra", "0", "2"),
        ("ipv4/conf/vmtap0/accept_redirects", "0", "1"),
        ("ipv4/conf/vmtap0/arp_ignore", "8", "0"),
    ];
    const LINKS: [(&str, &str); 6] = [
        (
            "ip link set brvm0 type bridge mcast_snooping 1",
            "ip -d link show brvm0 | grep -o 'mcast_snooping 0'",
        ),
        (
            "ip link set brvm0 type bridge stp_state 1",
            "ip -d link show brvm0 | grep -o 'stp_state 0'",
        ),
        (
            "ip link set brvm0 type bridge group_fwd_mask 8",
            "ip -d link show brvm0 | grep -ow 'group_fwd_mask 0'",
        ),
        (
            "ip link set vmtap0 type bridge_slave mcast_router 2",
            "ip -d link show vmtap0 | grep -o 'mcast_router 0'",
        ),
        (
            "ip link set vmtap0 type bridge_slave root_block off",
            "ip -d link show vmtap0 | grep -o 'root_block on'",
        ),
        (
            "ip link set vmtap0 group 7",
            "ip -d link show vmtap0 | grep -o 'group 1936457731'",
        ),
    ];
    lab(|lab| {
        kernel::run(WILLING);
        lab.apply_bridge(
            "web",
            1,
            "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24",
        );
        let at = |key: &str| {
            kernel::run(&format!("cat /proc/sys/net/{key}"))
                .trim()
                .to_owned()
        };
        let astray = || {
            let keys = KEYS.iter().filter(|(key, right, _)| at(key) != *right);
            let links = LINKS
                .iter()
                .filter(|(_, shown)| !kernel::attempt(shown).status.success());
            keys.map(|(key, ..)| *key)
                .chain(links.map(|(set, _)| *set))
                .collect::<Vec<_>>()
        };
        assert_eq!(astray(), [""; 0]);
        // The kernel tells nobody of most of these. Any event of a link is a look at all of it.
        let look = "for l in brvm0 vmtap0; do ip link set $l txqueuelen 1001; ip link set $l txqueuelen 1000; done";
        for (key, _, wrong) in KEYS {
            kernel::run(&format!("echo {wrong} > /proc/sys/net/{key}"));
        }
        kernel::run(look);
        lab.harness
            .until("all settings", || astray().is_empty().then_some(()));
        for (set, _) in LINKS {
            kernel::run(set);
        }
        lab.harness
            .until("all properties", || astray().is_empty().then_some(()));
        assert!(!lab.harness.messages("", "Drift").is_empty());
    });
}

/// Whether the second guest hears what the first sends to its MAC.
fn receives(lab: &Lab, one: &Guest, two: &Guest) -> bool {
    let id = lab.id();
    one.send_ip_to(two.mac, &one.packet(id, two.ip, Udp(53)));
    let is_it = |frame: &[u8]| frames::marked(frame) == Some(id);
    two.receive(Duration::from_millis(20), is_it).is_some()
}

#[test]
fn a_vmm_that_takes_anothers_mac_for_its_tap_cuts_nobody_off_for_long() {
    lab(|lab| {
        for antispoof in [true, false] {
            let network = format!(
                "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24\nantispoof: {antispoof}"
            );
            lab.apply_bridge("web", 3, &network);
            let [one, two, rogue] = ["web-1", "web-2", "web-3"].map(|vm| lab.port(vm));
            assert!(receives(lab, &one, &two));
            let own = mac(kernel::run("cat /sys/class/net/vmtap2/address").trim());
            let repaired = || mac(kernel::run("cat /sys/class/net/vmtap2/address").trim()) == own;
            for (whose, taken) in [
                ("a neighbour's", two.mac),
                ("the bridge's", bridge_mac("brvm0")),
                (
                    "a neighbour's port's",
                    mac(kernel::run("cat /sys/class/net/vmtap0/address").trim()),
                ),
                ("its own guest's", rogue.mac),
            ] {
                rogue.change_mac(taken).unwrap();
                lab.harness.within(Duration::from_secs(1), whose, || {
                    (receives(lab, &one, &two) && repaired()).then_some(())
                });
                let known = lab.id();
                lab.send_to(two.ip, 9, known);
                let is_it = |frame: &[u8]| frames::marked(frame) == Some(known);
                assert!(
                    two.receive(Duration::from_secs(5), is_it).is_some(),
                    "{whose}"
                );
                for guest in [&one, &two, &rogue] {
                    let id = lab.probe(guest, INTERNET, Udp(53));
                    lab.net.sniffer.wait_for(id);
                }
            }
            let events = lab.harness.messages("vm/web-3", "Drift");
            assert!(
                events.iter().any(|output| output.contains("MAC")),
                "{events:?}"
            );
            drop((one, two, rogue));
            // Repairs of one VM again and again become slow.
            lab.harness.ctl("delete hg web --wait=20s");
        }
    });
}
