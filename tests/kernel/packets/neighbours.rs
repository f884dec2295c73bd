//! A guest that forges senders and asks for everybody: what is left of the kernel's one neighbour table.
//! Out of scope: the connection tracking table (`flood`).
//!
//! The table is the machine's: fewer than 500 entries are made in any test, and a flood ends at [`TOO_MANY`].

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::Value;
use slicectl::host::netns::Netns;
use slicectl::host::tap::Framing;

use test_support::frames::{self, Ip, UDP};
use test_support::guest_stack::{Guest, Kind};
use test_support::kernel;
use test_support::lab::{HOST, INTERNET, Lab, lab};

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
        let place = lab.harness.place("sandbox-1");
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
        ("antispoof: false", 254),
    ] {
        lab(|lab| {
            lab.apply_bridge("sandbox", 2, network);
            let guest = lab.port("sandbox-1");
            let bridge = lab.harness.get("vm sandbox-1")["status"]["network"]["host_link"]
                .as_str()
                .expect("a bridge")
                .to_owned();
            for (what, variant) in VARIANTS {
                flood(&guest, variant);
                let list = kernel::ip(&format!("neigh show dev {bridge} nud all"));
                let learned = learned(&list);
                println!("{network}: {what}: {learned} entries");
                assert!(learned <= most, "{network}: {what}: {learned} entries");
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
    lab.harness.until("the limit for the network", || {
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
        assert!(
            entries <= 256 + 16,
            "{entries} entries after {n} destinations"
        );
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

/// A flood that has made so many entries has failed, and ends before it takes the machine's table.
const TOO_MANY: usize = 600;

/// Frames of one guest in a second: four of them make fewer than [`TOO_MANY`] between two counts if nothing holds them back.
const PER_SECOND: u32 = 1000;

/// How long the guests flood, and for how long of that with IPv6, too.
const FLOOD: Duration = Duration::from_secs(10);
const WITH_IPV6: Duration = Duration::from_secs(3);

/// What all guests send and the host has while they do.
struct Floods {
    end: AtomicBool,
    frames: AtomicU32,
    /// The most entries of this namespace and of the VMs' together that were counted.
    most: AtomicUsize,
}

impl Floods {
    /// Sends until the end, for so long at most.
    fn send(&self, guest: &Guest, most: Duration, frame: impl Fn(u32) -> Vec<u8>) {
        let started = Instant::now();
        let mut n = 0;
        while !self.end.load(SeqCst) && started.elapsed() < most {
            for _ in 0..20 {
                guest.send(&frame(n));
                n += 1;
            }
            while guest.read().is_some() {}
            std::thread::sleep(Duration::from_secs(20) / PER_SECOND);
        }
        self.frames.fetch_add(n, SeqCst);
    }

    /// Counts until the end, and ends everything when there are too many.
    fn watch(&self, namespaces: &[Netns]) {
        while !self.end.load(SeqCst) {
            let count = |netns: &Netns| {
                let found = netns.run_here(|| Ok(kernel::run("ip -j neigh show nud all")));
                let text = found.expect("a namespace");
                learned(&serde_json::from_str(&text).unwrap_or(Value::Array(Vec::new())))
            };
            let entries = namespaces.iter().map(count).sum();
            self.most.fetch_max(entries, SeqCst);
            if entries > TOO_MANY {
                self.end.store(true, SeqCst);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn swept(guest: &Guest, n: u32) -> Vec<u8> {
    let to = Ipv4Addr::from(u32::from_be_bytes([172, 30, 1, 0]) + n % 60_000);
    let packet = Ip::new(guest.ip, to, UDP, frames::udp(2000, 7, b"x"));
    frames::ethernet(guest.gateway_mac, guest.mac, 0x0800, &packet.bytes())
}

#[test]
fn while_guests_flood_for_ten_seconds_the_host_finds_each_new_neighbour_within_a_second() {
    lab(|lab| {
        kernel::run("ip addr add 172.30.0.1/16 dev lan0");
        lab.apply(2, "allow: [\"172.30.0.0/16\"]");
        lab.apply_bridge("web", 3, "bridge: brvm0\ngateway: 192.168.137.1/24");
        let open = "bridge: brvm1\ngateway: 192.168.138.1/24\nantispoof: false";
        lab.apply_bridge("open", 1, open);
        lab.harness.until("the limit for the network", || {
            let rules = kernel::run("iptables -t mangle -S");
            rules.contains("172.30.0.0/16").then_some(())
        });
        let isolated = [1, 2].map(|n| lab.guest(n, Framing::VnetHdr));
        let bridged = [1, 2, 3].map(|n| lab.port(&format!("web-{n}")));
        let unfiltered = lab.port("open-1");
        let mut namespaces = vec![Netns::current().expect("this namespace")];
        for n in [1, 2] {
            let place = lab.harness.place(&format!("sandbox-{n}"));
            namespaces.push(Netns::open(place.netns.as_ref()).expect("a namespace"));
        }
        let floods = Floods {
            end: AtomicBool::new(false),
            frames: AtomicU32::new(0),
            most: AtomicUsize::new(0),
        };
        let forged = |guest: &Guest, n: u32| {
            // The ways of ARP and RARP, one after the other.
            let (_, variant) = VARIANTS[n as usize % 8];
            variant(guest, n as u16)
        };
        let discovery = |guest: &Guest, n: u32| {
            let (_, variant) = VARIANTS[11 + n as usize % 2];
            variant(guest, n as u16)
        };
        let mut slowest = Duration::ZERO;
        std::thread::scope(|scope| {
            let floods = &floods;
            for (forger, sweeper) in [(&isolated[0], &isolated[1]), (&bridged[0], &bridged[1])] {
                scope.spawn(move || floods.send(forger, FLOOD * 2, |n| forged(forger, n)));
                scope.spawn(move || floods.send(sweeper, FLOOD * 2, |n| swept(sweeper, n)));
            }
            for guest in [&bridged[2], &unfiltered] {
                scope.spawn(move || floods.send(guest, WITH_IPV6, |n| discovery(guest, n)));
            }
            let namespaces = &namespaces;
            scope.spawn(move || floods.watch(namespaces));
            // A failed assertion must end the floods, too.
            let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let started = Instant::now();
                let mut last = 20;
                while started.elapsed() < FLOOD && !floods.end.load(SeqCst) {
                    let other = Ipv4Addr::new(192, 168, 1, last);
                    last += 1;
                    let neighbour = &lab.lan.neighbour;
                    neighbour.run(&format!("ip addr add {other}/24 dev eth0"));
                    let asked = Instant::now();
                    kernel::run(&format!("busybox ping -c1 -W1 -I {HOST} {other}"));
                    slowest = slowest.max(asked.elapsed());
                    std::thread::sleep(Duration::from_millis(200));
                }
                last - 20
            }));
            floods.end.store(true, SeqCst);
            let found = found.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            println!("{found} new neighbours, the slowest after {slowest:?}");
            assert!(found >= 10, "only {found} new neighbours were asked for");
        });
        let (frames, most) = (floods.frames.load(SeqCst), floods.most.load(SeqCst));
        println!("{frames} frames, {most} entries at most");
        assert!(most <= TOO_MANY, "{most} entries: the flood was ended");
        // What sweeps may make, and some of the lab's own.
        assert!(most <= 256 + 64, "{most} entries");
        assert!(most > 16, "{most} entries: nothing was swept");
        assert!(frames > 4 * 10 * PER_SECOND / 4, "only {frames} frames");
        assert!(slowest <= Duration::from_secs(1), "{slowest:?}");
    });
}
