//! Frames that no honest guest sends.
//! Out of scope: frames that the policy denies.

use std::net::Ipv4Addr;
use std::time::Duration;

use test_support::frames::{self, ICMP, Ip, UDP};
use test_support::guest_stack::Guest;
use test_support::guest_stack::Kind::{Ping, Tcp, Udp};
use test_support::lab::{HOST, INTERNET, LAN, Lab, UPLINK, lab};

/// No neighbour has seen any IPv4 packet but the lab's own, and the host has taken none.
#[track_caller]
fn assert_nothing_got_out(lab: &Lab) {
    lab.arrived();
    for place in [&lab.lan, &lab.net, &lab.container] {
        for frame in place.sniffer.frames() {
            if let Some(seen) = frames::read(&frame) {
                // The lab's own datagrams go to port 9.
                let own = seen.protocol == UDP && seen.payload.get(2..4) == Some(&[0, 9]);
                assert!(own, "{seen:?} in {}", place.neighbour.name);
            }
            let ipv4_or_arp = matches!(frame.get(12..14), Some([8, 0] | [8, 6]));
            assert!(
                ipv4_or_arp || frames::marked(&frame).is_none(),
                "{frame:x?}"
            );
        }
    }
    assert_eq!(lab.taken_by_the_host(), 0);
}

fn spoofed(lab: &Lab, guest: &Guest, source: Ipv4Addr, to: Ipv4Addr) -> Vec<Ip> {
    let mut packets: Vec<Ip> = [Tcp(80), Udp(80), Ping]
        .map(|kind| guest.packet(lab.id(), to, kind))
        .to_vec();
    packets.iter_mut().for_each(|packet| packet.source = source);
    packets
}

#[test]
fn a_spoofed_source_gets_nowhere_not_even_as_an_answer_to_whom_it_belongs() {
    lab(|lab| {
        let guest = lab.only("allow: []");
        let sources = [
            Ipv4Addr::new(169, 254, 100, 6),
            Ipv4Addr::new(169, 254, 100, 1),
            Ipv4Addr::new(169, 254, 100, 3),
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::LOCALHOST,
            LAN,
            HOST,
            UPLINK,
            INTERNET,
        ];
        for source in sources {
            for to in [LAN, INTERNET, guest.gateway, Ipv4Addr::new(192, 168, 1, 77)] {
                for mut packet in spoofed(lab, &guest, source, to) {
                    guest.send_ip(&packet);
                    // These would be answered with "time exceeded" on the way.
                    for ttl in [1, 2] {
                        packet.ttl = ttl;
                        guest.send_ip(&packet);
                    }
                }
            }
        }
        assert_nothing_got_out(lab);
    });
}

#[test]
fn a_spoofed_source_is_not_even_answered_inside_the_vms_namespace() {
    lab(|lab| {
        let guest = lab.only("allow: []");
        let netns = lab.harness.place("sandbox-1").netns;
        let sent = || {
            let text = test_support::kernel::run(&format!(
                "nsenter --net={netns} cat /sys/class/net/lo/operstate /proc/net/dev | grep up0: | tr -s ' ' | cut -d' ' -f11"
            ));
            text.trim().parse::<u64>().unwrap()
        };
        let before = sent();
        for to in [guest.gateway, INTERNET] {
            for mut packet in spoofed(lab, &guest, LAN, to) {
                packet.ttl = 1;
                guest.send_ip(&packet);
            }
        }
        assert_nothing_got_out(lab);
        assert_eq!(
            sent(),
            before,
            "the namespace has answered to the spoofed source"
        );
    });
}

#[test]
fn a_spoofed_mac_gets_nowhere() {
    lab(|lab| {
        let guest = lab.only("allow: []");
        for mac in [[2, 0, 0, 0, 0, 1], guest.gateway_mac] {
            for to in [LAN, INTERNET, guest.gateway] {
                for kind in [Tcp(80), Udp(80), Ping] {
                    let packet = guest.packet(lab.id(), to, kind).bytes();
                    guest.send(&frames::ethernet(guest.gateway_mac, mac, 0x0800, &packet));
                }
            }
        }
        assert_nothing_got_out(lab);
        let output = guest.receive_packet(Duration::from_millis(50), |_| true);
        assert!(output.is_none(), "{output:?}");
    });
}

#[test]
fn ipv6_gets_nowhere() {
    lab(|lab| {
        // Neighbours that would take it.
        test_support::kernel::run(
            "sysctl -qw net.ipv6.conf.all.forwarding=1
             ip -6 addr add fd01:1::1/64 dev lan0 nodad
             ip -6 route add default via fe80::1 dev wan0",
        );
        let guest = lab.only("allow: []");
        let host = [0xfd, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let global = [
            0x20, 1, 0x48, 0x60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x88,
        ];
        for to in [host, all_nodes, global] {
            for mac in [
                guest.gateway_mac,
                frames::BROADCAST,
                [0x33, 0x33, 0, 0, 0, 1],
            ] {
                guest.send(&frames::udp6(mac, guest.mac, to, &frames::mark(lab.id())));
            }
        }
        assert_nothing_got_out(lab);
        let output = guest.receive(Duration::from_millis(50), |frame| {
            frame.get(12..14) == Some(&[0x86, 0xdd])
        });
        assert!(output.is_none(), "{output:x?}");
    });
}

#[test]
fn vlan_frames_get_nowhere() {
    lab(|lab| {
        let guest = lab.only("drop: [\"192.168.1.0/24\"]");
        for kind in [0x8100, 0x88a8] {
            for vlan in [1, 100, 4094] {
                for to in [LAN, INTERNET] {
                    let packet = guest.packet(lab.id(), to, Udp(80)).bytes();
                    let frame = frames::ethernet(guest.gateway_mac, guest.mac, 0x0800, &packet);
                    guest.send(&frames::tagged(&frame, kind, vlan));
                    guest.send(&frames::tagged(
                        &frames::tagged(&frame, 0x8100, vlan),
                        kind,
                        vlan,
                    ));
                }
            }
        }
        // VLAN 0 is a priority and no VLAN (IEEE 802.1Q): judged like any other.
        let packet = guest.packet(lab.id(), LAN, Udp(80)).bytes();
        let frame = frames::ethernet(guest.gateway_mac, guest.mac, 0x0800, &packet);
        guest.send(&frames::tagged(&frame, 0x8100, 0));
        assert_nothing_got_out(lab);
    });
}

#[test]
fn broadcast_and_multicast_get_nowhere() {
    lab(|lab| {
        let guest = lab.only("allow: [\"0.0.0.0/0\"]");
        let destinations = [
            "255.255.255.255",
            "224.0.0.1",
            "224.0.0.251",
            "239.1.2.3",
            "192.168.1.255",
            "203.0.113.255",
            "169.254.100.3",
            "192.168.1.0",
        ];
        for to in destinations {
            let to: Ipv4Addr = to.parse().unwrap();
            for kind in [Udp(5353), Ping] {
                let packet = guest.packet(lab.id(), to, kind).bytes();
                for mac in [
                    guest.gateway_mac,
                    frames::BROADCAST,
                    [1, 0, 0x5e, 0, 0, 0xfb],
                ] {
                    guest.send(&frames::ethernet(mac, guest.mac, 0x0800, &packet));
                }
            }
        }
        // An honest destination in a frame to everybody is not forwarded either (RFC 1812, section 5.3.4).
        let packet = guest.packet(lab.id(), LAN, Udp(80)).bytes();
        guest.send(&frames::ethernet(
            frames::BROADCAST,
            guest.mac,
            0x0800,
            &packet,
        ));
        assert_nothing_got_out(lab);
    });
}

#[test]
fn source_routed_packets_get_nowhere() {
    lab(|lab| {
        let guest = lab.only("drop: [\"192.168.1.0/24\"]");
        // Loose and strict source route (RFC 791): the last hop is the one that is dropped.
        for option in [131, 137] {
            let octets = LAN.octets();
            for to in [INTERNET, guest.gateway] {
                let mut packet = guest.packet(lab.id(), to, Udp(80));
                packet.options = vec![option, 7, 4, octets[0], octets[1], octets[2], octets[3], 0];
                guest.send_ip(&packet);
            }
        }
        assert_nothing_got_out(lab);
    });
}

#[test]
fn fragments_are_evaluated_by_the_packet_that_they_are_part_of() {
    lab(|lab| {
        let guest = lab.only("drop: [\"203.0.113.10:53\"]");
        let fragments = |port: u16, id: u32| {
            let whole = frames::udp(3000, port, &frames::mark(id));
            let mut first = Ip::new(guest.ip, INTERNET, UDP, whole[..8].to_vec());
            first.fragment = 0x2000;
            first.id = id as u16;
            let mut second = first.clone();
            second.payload = whole[8..].to_vec();
            second.fragment = 1;
            (first, second)
        };
        // The ports stand in the first alone; in either order, and the second alone.
        let (first, second) = fragments(53, lab.id());
        guest.send_ip(&first);
        guest.send_ip(&second);
        let (first, second) = fragments(53, lab.id());
        guest.send_ip(&second);
        guest.send_ip(&first);
        guest.send_ip(&fragments(54, lab.id()).1);
        // A second one that would write other ports over the first's.
        let (first, mut second) = fragments(54, lab.id());
        guest.send_ip(&first);
        second.fragment = 0;
        second.payload = frames::udp(3000, 53, &frames::mark(lab.id()));
        guest.send_ip(&second);
        // Of a spoofed source.
        let (mut first, mut second) = fragments(54, lab.id());
        (first.source, second.source) = (LAN, LAN);
        guest.send_ip(&first);
        guest.send_ip(&second);
        assert_nothing_got_out(lab);
        let id = lab.id();
        let (first, second) = fragments(54, id);
        guest.send_ip(&first);
        guest.send_ip(&second);
        lab.net.sniffer.wait_for(id);
    });
}

#[test]
fn icmp_that_would_change_a_route_gets_nowhere() {
    lab(|lab| {
        let guest = lab.only("drop: [\"192.168.1.0/24\"]");
        // Redirect for the host: go through me; it quotes a packet that the namespace might have sent.
        let quoted = Ip::new(guest.gateway, guest.ip, ICMP, frames::echo(1, &[0; 8])).bytes();
        let mut message = vec![5, 1, 0, 0];
        message.extend(guest.ip.octets());
        message.extend(&quoted[..28]);
        for to in [guest.gateway, LAN, HOST] {
            guest.send_ip(&Ip::new(guest.ip, to, ICMP, message.clone()));
        }
        assert_nothing_got_out(lab);
        let open = lab.probe(&guest, INTERNET, Udp(80));
        lab.net.sniffer.wait_for(open);
    });
}
