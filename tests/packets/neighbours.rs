//! A guest that forges senders and asks for everybody: what is left of the kernel's one neighbour table.
//! Out of scope: the connection tracking table (`flood`).
//!
//! The table is the machine's: fewer than 500 entries are made in any test.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;
use slicectl::host::tap::Framing;

use crate::support::frames::{self, Ip, UDP};
use crate::support::guest_stack::{Guest, Kind};
use crate::support::kernel;
use crate::support::lab::{HOST, INTERNET, Lab, lab};

/// Frames of a flood.
const FRAMES: u16 = 200;

/// An ARP message: operation, sender's addresses, target's addresses.
fn arp(op: u8, sha: [u8; 6], spa: Ipv4Addr, tha: [u8; 6], tpa: Ipv4Addr) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, op];
    arp.extend(sha);
    arp.extend(spa.octets());
    arp.extend(tha);
    arp.extend(tpa.octets());
    arp
}

fn mac(i: u16) -> [u8; 6] {
    let [a, b] = i.to_be_bytes();
    [2, 9, 9, 9, a, b]
}

/// An address in the subnet of the guest's gateway, and one of nowhere.
fn near(guest: &Guest, i: u16) -> Ipv4Addr {
    Ipv4Addr::from(guest.gateway.to_bits() & !0xff | u32::from(2 + i % 250))
}

fn far(i: u16) -> Ipv4Addr {
    let [a, b] = i.to_be_bytes();
    Ipv4Addr::new(10, 77, a, b)
}

fn neighbour_solicitation(kind: u8, source: [u8; 16], mac: [u8; 6], target: [u8; 16]) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, 0x60, 0, 0, 0];
    body.extend(target);
    body.extend([if kind == 136 { 2 } else { 1 }, 1]);
    body.extend(mac);
    let mut packet = vec![0x60, 0, 0, 0, 0, body.len() as u8, 58, 255];
    packet.extend(source);
    packet.extend(target);
    let mut pseudo = source.to_vec();
    pseudo.extend(target);
    pseudo.extend([0, 0, 0, body.len() as u8, 0, 0, 0, 58]);
    pseudo.extend(&body);
    let sum = frames::checksum(&pseudo);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

fn link_local(i: u16) -> [u8; 16] {
    let [a, b] = i.to_be_bytes();
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 9, a, b]
}

type Variant = fn(&Guest, u16) -> Vec<u8>;

const ALL: [u8; 6] = [0xff; 6];

const VARIANTS: [(&str, Variant); 14] = [
    ("a request for the gateway from a near sender", |g, i| {
        frames::ethernet(
            ALL,
            g.mac,
            0x0806,
            &arp(1, g.mac, near(g, i), [0; 6], g.gateway),
        )
    }),
    ("a request for the gateway from a far sender", |g, i| {
        frames::ethernet(
            ALL,
            g.mac,
            0x0806,
            &arp(1, mac(i), far(i), [0; 6], g.gateway),
        )
    }),
    ("a unicast request with forged addresses", |g, i| {
        frames::ethernet(
            g.gateway_mac,
            mac(i),
            0x0806,
            &arp(1, mac(i), near(g, i), [0; 6], g.gateway),
        )
    }),
    ("an answer nobody asked for", |g, i| {
        frames::ethernet(
            g.gateway_mac,
            g.mac,
            0x0806,
            &arp(2, g.mac, near(g, i), g.gateway_mac, g.gateway),
        )
    }),
    ("a gratuitous request", |g, i| {
        frames::ethernet(
            ALL,
            g.mac,
            0x0806,
            &arp(1, g.mac, near(g, i), [0; 6], near(g, i)),
        )
    }),
    ("a gratuitous answer", |g, i| {
        frames::ethernet(
            ALL,
            g.mac,
            0x0806,
            &arp(2, g.mac, near(g, i), ALL, near(g, i)),
        )
    }),
    ("a probe", |g, i| {
        frames::ethernet(
            ALL,
            g.mac,
            0x0806,
            &arp(1, g.mac, Ipv4Addr::UNSPECIFIED, [0; 6], near(g, i)),
        )
    }),
    ("RARP", |g, i| {
        frames::ethernet(
            ALL,
            g.mac,
            0x8035,
            &arp(3, mac(i), near(g, i), mac(i), near(g, i)),
        )
    }),
    ("IPv4 from a foreign source", |g, i| {
        let packet = Ip::new(near(g, i), INTERNET, UDP, frames::udp(1, 2, b"x"));
        frames::ethernet(g.gateway_mac, g.mac, 0x0800, &packet.bytes())
    }),
    ("IPv4 from a foreign source that ends here", |g, i| {
        let mut packet = Ip::new(near(g, i), INTERNET, UDP, frames::udp(1, 2, b"x"));
        packet.ttl = 1;
        frames::ethernet(g.gateway_mac, g.mac, 0x0800, &packet.bytes())
    }),
    ("a VLAN tag before a request", |g, i| {
        let frame = frames::ethernet(
            ALL,
            g.mac,
            0x0806,
            &arp(1, g.mac, near(g, i), [0; 6], g.gateway),
        );
        frames::tagged(&frame, 0x8100, 0)
    }),
    ("a neighbour solicitation", |g, i| {
        let packet = neighbour_solicitation(135, link_local(i), mac(i), link_local(1));
        frames::ethernet([0x33, 0x33, 0xff, 9, 0, 1], g.mac, 0x86dd, &packet)
    }),
    ("a neighbour advertisement", |g, i| {
        let packet = neighbour_solicitation(136, link_local(i), mac(i), link_local(i));
        frames::ethernet([0x33, 0x33, 0, 0, 0, 1], g.mac, 0x86dd, &packet)
    }),
    ("a request for a neighbour", |g, i| {
        frames::ethernet(ALL, g.mac, 0x0806, &arp(1, g.mac, g.ip, [0; 6], near(g, i)))
    }),
];

/// Entries that count against the kernel's limit: permanent ones do not.
fn learned(list: &Value) -> usize {
    let entries = list.as_array().expect("a list");
    let counts = |entry: &&Value| {
        let states = entry["state"].as_array().expect("states");
        !states
            .iter()
            .any(|state| matches!(state.as_str(), Some("PERMANENT" | "NOARP")))
    };
    entries.iter().filter(counts).count()
}

fn flood(guest: &Guest, variant: Variant) {
    for i in 0..FRAMES {
        guest.send(&variant(guest, i));
    }
    std::thread::sleep(Duration::from_millis(20));
    while guest.read().is_some() {}
}

#[test]
fn nothing_is_learned_from_an_isolated_guest() {
    lab(|lab| {
        let guest = lab.only("allow: []");
        let place = lab.house.place("sandbox-1");
        let inside = |what: &str| {
            let text = kernel::run(&format!(
                "nsenter --net={} ip -j neigh show nud all",
                place.netns
            ));
            let list = serde_json::from_str(&text).unwrap_or(Value::Array(Vec::new()));
            assert_eq!(learned(&list), 0, "{what}: {text}");
        };
        for (what, variant) in VARIANTS {
            flood(&guest, variant);
            inside(what);
            let host = kernel::ip(&format!("neigh show dev {} nud all", place.link));
            assert_eq!(learned(&host), 0, "{what}: {host}");
        }
        // And it still is served.
        assert!(guest.resolve(guest.gateway).is_some());
        let probe = lab.probe(&guest, INTERNET, Kind::Udp(53));
        assert!(lab.arrived().contains(&probe));
    });
}

#[test]
fn nothing_is_learned_from_a_guest_on_a_bridge() {
    for (network, most) in [
        ("antispoof: true", 0),
        ("antispoof: true\nisolate_ports: true", 0),
        ("antispoof: false", 0),
    ] {
        lab(|lab| {
            lab.apply_bridge("sandbox", 2, network);
            let guest = lab.port("sandbox-1");
            let bridge = lab.house.get("vm sandbox-1")["status"]["network"]["host_link"]
                .as_str()
                .expect("a bridge")
                .to_owned();
            for (what, variant) in VARIANTS {
                let before = learned(&kernel::ip(&format!("neigh show dev {bridge} nud all")));
                flood(&guest, variant);
                let after = kernel::ip(&format!("neigh show dev {bridge} nud all"));
                println!("{network}: {what}: {} entries", learned(&after));
                assert!(
                    learned(&after) <= before + most,
                    "{network}: {what}: {after}"
                );
            }
            assert!(guest.resolve(guest.gateway).is_some());
            let other = lab.port("sandbox-2");
            let probe = lab.probe(&other, INTERNET, Kind::Udp(53));
            assert!(lab.arrived().contains(&probe), "{network}");
        });
    }
}

/// How many entries the host has on a link.
fn host_entries(link: &str) -> usize {
    kernel::ip(&format!("neigh show dev {link} nud all"))
        .as_array()
        .map_or(0, Vec::len)
}

fn sweep(lab: &Lab, guests: &[Guest]) {
    kernel::run("ip addr add 172.30.0.1/16 dev lan0");
    // The host's rules take the new network in.
    lab.house.until("the limit for the network", || {
        kernel::run("iptables -t mangle -S")
            .contains("172.30.0.0/16")
            .then_some(())
    });
    let mut n = 0u32;
    for round in 0..4u16 {
        for i in 0..500 {
            for guest in guests {
                n += 1;
                let to = Ipv4Addr::from(u32::from_be_bytes([172, 30, 1, 0]) + n);
                guest.send_ip(&Ip::new(
                    guest.ip,
                    to,
                    UDP,
                    frames::udp(2000 + i, 7 + round, b"x"),
                ));
            }
        }
        std::thread::sleep(Duration::from_millis(250));
        let entries = host_entries("lan0");
        println!("after {n} destinations: {entries} entries");
        assert!(entries <= 260, "{entries} entries after {n} destinations");
        // A neighbour that the host has not known yet.
        let other = Ipv4Addr::new(192, 168, 1, 20 + round as u8);
        lab.lan
            .neighbour
            .run(&format!("ip addr add {other}/24 dev eth0"));
        kernel::run(&format!("busybox ping -c1 -W1 -I {HOST} {other}"));
    }
}

#[test]
fn guests_that_sweep_a_network_of_the_hosts_leave_room_for_its_own_neighbours() {
    lab(|lab| {
        lab.apply(2, "allow: [\"172.30.0.0/16\"]");
        let guests: Vec<Guest> = [1, 2].map(|n| lab.guest(n, Framing::VnetHdr)).into();
        sweep(lab, &guests);
    });
    lab(|lab| {
        lab.apply_bridge("sandbox", 2, "");
        let guests: Vec<Guest> = [1, 2].map(|n| lab.port(&format!("sandbox-{n}"))).into();
        sweep(lab, &guests);
    });
}
