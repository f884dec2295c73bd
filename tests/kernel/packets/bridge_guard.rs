//! What a guest on a bridge may not send, with and without `antispoof`; `isolate_ports`; both changed under running flows.
//! Out of scope: the program of the filter frame by frame (`tests/kernel/host_bridge`); the time before it is in place (`window`).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use test_support::frames::{self, Ip, UDP, ethernet, tagged};
use test_support::guest_stack::Guest;
use test_support::guest_stack::Kind::Udp;
use test_support::lab::{INTERNET, Lab, lab};

const WEB: &str = "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24";
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
const OTHER_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 137, 200);

fn apply(lab: &Lab, more: &str) {
    lab.apply_bridge("web", 2, &format!("{WEB}\n{more}"));
}

fn uids(lab: &Lab) -> Vec<Value> {
    ["web-1", "web-2"]
        .map(|vm| lab.harness.get(&format!("vm {vm}"))["metadata"]["uid"].clone())
        .to_vec()
}

/// IPv6's router advertisement (RFC 4861, section 4.2) to all nodes.
fn router_advertisement(mac: [u8; 6]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 16, 58, 255];
    packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0]);
    ethernet([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd, &packet)
}

/// What an honest guest never sends.
fn forged(one: &Guest, two: &Guest) -> Vec<(&'static str, Vec<u8>)> {
    let honest = |data: &[u8]| Ip::new(one.ip, two.ip, UDP, frames::udp(5, 6, data));
    let from = |source: Ipv4Addr| {
        let packet = Ip {
            source,
            ..honest(b"another source")
        };
        ethernet(two.mac, one.mac, 0x0800, &packet.bytes())
    };
    let dhcp = Ip::new(
        one.ip,
        Ipv4Addr::BROADCAST,
        UDP,
        frames::udp(67, 68, &[2; 240]),
    );
    let whole = |data: &[u8]| ethernet(two.mac, one.mac, 0x0800, &honest(data).bytes());
    let arp_of_another = frames::who_has(OTHER_MAC, one.ip, two.ip);
    vec![
        (
            "another MAC",
            ethernet(two.mac, OTHER_MAC, 0x0800, &honest(b"a MAC").bytes()),
        ),
        ("another IPv4 source", from(OTHER_IP)),
        ("the gateway's IPv4 source", from(one.gateway)),
        ("the neighbour's IPv4 source", from(two.ip)),
        (
            "another ARP sender address",
            frames::who_has(one.mac, OTHER_IP, two.ip),
        ),
        (
            "the gateway as ARP sender",
            frames::who_has(one.mac, one.gateway, two.ip),
        ),
        (
            "another ARP sender MAC",
            ethernet(frames::BROADCAST, one.mac, 0x0806, &arp_of_another[14..]),
        ),
        (
            "a DHCP server",
            ethernet(frames::BROADCAST, one.mac, 0x0800, &dhcp.bytes()),
        ),
        ("a router advertisement", router_advertisement(one.mac)),
        ("a VLAN tag", tagged(&whole(b"tagged"), 0x8100, 5)),
        (
            "a provider's VLAN tag",
            tagged(&whole(b"tagged"), 0x88a8, 5),
        ),
    ]
}

/// Which of them come to the second guest.
fn pass(lab: &Lab, one: &Guest, two: &Guest) -> Vec<&'static str> {
    let forged = forged(one, two);
    while two.read().is_some() {}
    for (_, frame) in &forged {
        one.send(frame);
    }
    let last = lab.id();
    one.send_ip_to(two.mac, &one.packet(last, two.ip, Udp(53)));
    let mut passed = Vec::new();
    loop {
        // The honest one comes last.
        let frame = two.receive(Duration::from_secs(5), |_| true);
        let frame = frame.expect("the honest one never came");
        if frames::marked(&frame) == Some(last) {
            return passed;
        }
        let known = forged.iter().find(|(_, sent)| *sent == frame);
        passed.extend(known.map(|(name, _)| *name));
    }
}

#[test]
fn forged_frames_do_not_pass_and_do_where_antispoof_is_off_which_is_changed_live() {
    lab(|lab| {
        apply(lab, "");
        let before = uids(lab);
        let (one, two) = (lab.port("web-1"), lab.port("web-2"));
        assert_eq!(pass(lab, &one, &two), [""; 0]);
        apply(lab, "antispoof: false");
        let all: Vec<_> = forged(&one, &two).iter().map(|(name, _)| *name).collect();
        assert_eq!(pass(lab, &one, &two), all);
        apply(lab, "antispoof: true");
        assert_eq!(pass(lab, &one, &two), [""; 0]);
        assert_eq!(uids(lab), before, "the same VMs");
        assert_eq!(lab.harness.messages("", "Drift"), [""; 0]);
    });
}

#[test]
fn isolated_ports_cut_guests_from_each_other_also_by_way_of_the_host_and_from_nothing_else() {
    lab(|lab| {
        apply(lab, "");
        let before = uids(lab);
        let (one, two) = (lab.port("web-1"), lab.port("web-2"));
        let reaches = |from: &Guest, to: &Guest| {
            let id = lab.id();
            from.send_ip_to(to.mac, &from.packet(id, to.ip, Udp(53)));
            to.receive_packet(Duration::from_millis(100), |seen| {
                frames::marked(&seen.payload) == Some(id)
            })
            .is_some()
        };
        // Handed to the host, which routes it back to the bridge.
        let reaches_by_the_host = |from: &Guest, to: &Guest| {
            let id = lab.id();
            from.send_ip_to(from.gateway_mac, &from.packet(id, to.ip, Udp(53)));
            to.receive_packet(Duration::from_millis(100), |seen| {
                frames::marked(&seen.payload) == Some(id)
            })
            .is_some()
        };
        assert!(reaches(&one, &two) && reaches(&two, &one));
        assert!(reaches_by_the_host(&one, &two));
        for policy in [
            "isolate_ports: true",
            "antispoof: false\nisolate_ports: true",
        ] {
            apply(lab, policy);
            assert!(!reaches(&one, &two) && !reaches(&two, &one));
            assert!(!reaches_by_the_host(&one, &two) && !reaches_by_the_host(&two, &one));
        }
        apply(lab, "isolate_ports: true");
        let host = UdpSocket::bind("0.0.0.0:4000").unwrap();
        host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for guest in [&one, &two] {
            assert_eq!(guest.resolve(guest.gateway), Some(guest.gateway_mac));
            lab.probe(guest, guest.gateway, Udp(4000));
            assert_eq!(host.recv_from(&mut [0; 100]).unwrap().1.ip(), guest.ip);
            let id = lab.probe(guest, INTERNET, Udp(53));
            lab.net.sniffer.wait_for(id);
        }
        apply(lab, "isolate_ports: false");
        assert!(reaches(&one, &two) && reaches(&two, &one));
        assert_eq!(uids(lab), before, "the same VMs");
    });
}

/// Numbers of flows begin here.
const FLOW: u32 = 1 << 24;

/// One numbered datagram a millisecond to the internet, whose host sends each one back.
fn ask(guest: &Guest, sent: &AtomicU32, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let number = sent.load(Ordering::Relaxed);
        let mut packet = guest.packet(0, INTERNET, Udp(7000));
        packet.payload = frames::udp(6000, 7000, &frames::mark(FLOW + number));
        guest.send_ip(&packet);
        sent.store(number + 1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn live_changes_of_both_lose_no_packet_of_an_allowed_flow() {
    lab(|lab| {
        apply(lab, "");
        let guest = lab.port("web-1");
        let echo = lab.net.socket((INTERNET, 7000));
        let (sent, stop, deaf) = (
            AtomicU32::new(0),
            AtomicBool::new(false),
            AtomicBool::new(false),
        );
        let mut received = BTreeSet::new();
        std::thread::scope(|scope| {
            let (guest, sent, stop, deaf, received) = (&guest, &sent, &stop, &deaf, &mut received);
            scope.spawn(move || {
                let mut buffer = [0; 100];
                while !deaf.load(Ordering::Relaxed) {
                    if let Ok((length, peer)) = echo.recv_from(&mut buffer) {
                        echo.send_to(&buffer[..length], peer).expect("sent");
                    }
                }
            });
            scope.spawn(move || {
                while !deaf.load(Ordering::Relaxed) {
                    guest.wait(Duration::from_millis(10));
                    while let Some(frame) = guest.read() {
                        received.extend(frames::marked(&frame));
                    }
                }
            });
            scope.spawn(move || ask(guest, sent, stop));
            for more in [
                "antispoof: false",
                "isolate_ports: true",
                "antispoof: false\nisolate_ports: true",
                "antispoof: true",
            ] {
                std::thread::sleep(Duration::from_millis(50));
                apply(lab, more);
            }
            std::thread::sleep(Duration::from_millis(50));
            stop.store(true, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(200));
            deaf.store(true, Ordering::Relaxed);
            // Wakes the echo.
            lab.send_to(INTERNET, 7000, 1);
        });
        let sent = sent.into_inner();
        let lost: Vec<u32> = (0..sent)
            .filter(|number| !received.contains(&(FLOW + number)))
            .collect();
        assert!(sent > 200, "only {sent}");
        assert_eq!(lost, [0; 0], "of {sent}");
    });
}
