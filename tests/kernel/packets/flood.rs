//! A guest that opens as many connections as it can, of every kind: what is left of the host's connection tracking table.
//! Out of scope: neighbour tables (`neighbours`).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use slicectl::host::conntrack;
use slicectl::host::netns::Netns;
use slicectl::host::tap::Framing;
use slicectl::reconcile::limits::Limit;

use test_support::frames::{self, ICMP, Ip, TCP, UDP};
use test_support::guest_stack::{Guest, Kind};
use test_support::lab::{HOST, INTERNET, Lab, lab};

/// `max_connections` of the groups here: a few thousand entries at most in a table that the machine shares.
const LIMIT: u32 = 64;
/// Frames of a flood: several times what may pass.
const FRAMES: u16 = 320;

/// How the frame of that number looks.
type Variant = fn(&Guest, u16) -> Vec<Ip>;

fn tcp(guest: &Guest, to: Ipv4Addr, ports: (u16, u16), flags: u8) -> Ip {
    let mut segment = frames::syn(guest.ip, to, ports.0, ports.1, &[]);
    segment[13] = flags;
    frames::fix_tcp(guest.ip, to, &mut segment);
    Ip::new(guest.ip, to, TCP, segment)
}

fn far(i: u16) -> Ipv4Addr {
    let [a, b] = i.to_be_bytes();
    Ipv4Addr::new(198, 18, a, b)
}

fn udp(guest: &Guest, to: Ipv4Addr, from: u16, port: u16) -> Ip {
    Ip::new(guest.ip, to, UDP, frames::udp(from, port, b"x"))
}

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const FIN: u8 = 1;

const VARIANTS: [(&str, Variant); 17] = [
    ("SYN to a server, then its ACK", |g, i| {
        vec![tcp(g, INTERNET, (2000 + i, 7001), SYN)]
    }),
    ("SYN to a closed port", |g, i| {
        vec![tcp(g, INTERNET, (2000 + i, 9), SYN)]
    }),
    ("SYN to many hosts", |g, i| {
        vec![tcp(g, far(i), (2000, 80), SYN)]
    }),
    ("SYN to many ports", |g, i| {
        vec![tcp(g, far(1), (2000, i), SYN)]
    }),
    ("SYN, then RST", |g, i| {
        vec![
            tcp(g, far(2), (2000 + i, 80), SYN),
            tcp(g, far(2), (2000 + i, 80), RST),
        ]
    }),
    ("SYN, then FIN", |g, i| {
        vec![
            tcp(g, far(3), (2000 + i, 80), SYN),
            tcp(g, far(3), (2000 + i, 80), FIN | ACK),
        ]
    }),
    ("ACK alone", |g, i| {
        vec![tcp(g, far(4), (2000 + i, 80), ACK)]
    }),
    ("SYN and ACK", |g, i| {
        vec![tcp(g, far(5), (2000 + i, 80), SYN | ACK)]
    }),
    ("UDP to many ports", |g, i| vec![udp(g, far(6), 2000, i)]),
    ("UDP to many hosts", |g, i| vec![udp(g, far(i), 2000, 53)]),
    ("UDP from many ports", |g, i| {
        vec![udp(g, INTERNET, 2000 + i, 9)]
    }),
    ("ICMP echo", |g, i| {
        vec![Ip::new(g.ip, far(7), ICMP, frames::echo(i, b"x"))]
    }),
    ("GRE", |g, i| {
        vec![Ip::new(
            g.ip,
            far(i),
            47,
            vec![0, 0, 8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 1, 1, 0, 0],
        )]
    }),
    ("ESP", |g, i| vec![Ip::new(g.ip, far(i), 50, vec![0; 16])]),
    ("SCTP", |g, i| {
        let [a, b] = i.to_be_bytes();
        // INIT, so that it starts a flow.
        let mut packet = vec![a, b, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20];
        packet.resize(32, 0);
        vec![Ip::new(g.ip, far(8), 132, packet)]
    }),
    ("an unknown protocol", |g, i| {
        vec![Ip::new(g.ip, far(i), 253, vec![0; 8])]
    }),
    ("first fragments", |g, i| {
        let mut packet = udp(g, far(9), 2000 + i, 53);
        packet.fragment = 0x2000;
        packet.id = i;
        vec![packet]
    }),
];

/// What opens no flow, or is forgotten at once: a RST ends an entry that nobody has answered.
const LEAVES_NOTHING: [&str; 5] = [
    "SYN to a closed port",
    "SYN, then RST",
    "SYN and ACK",
    "SCTP",
    "first fragments",
];

/// Everything that may be in the host's table of one VM.
fn most() -> usize {
    Limit::of(LIMIT).max_entries() as usize
}

/// The entries of the host's table that are this address's.
fn entries(ip: Ipv4Addr) -> usize {
    conntrack::list_by_addresses(&BTreeSet::from([ip]))
        .expect("the table")
        .len()
}

/// Sends a flood, and answers as the guest's kernel would: a SYN that is accepted is confirmed.
fn flood(guest: &Guest, variant: Variant) {
    for i in 0..FRAMES {
        for packet in variant(guest, i) {
            guest.send_ip(&packet);
        }
        while let Some(frame) = guest.read() {
            confirm(guest, &frame);
        }
    }
    std::thread::sleep(Duration::from_millis(50));
    while let Some(frame) = guest.read() {
        confirm(guest, &frame);
    }
}

fn confirm(guest: &Guest, frame: &[u8]) {
    let Some(seen) = frames::read(frame) else {
        return;
    };
    let Some([flags]) = seen.payload.get(13..14) else {
        return;
    };
    if seen.protocol != TCP || *flags != SYN | ACK {
        return;
    }
    let word = |at: usize| u32::from_be_bytes(seen.payload[at..at + 4].try_into().unwrap());
    let port = |at: usize| u16::from_be_bytes(seen.payload[at..at + 2].try_into().unwrap());
    let mut ack = frames::syn(guest.ip, seen.source, port(2), port(0), &[]);
    ack[4..8].copy_from_slice(&word(8).to_be_bytes());
    ack[8..12].copy_from_slice(&word(4).wrapping_add(1).to_be_bytes());
    ack[13] = ACK;
    frames::fix_tcp(guest.ip, seen.source, &mut ack);
    guest.send_ip(&Ip::new(guest.ip, seen.source, TCP, ack));
}

/// A server on the internet that takes every connection.
fn server(lab: &Lab) -> TcpListener {
    let netns = Netns::open(&lab.net.neighbour.path()).unwrap();
    let fail = |e| slicectl::host::Error::io("bind", "a server", e);
    netns
        .run_here(|| TcpListener::bind((INTERNET, 7001)).map_err(fail))
        .unwrap()
}

/// The LAN reaches the host, and another VM the internet.
fn assert_others_work(lab: &Lab, other: &Guest, what: &str) {
    let netns = Netns::open(&lab.lan.neighbour.path()).unwrap();
    let fail = |e| slicectl::host::Error::io("connect", "to the host", e);
    let connect =
        || TcpStream::connect_timeout(&(HOST, 22).into(), Duration::from_secs(2)).map_err(fail);
    netns
        .run_here(connect)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let probe = lab.probe(other, INTERNET, Kind::Udp(53));
    assert!(
        lab.arrived().contains(&probe),
        "{what}: another VM is cut off"
    );
}

/// Floods from one VM for each variant; the last VM is the other one.
fn table_of_floods(lab: &Lab, name: &str, attach: impl Fn(usize) -> Guest) {
    let _ssh = TcpListener::bind((HOST, 22)).unwrap();
    let _server = server(lab);
    let other = attach(VARIANTS.len() + 1);
    let mut found = Vec::new();
    for (n, (what, variant)) in VARIANTS.iter().enumerate() {
        let guest = attach(n + 1);
        flood(&guest, *variant);
        let count = entries(guest.ip);
        println!("{name}: {what}: {count} entries");
        found.push((what, count, guest));
        assert!(count <= most(), "{name}: {what}: {count} entries");
    }
    assert_others_work(lab, &other, name);
    for (what, count, guest) in &found {
        assert!(
            *count > 0 || LEAVES_NOTHING.contains(what),
            "{name}: {what} made none"
        );
        assert!(entries(guest.ip) <= most());
    }
    let addresses: BTreeSet<Ipv4Addr> = found.iter().map(|(_, _, guest)| guest.ip).collect();
    drop(found);
    lab.harness.ctl("delete hg sandbox --wait=20s");
    let started = Instant::now();
    while !conntrack::list_by_addresses(&addresses).unwrap().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(5), "entries stay");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_isolated_guest_takes_its_share_of_the_hosts_table_whatever_it_sends() {
    lab(|lab| {
        let count = VARIANTS.len() as u32 + 1;
        lab.apply(count, &format!("allow: []\nmax_connections: {LIMIT}"));
        table_of_floods(lab, "isolated", |n| lab.guest(n as u32, Framing::VnetHdr));
    });
}

#[test]
fn a_guest_on_a_bridge_takes_its_share_of_the_hosts_table_whatever_it_sends() {
    lab(|lab| {
        let count = VARIANTS.len() as u32 + 1;
        lab.apply_bridge("sandbox", count, &format!("max_connections: {LIMIT}"));
        table_of_floods(lab, "bridge", |n| lab.port(&format!("sandbox-{n}")));
    });
}

#[test]
fn a_guest_that_forges_its_source_takes_one_share_for_all_sources_that_are_no_vms() {
    lab(|lab| {
        lab.apply_bridge(
            "sandbox",
            2,
            &format!("antispoof: false\nmax_connections: {LIMIT}"),
        );
        let guest = lab.port("sandbox-1");
        let before = conntrack::count().unwrap() as usize;
        for i in 0..2000u16 {
            let [a, b] = i.to_be_bytes();
            let mut packet = udp(&guest, INTERNET, 2000, 53);
            packet.source = Ipv4Addr::new(10, 99, a, b);
            guest.send_ip(&packet);
        }
        let made = conntrack::count().unwrap() as usize - before;
        // These sources are no group's: they share what a VM has that is asked for nothing.
        let share = Limit::default_for(conntrack::max()).max_entries() as usize;
        assert!(made <= share, "{made} entries");
    });
}

#[test]
fn a_lower_limit_holds_at_once_for_a_guest_that_has_more_and_others_keep_theirs() {
    for isolated in [true, false] {
        lab(|lab| {
            let _server = server(lab);
            let apply = |limit: u32| match isolated {
                true => lab.apply(2, &format!("allow: []\nmax_connections: {limit}")),
                false => lab.apply_bridge("sandbox", 2, &format!("max_connections: {limit}")),
            };
            let attach = |n: u32| match isolated {
                true => lab.guest(n, Framing::VnetHdr),
                false => lab.port(&format!("sandbox-{n}")),
            };
            apply(1024);
            let (greedy, modest) = (attach(1), attach(2));
            flood(&greedy, VARIANTS[0].1);
            modest.send_ip(&tcp(&modest, INTERNET, (3000, 7001), SYN));
            std::thread::sleep(Duration::from_millis(50));
            while let Some(frame) = modest.read() {
                confirm(&modest, &frame);
            }
            assert!(entries(greedy.ip) > 200, "{}", entries(greedy.ip));
            apply(LIMIT);
            lab.harness.until("fewer entries", || {
                (entries(greedy.ip) <= most()).then_some(())
            });
            flood(&greedy, VARIANTS[0].1);
            assert!(entries(greedy.ip) <= most(), "{}", entries(greedy.ip));
            assert_eq!(
                entries(modest.ip),
                1,
                "the other VM has kept its connection"
            );
        });
    }
}

#[test]
fn a_guest_that_runs_into_its_limit_is_counted_and_reported_and_its_connections_end_with_a_policy_that_forbids_them()
 {
    lab(|lab| {
        let _server = server(lab);
        lab.apply(1, &format!("allow: []\nmax_connections: {LIMIT}"));
        let guest = lab.guest(1, Framing::VnetHdr);
        flood(&guest, VARIANTS[0].1);
        // Something happens to the VM, and it is looked at.
        let place = lab.harness.place("sandbox-1");
        test_support::kernel::run(&format!("ip link set {} mtu 1400", place.link));
        lab.harness.until("the event", || {
            let output = lab.harness.messages("vm/sandbox-1", "ConnectionLimit");
            output
                .iter()
                .any(|text| text.contains("limit of 64 "))
                .then_some(())
        });
        assert!(entries(guest.ip) > 0);
        lab.apply(
            1,
            &format!("drop: [\"203.0.113.0/24\"]\nmax_connections: {LIMIT}"),
        );
        assert_eq!(
            entries(guest.ip),
            0,
            "the host keeps what the policy forbids"
        );
    });
}

/// The value of the VM's counter of that name.
fn counter(lab: &Lab, vm: &str, name: &str) -> u64 {
    let text = lab.harness.ctl(&format!("vm metrics {vm} -o json"));
    let metrics: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let count = metrics["counters"][format!("connections.{name}")].as_u64();
    count.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// The floods that exceed a limit, each in another way: open connections, new ones a second, other protocols than TCP.
const REFUSED: [&str; 6] = [
    "SYN to a server, then its ACK",
    "SYN to many hosts",
    "UDP to many hosts",
    "ICMP echo",
    "GRE",
    "an unknown protocol",
];

#[test]
fn in_each_mode_a_guest_beyond_its_limit_is_counted_and_reported_and_no_other_is() {
    let floods: Vec<_> = VARIANTS
        .iter()
        .filter(|(what, _)| REFUSED.contains(what))
        .collect();
    assert_eq!(floods.len(), REFUSED.len());
    let count = floods.len() as u32 + 1;
    for mode in [
        "isolated",
        "antispoof: true\n",
        "antispoof: false\n",
        "isolate_ports: true\n",
    ] {
        lab(|lab| {
            let _server = server(lab);
            let isolated = mode == "isolated";
            match isolated {
                true => lab.apply(count, &format!("allow: []\nmax_connections: {LIMIT}")),
                false => {
                    let network = format!("{mode}max_connections: {LIMIT}");
                    lab.apply_bridge("sandbox", count, &network);
                }
            }
            let attach = |n: u32| match isolated {
                true => lab.guest(n, Framing::VnetHdr),
                false => lab.port(&format!("sandbox-{n}")),
            };
            // Within its limit.
            let modest = attach(count);
            for i in 0..8 {
                modest.send_ip(&udp(&modest, far(i), 2000, 53));
            }
            for (n, (what, variant)) in (1..).zip(&floods) {
                let (vm, guest) = (format!("sandbox-{n}"), attach(n));
                let what = format!("{mode}: {what}");
                assert_eq!(counter(lab, &vm, "refused_packets"), 0, "{what}: before");
                flood(&guest, *variant);
                // Something happens to the VM, and it is looked at.
                let link = lab.harness.get(&format!("vm {vm}"))["status"]["network"].clone();
                let link = match isolated {
                    true => lab.harness.place(&vm).link,
                    false => link["tap"].as_str().expect("a TAP").to_owned(),
                };
                test_support::kernel::run(&format!("ip link set {link} mtu 1400"));
                let reported = lab.harness.until(&format!("the event: {what}"), || {
                    let reported = lab.harness.messages(&format!("vm/{vm}"), "ConnectionLimit");
                    reported.first().cloned()
                });
                assert!(reported.contains("limit of 64 "), "{what}: {reported}");
                let entries = lab.harness.until(&format!("entries: {what}"), || {
                    Some(counter(lab, &vm, "entries")).filter(|entries| *entries > 0)
                });
                let refused = counter(lab, &vm, "refused_packets");
                println!("{what}: {reported}; {entries} entries, {refused} refused");
                assert!(entries <= most() as u64, "{what}: {entries}");
                assert!(
                    refused > 0 && refused <= u64::from(FRAMES),
                    "{what}: {refused}"
                );
                assert_eq!(counter(lab, &vm, "limit"), u64::from(LIMIT), "{what}");
            }
            let vm = format!("sandbox-{count}");
            assert_eq!(counter(lab, &vm, "refused_packets"), 0, "{mode}");
            assert_eq!(counter(lab, &vm, "entries"), 8, "{mode}");
            let reported = lab.harness.messages(&format!("vm/{vm}"), "ConnectionLimit");
            assert_eq!(reported, [""; 0], "{mode}");
        });
    }
}
