//! The program against spoofing, on the real kernel: what goes over a bridge is what the oracle lets pass.
//! Out of scope: the program's own tests, which meet many more frames.

use slicectl::api::network::Mac;
use slicectl::host::Handle;
use slicectl::host::link::{self, Change};
use slicectl::host::tc::{self, What};
use slicectl::reconcile::firewall::antispoof;

use crate::host_bridge::wire::{Wire, bridge, kernel};
use test_support::antispoof::{self as oracle, IP, MAC};
use test_support::frames::{self, Ip, mark, tagged};
use test_support::kernel;

/// A guest and another VM on one bridge.
async fn two_vms(handle: &Handle) -> (Wire, Wire) {
    // Else the bridge keeps reports of group members to itself.
    let master = bridge(handle, "br0").await;
    kernel::run("ip link set br0 type bridge mcast_snooping 0");
    let guest = Wire::lay(handle, "vmtap0", Some(master)).await;
    let other = Wire::lay(handle, "vmtap1", Some(master)).await;
    (guest, other)
}

async fn guard(handle: &Handle, guest: &Wire) {
    let program = antispoof::program(Mac(MAC), IP, None);
    tc::add_hook(handle, guest.index).await.unwrap();
    tc::replace_program(handle, guest.index, &program)
        .await
        .unwrap();
    let filters = tc::list(handle, guest.index).await.unwrap();
    assert_eq!(filters.len(), 1);
    assert_eq!(filters[0].action, What::Program(program));
}

/// A frame that passes, to know by that all before it have come or never will.
fn last(number: u32) -> Vec<u8> {
    let datagram = frames::udp(1000, 1000, &mark(number));
    let packet = Ip::new(
        IP,
        "192.168.137.255".parse().unwrap(),
        frames::UDP,
        datagram,
    );
    frames::ethernet(frames::BROADCAST, MAC, 0x0800, &packet.bytes())
}

/// Every seed, whole and cut at every length that a TAP takes.
fn cut() -> Vec<Vec<u8>> {
    let seeds = oracle::seeds().into_iter();
    seeds
        .flat_map(|seed| (14..=seed.len()).map(move |length| seed[..length].to_vec()))
        .collect()
}

/// Seeds with a byte or two changed, the same ones every time.
fn mutated(count: usize) -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    };
    let seeds = oracle::seeds();
    (0..count)
        .map(|_| {
            let mut frame = seeds[random(seeds.len())].clone();
            for _ in 0..=random(2) {
                let at = 6 + random(frame.len() - 6);
                frame[at] = random(256) as u8;
            }
            frame
        })
        .collect()
}

#[test]
fn without_the_program_the_bridge_carries_every_frame_of_these_tests() {
    kernel::private(async {
        let handle = kernel().await;
        let (guest, other) = two_vms(&handle).await;
        for (number, frame) in (0..).zip(cut()) {
            assert!(guest.send(&frame) && guest.send(&last(number)));
            assert!(other.receives(&frame, &last(number)), "{frame:02x?}");
        }
    });
}

#[test]
fn with_it_the_kernel_and_the_oracle_agree_on_frames_whole_cut_and_mutated() {
    kernel::private(async {
        let handle = kernel().await;
        let (guest, other) = two_vms(&handle).await;
        guard(&handle, &guest).await;
        let mut passed = 0;
        let all = cut().into_iter().chain(mutated(1500));
        for (number, frame) in (0..).zip(all) {
            assert!(guest.send(&frame) && guest.send(&last(number)));
            let received = other.receives(&frame, &last(number));
            let may = oracle::passable(&frame) == Some(true);
            assert_eq!(received, may, "{frame:02x?}");
            passed += u32::from(received);
        }
        assert!(passed > 300, "{passed} passed");
    });
}

#[test]
fn a_tagged_frame_passes_without_the_program_and_not_with_it() {
    kernel::private(async {
        let handle = kernel().await;
        let (guest, other) = two_vms(&handle).await;
        let honest = oracle::ipv4_frame(6, 0, 0, &[9; 40]);
        // One tag, which the kernel takes off and keeps beside the frame, and two; also "no VLAN", which bears a priority only.
        let tagged = [
            tagged(&honest, 0x8100, 5),
            tagged(&honest, 0x8100, 0),
            tagged(&honest, 0x88a8, 5),
            tagged(&tagged(&honest, 0x8100, 5), 0x88a8, 6),
            tagged(&tagged(&honest, 0x8100, 5), 0x8100, 6),
        ];
        let mut number = 0;
        let mut received = |frame: &[u8]| {
            number += 1;
            assert!(guest.send(frame) && guest.send(&last(number)));
            other.receives(frame, &last(number))
        };
        assert!(tagged.iter().all(|frame| received(frame)));
        guard(&handle, &guest).await;
        assert!(received(&honest));
        for frame in &tagged {
            assert!(!received(frame), "{frame:02x?}");
        }
    });
}

#[test]
fn a_program_that_reads_behind_the_end_accepts_which_is_why_ours_asks_for_the_length() {
    kernel::private(async {
        let handle = kernel().await;
        let (guest, other) = two_vms(&handle).await;
        // A = the word at 40, then DROP.
        let insn = |code, k| tc::Insn {
            code,
            jt: 0,
            jf: 0,
            k,
        };
        tc::add_hook(&handle, guest.index).await.unwrap();
        let careless = [insn(0x20, 40), insn(0x06, tc::DROP)];
        tc::replace_program(&handle, guest.index, &careless)
            .await
            .unwrap();
        let short = oracle::ethernet_frame(0x0800, &[1; 10]);
        let long = oracle::ethernet_frame(0x0800, &[2; 40]);
        assert!(guest.send(&long) && guest.send(&short));
        assert!(!other.receives(&long, &short));
    });
}

#[test]
fn a_strangers_filter_still_judges_what_ours_lets_pass() {
    kernel::private(async {
        let handle = kernel().await;
        let (guest, other) = two_vms(&handle).await;
        guard(&handle, &guest).await;
        let honest = oracle::ipv4_frame(6, 0, 0, &[9; 40]);
        assert!(guest.send(&honest) && guest.send(&last(1)));
        assert!(other.receives(&honest, &last(1)));
        // Drops IPv4 but UDP: ldb [23]; jeq 17; pass; drop.
        kernel::run(
            "tc filter add dev vmtap0 ingress prio 2 protocol ip bpf da bytecode '4,48 0 0 23,21 0 1 17,6 0 0 4294967295,6 0 0 2'",
        );
        assert!(guest.send(&honest) && guest.send(&last(2)));
        assert!(!other.receives(&honest, &last(2)));
    });
}

#[test]
fn what_the_guest_is_sent_is_not_evaluated() {
    kernel::private(async {
        let handle = kernel().await;
        let (guest, other) = two_vms(&handle).await;
        guard(&handle, &guest).await;
        let quiet = Change {
            alias: Some("slice/vm".into()),
            ..Change::default()
        };
        link::set(&handle, guest.index, &quiet).await.unwrap();
        let from_others = frames::ethernet(MAC, [2, 0, 0, 0, 0, 8], 0x88b5, &[7; 60]);
        let last = frames::ethernet(frames::BROADCAST, [2, 0, 0, 0, 0, 8], 0x88b5, &[8; 60]);
        assert!(other.send(&from_others) && other.send(&last));
        assert!(guest.receives(&from_others, &last));
    });
}
