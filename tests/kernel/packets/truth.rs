//! The truth table of `allow` and `drop`, and what is closed whatever they say.
//! Out of scope: the host's own addresses, random lists.

use std::net::Ipv4Addr;
use std::time::Duration;

use slicectl::api::policy;

use test_support::frames::{ICMP, TCP, UDP};
use test_support::guest_stack::Kind::{Ping, Tcp, Udp};
use test_support::lab::Fate::{Ends, Passes};
use test_support::lab::{INTERNET, LAN, lab};

#[test]
fn without_lists_everything_passes() {
    lab(|lab| {
        let guest = lab.only("allow: []");
        lab.evaluate(
            &guest,
            &[
                ("203.0.113.10", Ping, Passes),
                ("203.0.113.10", Tcp(80), Passes),
                ("8.8.8.8", Udp(53), Passes),
                ("192.168.1.10", Udp(5000), Passes),
                ("192.168.1.10", Tcp(22), Passes),
                ("192.168.1.10", Ping, Passes),
                ("172.17.0.2", Tcp(80), Passes),
            ],
        );
    });
}

#[test]
fn with_drop_alone_the_rest_passes() {
    lab(|lab| {
        let guest = lab.only(
            r#"drop: ["192.168.1.0/24", "8.8.8.8", "1.1.1.1:53/udp", "203.0.113.10:80", "203.0.113.10:1000-1009/tcp", "172.17.0.0/16:7-9", "198.51.100.7/tcp"]"#,
        );
        lab.evaluate(
            &guest,
            &[
                // A network, an address: every protocol.
                ("192.168.1.10", Udp(5000), Ends),
                ("192.168.1.10", Tcp(22), Ends),
                ("192.168.1.10", Ping, Ends),
                ("192.168.222.10", Ping, Passes),
                ("8.8.8.8", Udp(53), Ends),
                ("8.8.8.8", Ping, Ends),
                // A port of one protocol.
                ("1.1.1.1", Udp(53), Ends),
                ("1.1.1.1", Tcp(53), Passes),
                ("1.1.1.1", Udp(54), Passes),
                ("1.1.1.1", Ping, Passes),
                // A port of both.
                ("203.0.113.10", Tcp(80), Ends),
                ("203.0.113.10", Udp(80), Ends),
                ("203.0.113.10", Ping, Passes),
                // A range, both ends.
                ("203.0.113.10", Tcp(999), Passes),
                ("203.0.113.10", Tcp(1000), Ends),
                ("203.0.113.10", Tcp(1009), Ends),
                ("203.0.113.10", Tcp(1010), Passes),
                ("203.0.113.10", Udp(1005), Passes),
                ("172.17.0.2", Udp(6), Passes),
                ("172.17.0.2", Udp(7), Ends),
                ("172.17.0.2", Tcp(9), Ends),
                ("172.17.0.2", Tcp(10), Passes),
            ],
        );
    });
}

#[test]
fn with_allow_alone_the_rest_is_dropped() {
    lab(|lab| {
        let guest = lab.only(
            r#"allow: ["192.168.1.0/24", "8.8.8.8/udp", "203.0.113.10:80", "1.1.1.1:100-200/udp"]"#,
        );
        lab.evaluate(
            &guest,
            &[
                ("192.168.1.10", Udp(5000), Passes),
                ("192.168.1.10", Ping, Passes),
                ("192.168.222.10", Ping, Ends),
                ("8.8.8.8", Udp(1), Passes),
                ("8.8.8.8", Tcp(1), Ends),
                ("8.8.8.8", Ping, Ends),
                ("203.0.113.10", Tcp(80), Passes),
                ("203.0.113.10", Udp(80), Passes),
                ("203.0.113.10", Tcp(81), Ends),
                ("203.0.113.10", Ping, Ends),
                ("1.1.1.1", Udp(99), Ends),
                ("1.1.1.1", Udp(100), Passes),
                ("1.1.1.1", Udp(200), Passes),
                ("1.1.1.1", Udp(201), Ends),
                ("1.1.1.1", Tcp(150), Ends),
                ("172.17.0.2", Tcp(80), Ends),
            ],
        );
    });
}

#[test]
fn with_both_lists_allow_is_evaluated_first_and_what_matches_neither_passes() {
    lab(|lab| {
        let guest = lab.only(
            "allow: [\"192.168.1.10:3128/tcp\", \"8.8.0.0/16\"]\ndrop: [\"192.168.1.0/24\", \"8.8.8.8\", \"1.1.1.1:443\"]",
        );
        lab.evaluate(
            &guest,
            &[
                ("192.168.1.10", Tcp(3128), Passes),
                ("192.168.1.10", Udp(3128), Ends),
                ("192.168.1.10", Tcp(3129), Ends),
                ("192.168.1.10", Ping, Ends),
                // Dropped by its address, allowed before by its network.
                ("8.8.8.8", Udp(53), Passes),
                ("8.8.8.8", Ping, Passes),
                ("1.1.1.1", Tcp(443), Ends),
                // Neither.
                ("1.1.1.1", Tcp(444), Passes),
                ("203.0.113.10", Ping, Passes),
                ("172.17.0.2", Udp(1), Passes),
            ],
        );
    });
}

#[test]
fn a_denied_packet_gets_silence_unless_the_policy_rejects() {
    lab(|lab| {
        let guest = lab.only("drop: [\"192.168.1.0/24\"]");
        for kind in [Tcp(80), Udp(80), Ping] {
            lab.probe(&guest, LAN, kind);
        }
        let output = guest.receive_packet(Duration::from_millis(200), |_| true);
        assert!(output.is_none(), "{output:?}");
        lab.apply(1, "drop: [\"192.168.1.0/24\"]\non_deny: reject");
        let ids = [Tcp(80), Udp(80), Ping].map(|kind| lab.probe(&guest, LAN, kind));
        let reset = guest
            .receive_packet(Duration::from_secs(5), |seen| seen.protocol == TCP)
            .unwrap();
        assert_eq!((reset.source, reset.destination), (LAN, guest.ip));
        assert_eq!(reset.payload[13] & 0x04, 0x04, "RST");
        for _ in 0..2 {
            let output = guest
                .receive_packet(Duration::from_secs(5), |seen| seen.protocol == ICMP)
                .unwrap();
            // Destination unreachable, communication administratively prohibited (RFC 1812).
            assert_eq!(&output.payload[..2], &[3, 13]);
        }
        let arrived = lab.arrived();
        assert!(ids.iter().all(|id| !arrived.contains(id)));
    });
}

#[test]
fn a_rejected_packet_from_a_spoofed_source_gets_no_answer() {
    lab(|lab| {
        let guest = lab.only("drop: [\"192.168.1.0/24\"]\non_deny: reject");
        for (kind, protocol) in [(Tcp(80), TCP), (Udp(80), UDP)] {
            for source in [INTERNET, LAN, Ipv4Addr::new(169, 254, 100, 6)] {
                let mut packet = guest.packet(lab.id(), Ipv4Addr::new(192, 168, 1, 77), kind);
                packet.source = source;
                assert_eq!(packet.protocol, protocol);
                guest.send_ip(&packet);
            }
        }
        // Nothing reaches those whose addresses were borrowed, and nothing comes back.
        let before = lab.net.sniffer.frames().len();
        lab.arrived();
        let after: Vec<_> = lab.net.sniffer.frames().split_off(before);
        let strange = after.iter().filter(|frame| {
            test_support::frames::read(frame).is_some_and(|seen| seen.protocol != UDP)
        });
        assert_eq!(strange.count(), 0, "{after:x?}");
        assert!(
            guest
                .receive_packet(Duration::from_millis(100), |_| true)
                .is_none()
        );
    });
}

#[test]
fn every_reserved_range_is_closed_even_if_everything_is_allowed() {
    lab(|lab| {
        let guest = lab.only("allow: [\"0.0.0.0/0\"]");
        let mut ids = Vec::new();
        for range in policy::reserved() {
            let (first, last) = (u32::from(range.network()), u32::from(range.broadcast()));
            for address in [
                first,
                first + (last - first) / 2,
                last.saturating_sub(1).max(first),
                last,
            ] {
                for kind in [Tcp(80), Udp(53), Ping] {
                    ids.push((address, lab.probe(&guest, Ipv4Addr::from(address), kind)));
                }
            }
        }
        for address in policy::METADATA {
            ids.push((address.into(), lab.probe(&guest, address, Tcp(80))));
        }
        let taken = lab.taken_by_the_host();
        let open = lab.probe(&guest, INTERNET, Tcp(80));
        let arrived = lab.arrived();
        assert!(arrived.contains(&open));
        for (address, id) in ids {
            assert!(
                !arrived.contains(&id),
                "{} arrived",
                Ipv4Addr::from(address)
            );
        }
        assert_eq!(lab.taken_by_the_host(), taken);
    });
}

#[test]
fn allow_metadata_opens_the_metadata_services_and_nothing_else() {
    lab(|lab| {
        let guest = lab.only("allow_metadata: true\ndrop: [\"100.100.100.200\"]");
        lab.evaluate(
            &guest,
            &[
                ("169.254.169.254", Tcp(80), Passes),
                ("168.63.129.16", Tcp(80), Passes),
                ("100.100.100.200", Tcp(80), Ends),
                ("169.254.169.253", Tcp(80), Ends),
                ("169.254.170.2", Tcp(80), Ends),
                ("169.254.0.1", Udp(53), Ends),
                ("127.0.0.1", Tcp(80), Ends),
                ("240.0.0.1", Tcp(80), Ends),
            ],
        );
    });
}
