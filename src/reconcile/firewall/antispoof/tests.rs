//! Compares the program, run by an interpreter of classic BPF, with the same rules in plain Rust.
//! Out of scope: the kernel's result, see `tests/kernel/host_bridge.rs`.

use proptest::prelude::*;
use proptest::test_runner::Config;

use super::*;
use crate::host::tc::{ACCEPT, DROP, PASS};

mod apart;
mod discovery;

use test_support::antispoof::{
    self as oracle, arp_frame, ethernet_frame, ipv4_frame, ipv6_frame, passable, seeds, udp_from,
};

const MAC: Mac = Mac(oracle::MAC);
const IP: Ipv4Addr = oracle::IP;

/// A frame, and whether its metadata has a VLAN tag.
#[derive(Clone, Debug)]
struct Frame {
    bytes: Vec<u8>,
    tag: u32,
}

/// Interprets a program as the kernel does (`net/core/filter.c`).
fn interpret(program: &[Insn], frame: &Frame) -> u32 {
    let length = frame.bytes.len() as u32;
    let load = |at: u32, size: usize| -> Option<u32> {
        let at = at as usize;
        let bytes = frame.bytes.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().fold(0, |sum, b| sum << 8 | u32::from(*b)))
    };
    let (mut a, mut x, mut at) = (0u32, 0u32, 0);
    loop {
        let Insn { code, jt, jf, k } = program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { jt } else { jf });
        let loaded = match code {
            op::LOAD_WORD if k == op::VLAN_TAG_PRESENT => Some(frame.tag),
            op::LOAD_WORD => load(k, 4),
            op::LOAD_HALF => load(k, 2),
            op::LOAD_BYTE => load(k, 1),
            op::LOAD_HALF_AT_X => load(x + k, 2),
            op::LOAD_LENGTH => Some(length),
            op::HEADER_LENGTH_TO_X => load(k, 1).map(|byte| (byte & 15) * 4),
            op::LENGTH_TO_X => Some(length),
            op::X_TO_A => Some(x),
            op::ADD => Some(a.wrapping_add(k)),
            op::AND => Some(a & k),
            op::EQUAL => {
                at += jump(a == k);
                continue;
            }
            op::AT_LEAST => {
                at += jump(a >= k);
                continue;
            }
            op::HAS_BITS => {
                at += jump(a & k != 0);
                continue;
            }
            op::MORE_THAN_X => {
                at += jump(a > x);
                continue;
            }
            op::RETURN => return k,
            _ => panic!("instruction {code:#x}"),
        };
        // A load beyond the end.
        let Some(value) = loaded else { return 0 };
        match code {
            op::LENGTH_TO_X | op::HEADER_LENGTH_TO_X => x = value,
            _ => a = value,
        }
    }
}

fn passes(bytes: &[u8]) -> bool {
    let frame = Frame {
        bytes: bytes.to_vec(),
        tag: 0,
    };
    evaluate(&frame) == PASS
}

fn evaluate(frame: &Frame) -> u32 {
    let answer = interpret(&program(MAC, IP, None), frame);
    assert_ne!(answer, ACCEPT, "it read beyond the end of {frame:?}");
    let expected = if frame.tag == 0 && passable(&frame.bytes) == Some(true) {
        PASS
    } else {
        DROP
    };
    assert_eq!(answer, expected, "{frame:02x?}");
    answer
}

/// Bytes with a meaning in some field.
fn meaningful_byte() -> impl Strategy<Value = u8> {
    const TOLD: [u8; 37] = [
        0, 1, 2, 4, 5, 6, 7, 8, 9, 14, 16, 17, 24, 32, 43, 44, 51, 58, 60, 67, 68, 131, 133, 134,
        135, 136, 137, 143, 0x44, 0x45, 0x46, 0x4f, 0x50, 0x60, 0x81, 0x86, 0x88,
    ];
    prop_oneof![any::<u8>(), proptest::sample::select(&TOLD[..])]
}

fn frames() -> impl Strategy<Value = Frame> {
    let seed = proptest::sample::select(seeds());
    let changes =
        proptest::collection::vec((any::<prop::sample::Index>(), meaningful_byte()), 0..4);
    // Few of these: all tagged frames are dropped at once.
    let tag = prop_oneof![15 => Just(0u32), 1 => Just(1u32)];
    let cut = prop_oneof![3 => Just(usize::MAX), 1 => 0usize..80];
    let mutated = (seed, changes, cut, tag).prop_map(|(mut bytes, changes, cut, tag)| {
        for (place, byte) in changes {
            // The destination and the VM's own address are changed rarely.
            let at = place.index(bytes.len());
            if at >= 12 || byte % 8 == 0 {
                bytes[at] = byte;
            }
        }
        bytes.truncate(cut);
        Frame { bytes, tag }
    });
    let random = proptest::collection::vec(any::<u8>(), 0..100);
    let random = random.prop_map(|bytes| Frame { bytes, tag: 0 });
    prop_oneof![9 => mutated, 1 => random]
}

proptest! {
    #![proptest_config(Config { cases: 30_000, failure_persistence: None, ..Config::default() })]

    #[test]
    fn the_program_and_the_oracle_agree_on_every_frame(frame in frames()) {
        evaluate(&frame);
    }
}

#[test]
fn the_frames_of_the_property_test_pass_and_are_dropped_about_equally_often() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut passed = 0;
    for _ in 0..2000 {
        let frame = frames().new_tree(&mut runner).unwrap().current();
        passed += usize::from(evaluate(&frame) == PASS);
    }
    assert!((400..1600).contains(&passed), "{passed} of 2000 passed");
}

#[test]
fn a_truncated_frame_never_passes_because_it_is_short() {
    for seed in seeds() {
        for length in 0..seed.len() {
            let cut = Frame {
                bytes: seed[..length].to_vec(),
                tag: 0,
            };
            evaluate(&cut);
        }
    }
    for length in 0..54 {
        assert!(!passes(&ipv6_frame(6, &[0; 20])[..length]), "{length}");
    }
    for length in 0..42 {
        assert!(
            !passes(&arp_frame(1, oracle::MAC, IP)[..length]),
            "{length}"
        );
    }
}

#[test]
fn frames_with_the_guests_own_addresses_pass() {
    assert!(passes(&ipv4_frame(6, 0, 0, &[0; 20])));
    assert!(passes(&ipv4_frame(1, 0, 0, &[8, 0, 0, 0])));
    assert!(passes(&ipv4_frame(17, 0, 0, &udp_from(53))));
    // To a server's port, not from it.
    assert!(passes(&ipv4_frame(17, 0, 0, &[0, 68, 0, 67, 0, 8, 0, 0])));
    assert!(passes(&ipv4_frame(2, 0, 4, &[0x22, 0, 0, 0, 0, 0, 0, 0])));
    assert!(passes(&arp_frame(1, oracle::MAC, IP)));
    assert!(passes(&arp_frame(2, oracle::MAC, IP)));
    assert!(passes(&arp_frame(1, oracle::MAC, Ipv4Addr::UNSPECIFIED)));
    assert!(passes(&ipv6_frame(58, &[128, 0, 0, 0])));
    assert!(passes(&ipv6_frame(58, &[133, 0, 0, 0, 0, 0, 0, 0])));
    assert!(passes(&ipv6_frame(
        0,
        &[58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0]
    )));
}

#[test]
fn frames_with_other_addresses_are_dropped() {
    let honest = ipv4_frame(6, 0, 0, &[0; 20]);
    for at in (6..12).chain(26..30) {
        let mut frame = honest.clone();
        frame[at] ^= 1;
        assert!(!passes(&frame), "byte {at}");
    }
    let mut client = ipv4_frame(17, 0, 0, &udp_from(68));
    client[26..30].fill(0);
    assert!(!passes(&client), "a DHCP client");
    assert!(!passes(&arp_frame(1, [2, 0, 0, 0, 0, 8], IP)));
    assert!(!passes(&arp_frame(
        2,
        oracle::MAC,
        Ipv4Addr::new(192, 168, 137, 1)
    )));
    assert!(!passes(&arp_frame(3, oracle::MAC, IP)), "reverse ARP");
}

#[test]
fn a_dhcp_server_is_detected_behind_ip_options_and_fragments() {
    for options in (0..=40).step_by(4) {
        assert!(!passes(&ipv4_frame(17, 0, options, &udp_from(67))));
        assert!(passes(&ipv4_frame(17, 0, options, &udp_from(69))));
        assert!(!passes(&ipv4_frame(17, 0x2000, options, &udp_from(67))));
    }
    // The first fragment must have the whole header; later ones have none.
    assert!(!passes(&ipv4_frame(17, 0x2000, 0, &[0])));
    assert!(passes(&ipv4_frame(17, 0x2001, 0, &udp_from(67))));
}

#[test]
fn a_router_is_detected_behind_extension_headers() {
    assert!(!passes(&ipv6_frame(58, &[134, 0, 0, 0])));
    assert!(!passes(&ipv6_frame(58, &[137, 0, 0, 0])));
    assert!(!passes(&ipv6_frame(17, &udp_from(547))));
    for next in EXTENSIONS.into_iter().chain([0]) {
        let hidden = [58, 0, 5, 2, 0, 0, 1, 0, 134, 0, 0, 0];
        assert!(!passes(&ipv6_frame(next as u8, &hidden)), "{next}");
    }
    // Two headers, or one of sixteen bytes with an accepted type at the offset where a report has its own.
    assert!(!passes(&ipv6_frame(
        0,
        &[60, 0, 0, 0, 0, 0, 0, 0, 143, 0, 0, 0]
    )));
    assert!(!passes(&ipv6_frame(
        0,
        &[58, 1, 0, 0, 0, 0, 0, 0, 143, 0, 0, 0]
    )));
}

#[test]
fn vlan_tags_and_protocols_of_switches_are_dropped() {
    let honest = ipv4_frame(6, 0, 0, &[0; 20]);
    let tagged = Frame {
        bytes: honest.clone(),
        tag: 1,
    };
    assert_eq!(evaluate(&tagged), DROP);
    for kind in [
        0x8100, 0x88a8, 0x9100, 0x88cc, 0x888e, 0x8863, 0x8864, 0x0026, 0x8035,
    ] {
        assert!(!passes(&ethernet_frame(kind, &honest[12..])), "{kind:#x}");
    }
}

#[test]
fn the_program_is_short_and_ends_with_a_return() {
    let program = program(MAC, IP, None);
    assert!(program.len() < 256, "{} instructions", program.len());
    assert_eq!(program.last().map(|insn| insn.code), Some(op::RETURN));
}
