//! The part of the program that isolates ports.
//! Out of scope: that the kernel offers no way around it, see `tests/kernel/packets/bridge_apart.rs`.

use super::*;
use crate::host::tc::LONGEST;

const BRIDGE: Mac = Mac([2, 0, 0, 0, 0, 0xbb]);
const PORT: Mac = Mac([0xfe, 0xff, 0, 0, 0, 7]);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 137, 9);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 137, 1);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 137, 5);
const BEYOND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5);

fn apart() -> PortIsolation {
    PortIsolation {
        bridge: BRIDGE,
        port: PORT,
        subnet: "192.168.137.0/24".parse().unwrap(),
        gateway: GATEWAY,
        host_addresses: [HOST.into(), HOST6.into()].into(),
    }
}

fn both(apart: &PortIsolation) -> [Vec<Insn>; 3] {
    [
        program(MAC, IP, Some(apart)),
        program_isolated_port(apart),
        program_unmanaged(Some(apart)),
    ]
}

fn ipv4(dst: Ipv4Addr) -> Vec<u8> {
    let mut frame = ipv4_frame(1, 0, 0, &[8, 0, 0, 0, 0, 0, 0, 0]);
    frame[30..34].copy_from_slice(&dst.octets());
    frame
}

fn ipv6(next: u8, dst: Ipv6Addr) -> Vec<u8> {
    let mut frame = ipv6_frame(next, &[128, 0, 0, 0, 0, 0, 0, 0]);
    frame[38..54].copy_from_slice(&dst.octets());
    frame
}

fn to(mac: Mac, mut bytes: Vec<u8>) -> Frame {
    bytes[..6].copy_from_slice(&mac.0);
    Frame { bytes, tag: 0 }
}

#[test]
fn an_isolated_port_reaches_the_host_and_other_networks_but_no_neighbour_by_either_mac() {
    let neighbours_mac = Mac([2, 0, 0, 0, 0, 9]);
    for program in both(&apart()) {
        let evaluate = |mac, frame| interpret(&program, &to(mac, frame));
        for mac in [BRIDGE, PORT] {
            assert_eq!(evaluate(mac, ipv4(NEIGHBOUR)), DROP);
            assert_eq!(evaluate(mac, ipv4([192, 168, 137, 255].into())), DROP);
            for reached in [GATEWAY, HOST, BEYOND] {
                assert_eq!(evaluate(mac, ipv4(reached)), PASS, "{reached}");
            }
            assert_eq!(evaluate(mac, ipv6(58, HOST6)), PASS);
            for bit in 0..128 {
                let other = Ipv6Addr::from_bits(HOST6.to_bits() ^ 1 << bit);
                assert_eq!(evaluate(mac, ipv6(58, other)), DROP, "{other}");
            }
            assert_eq!(evaluate(mac, arp_frame(1, oracle::MAC, IP)), PASS);
        }
        let to_neighbour = evaluate(neighbours_mac, ipv4(NEIGHBOUR));
        assert_eq!(to_neighbour, PASS, "the bridge decides");
    }
}

#[test]
fn frames_that_could_hide_a_bypass_do_not_pass_to_the_host() {
    for program in both(&apart()) {
        let evaluate = |frame| interpret(&program, &to(BRIDGE, frame));
        for tag in [0x8100, 0x88a8, 0x9100, 0x8847] {
            let hidden = [&[0, 0, 8, 0], &ipv4(GATEWAY)[14..]].concat();
            assert_eq!(evaluate(ethernet_frame(tag, &hidden)), DROP, "{tag:#x}");
        }
        let mut routed = ipv4_frame(1, 0, 8, &[8, 0, 0, 0]);
        routed[30..34].copy_from_slice(&GATEWAY.octets());
        assert_eq!(evaluate(routed), DROP, "options");
        for next in EXTENSIONS.into_iter().chain([0]) {
            assert_eq!(evaluate(ipv6(next as u8, HOST6)), DROP, "{next}");
        }
        for whole in [ipv4(GATEWAY), ipv6(58, HOST6)] {
            for length in 15..whole.len() {
                let answer = evaluate(whole[..length].to_vec());
                assert_ne!(answer, ACCEPT, "it read beyond the end");
            }
        }
    }
}

#[test]
fn a_program_for_many_host_addresses_has_a_bounded_length_and_drops_the_addresses_beyond() {
    let many4 = (2..=250).map(|last| IpAddr::from([192, 168, 137, last]));
    let many6 = (1..=200).map(|last| IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)));
    let apart = PortIsolation {
        host_addresses: many4.chain(many6).collect(),
        ..apart()
    };
    for program in both(&apart) {
        assert!(program.len() <= LONGEST, "{} instructions", program.len());
        let evaluate = |frame| interpret(&program, &to(BRIDGE, frame));
        assert_eq!(evaluate(ipv4([192, 168, 137, 2].into())), PASS);
        assert_eq!(evaluate(ipv4([192, 168, 137, 250].into())), DROP);
    }
}

proptest! {
    #[test]
    fn isolation_changes_nothing_for_frames_that_are_not_for_the_host(frame in frames()) {
        prop_assume!([BRIDGE, PORT].iter().all(|mac| !frame.bytes.starts_with(&mac.0)));
        let with = interpret(&program(MAC, IP, Some(&apart())), &frame);
        prop_assert_eq!(with, interpret(&program(MAC, IP, None), &frame));
        prop_assert_eq!(interpret(&program_isolated_port(&apart()), &frame), PASS);
    }

    #[test]
    fn isolation_passes_no_additional_frame(frame in frames(), host in any::<bool>()) {
        prop_assume!(frame.bytes.len() >= 14);
        let frame = Frame { tag: frame.tag, ..to(if host { BRIDGE } else { PORT }, frame.bytes) };
        let with = interpret(&program(MAC, IP, Some(&apart())), &frame);
        prop_assert!(with == DROP || with == interpret(&program(MAC, IP, None), &frame));
        prop_assert_ne!(interpret(&program_isolated_port(&apart()), &frame), ACCEPT);
    }
}
