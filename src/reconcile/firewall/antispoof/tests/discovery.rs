//! Neighbour discovery, and messages of routers, queriers and servers: each message by itself.
//! Out of scope: random frames.

use super::oracle::{LINK_LOCAL, discovery, ipv6_from, mac_option};
use super::*;

const GLOBAL: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xfe, 0, 0, 7];
const PRIVATE: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8];
const ROUTER: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const OTHERS: [u8; 6] = [2, 0, 0, 0, 0, 8];

#[test]
fn neighbour_discovery_passes_about_the_vms_own_addresses_and_mac_only() {
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let option = |kind| mac_option(kind, oracle::MAC);
    let two = [option(1), option(1)].concat();
    let router = {
        let mut message = discovery(136, LINK_LOCAL, &[]);
        message[4] = 0xe0;
        message
    };
    let cases: Vec<(&str, [u8; 16], Vec<u8>, bool)> = vec![
        (
            "solicits",
            LINK_LOCAL,
            discovery(135, ROUTER, &option(1)),
            true,
        ),
        (
            "solicits, no option",
            LINK_LOCAL,
            discovery(135, ROUTER, &[]),
            true,
        ),
        (
            "solicits from a prefix",
            GLOBAL,
            discovery(135, ROUTER, &option(1)),
            true,
        ),
        (
            "advertises",
            LINK_LOCAL,
            discovery(136, LINK_LOCAL, &option(2)),
            true,
        ),
        (
            "advertises, no option",
            LINK_LOCAL,
            discovery(136, LINK_LOCAL, &[]),
            true,
        ),
        (
            "advertises from a prefix",
            GLOBAL,
            discovery(136, GLOBAL, &option(2)),
            true,
        ),
        ("detects", [0; 16], discovery(135, LINK_LOCAL, &[]), true),
        (
            "detects, nonce",
            [0; 16],
            discovery(135, GLOBAL, &nonce),
            true,
        ),
        (
            "advertises a router's address",
            LINK_LOCAL,
            discovery(136, ROUTER, &option(2)),
            false,
        ),
        (
            "advertises another address",
            LINK_LOCAL,
            discovery(136, PRIVATE, &option(2)),
            false,
        ),
        (
            "another host advertises",
            ROUTER,
            discovery(136, LINK_LOCAL, &option(2)),
            false,
        ),
        (
            "advertises from the unspecified address",
            [0; 16],
            discovery(136, LINK_LOCAL, &option(2)),
            false,
        ),
        ("advertises with the router flag", LINK_LOCAL, router, false),
        (
            "a router solicits",
            ROUTER,
            discovery(135, LINK_LOCAL, &option(1)),
            false,
        ),
        (
            "an unknown source solicits",
            PRIVATE,
            discovery(135, LINK_LOCAL, &option(1)),
            false,
        ),
        (
            "solicits with another MAC",
            LINK_LOCAL,
            discovery(135, ROUTER, &mac_option(1, OTHERS)),
            false,
        ),
        (
            "advertises another MAC",
            LINK_LOCAL,
            discovery(136, LINK_LOCAL, &mac_option(2, OTHERS)),
            false,
        ),
        (
            "the wrong option",
            LINK_LOCAL,
            discovery(135, ROUTER, &option(2)),
            false,
        ),
        (
            "the wrong option",
            LINK_LOCAL,
            discovery(136, LINK_LOCAL, &option(1)),
            false,
        ),
        (
            "two options",
            LINK_LOCAL,
            discovery(135, ROUTER, &two),
            false,
        ),
        (
            "detects with a MAC",
            [0; 16],
            discovery(135, LINK_LOCAL, &option(1)),
            false,
        ),
        (
            "detects for another",
            [0; 16],
            discovery(135, ROUTER, &[]),
            false,
        ),
        (
            "solicits from a multicast address",
            [0xff; 16],
            discovery(135, ROUTER, &[]),
            false,
        ),
    ];
    for (name, source, message, expected) in &cases {
        let frame = ipv6_from(*source, 58, message);
        assert_eq!(passes(&frame), *expected, "{name}");
        for length in 54..frame.len() {
            assert!(!passes(&frame[..length]), "{name}, {length} bytes");
        }
    }
    // A length field that hides an option after the message.
    let mut short = ipv6_frame(58, &discovery(136, LINK_LOCAL, &mac_option(2, OTHERS)));
    for length in [0, 23, 25, 31, 33, 40] {
        short[19] = length;
        assert!(!passes(&short), "{length}");
    }
}

#[test]
fn messages_of_routers_queriers_and_servers_are_dropped_in_both_families() {
    for kind in 0..=255 {
        let own = ipv6_frame(58, &discovery(kind, LINK_LOCAL, &[]));
        let expected = matches!(kind, 1..=4 | 128 | 129 | 135 | 136);
        assert_eq!(passes(&own), expected, "ICMPv6 {kind}");
        let report = [58, 0, 5, 2, 0, 0, 1, 0, kind, 0, 0, 0];
        let member = matches!(kind, 131 | 132 | 143);
        assert_eq!(passes(&ipv6_frame(0, &report)), member, "MLD {kind}");
        assert_eq!(
            passes(&ipv6_from([0; 16], 0, &report)),
            member,
            "MLD {kind}"
        );
        assert!(!passes(&ipv6_from(ROUTER, 0, &report)), "MLD {kind}");
        assert!(!passes(&ipv6_from(GLOBAL, 0, &report)), "MLD {kind}");
        let icmp = ipv4_frame(1, 0, 0, &[kind, 0, 0, 0]);
        assert_eq!(passes(&icmp), !matches!(kind, 5 | 9), "ICMP {kind}");
        let igmp = ipv4_frame(2, 0, 4, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        let member = matches!(kind, 0x12 | 0x16 | 0x17 | 0x22);
        assert_eq!(passes(&igmp), member, "IGMP {kind}");
    }
    assert!(!passes(&ipv4_frame(103, 0, 0, &[0x20, 0, 0, 0])), "PIM");
    let answer = [3, 232, 0, 68, 0, 8, 0, 0];
    assert!(
        !passes(&ipv4_frame(17, 0, 0, &answer)),
        "DHCP from any port"
    );
    let answer = [3, 232, 2, 34, 0, 8, 0, 0];
    assert!(!passes(&ipv6_frame(17, &answer)), "DHCPv6 from any port");
}

#[test]
fn frames_to_the_group_addresses_of_bridges_are_dropped() {
    for last in 0..=255 {
        let mut frame = ipv4_frame(6, 0, 0, &[0; 20]);
        frame[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, last]);
        assert_eq!(passes(&frame), last >= 16, "{last}");
    }
}

/// Whether [`program_unmanaged`] passes a frame.
fn unmanaged(bytes: &[u8]) -> bool {
    let frame = Frame {
        bytes: bytes.to_vec(),
        tag: 1,
    };
    let answer = interpret(&program_unmanaged(None), &frame);
    assert_ne!(answer, ACCEPT, "it read beyond the end of {frame:?}");
    answer == PASS
}

#[test]
fn on_an_unmanaged_bridge_a_guest_without_antispoof_cannot_configure_others() {
    let mut forged = ipv4_frame(17, 0, 0, &udp_from(53));
    forged[6..12].copy_from_slice(&OTHERS);
    forged[26..30].copy_from_slice(&[192, 168, 137, 1]);
    assert!(unmanaged(&forged), "another's addresses");
    assert!(unmanaged(&arp_frame(
        2,
        OTHERS,
        Ipv4Addr::new(192, 168, 137, 1)
    )));
    assert!(unmanaged(&ipv6_from(
        ROUTER,
        58,
        &discovery(136, ROUTER, &[])
    )));
    assert!(unmanaged(&ipv6_from(ROUTER, 6, &[0; 20])));
    assert!(unmanaged(&ethernet_frame(0x88cc, &[0; 40])));
    for last in [0, 3, 0xe, 0x21] {
        let mut frame = ethernet_frame(38, &[0x42; 38]);
        frame[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, last]);
        assert!(!unmanaged(&frame), "{last}");
    }
    let hidden = [58, 0, 5, 2, 0, 0, 1, 0, 134, 0, 0, 0];
    for next in EXTENSIONS.into_iter().chain([0]) {
        assert!(
            !unmanaged(&ipv6_from(ROUTER, next as u8, &hidden)),
            "{next}"
        );
    }
    for kind in [130, 134, 137, 138, 151, 153] {
        assert!(
            !unmanaged(&ipv6_from(ROUTER, 58, &[kind, 0, 0, 0])),
            "{kind}"
        );
    }
    for tag in [0x8100, 0x88a8, 0x9100] {
        let inner = ipv6_from(ROUTER, 58, &[134, 0, 0, 0]);
        let tagged = [&[0, 0][..], &inner[12..]].concat();
        assert!(!unmanaged(&ethernet_frame(tag, &tagged)), "{tag:#x}");
    }
    // After a second tag IPv4 passes, except packets that configure others.
    let behind = |inner: &[u8]| ethernet_frame(0x8100, &[&[0, 0][..], &inner[12..]].concat());
    assert!(unmanaged(&behind(&ipv4_frame(17, 0, 0, &udp_from(53)))));
    assert!(!unmanaged(&behind(&ipv4_frame(17, 0, 8, &udp_from(67)))));
    assert!(!unmanaged(&behind(&ipv4_frame(1, 0, 0, &[5, 0, 0, 0]))));
    assert!(!unmanaged(&behind(&behind(&ipv4_frame(
        17,
        0,
        0,
        &udp_from(53)
    )))));
    for port in [67u8, 68] {
        let udp = match port {
            67 => vec![0, 67, 0, 1, 0, 8, 0, 0],
            _ => vec![0, 1, 0, 68, 0, 8, 0, 0],
        };
        assert!(!unmanaged(&ipv4_frame(17, 0, 8, &udp)), "{port}");
    }
    for kind in [5, 9] {
        assert!(!unmanaged(&ipv4_frame(1, 0, 0, &[kind, 0, 0, 0])), "{kind}");
    }
    assert!(!unmanaged(&ipv4_frame(
        2,
        0,
        4,
        &[0x11, 0, 0, 0, 0, 0, 0, 0]
    )));
}
