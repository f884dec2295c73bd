//! A TAP and a veth joined by redirects, both ways.
//! Out of scope: programs.

use std::net::Ipv4Addr;

use slicectl::host::{Kind, link, tc};

use crate::host_bridge::wire::{Wire, index, kernel, kind};
use test_support::frames::{self, BROADCAST, ethernet};
use test_support::kernel::{self, Neighbour};

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 7];

#[test]
fn frames_go_both_ways_between_a_veth_and_a_tap_and_nowhere_else() {
    kernel::private(async {
        let handle = kernel().await;
        let far = Neighbour::join("veth0", "192.168.137.1/24", "192.168.137.9/24");
        let near = index(&handle, "veth0").await;
        let tap = Wire::lay(&handle, "tap0", None).await;
        for (from, to) in [(near, tap.index), (tap.index, near)] {
            tc::add_hook(&handle, from).await.unwrap();
            tc::add_redirect(&handle, from, to).await.unwrap();
            let filters = tc::list(&handle, from).await.unwrap();
            let [filter] = filters.as_slice() else {
                panic!("{filters:?}");
            };
            assert_eq!(filter.action, tc::What::Redirect(to));
            assert_eq!(
                (filter.priority, filter.number(), filter.chain),
                (tc::PRIORITY, tc::NUMBER, 0)
            );
            let again = tc::add_redirect(&handle, from, to).await;
            assert_eq!(kind(again), Some(Kind::Exists));
            assert_eq!(tc::list(&handle, from).await.unwrap(), filters);
        }

        // The far end answers ARP: there and back.
        let own = Ipv4Addr::new(192, 168, 137, 7);
        let question = frames::who_has(GUEST, own, Ipv4Addr::new(192, 168, 137, 9));
        assert!(tap.send(&question));
        let answer = wait(&tap, |frame| frame[..6] == GUEST && frame[12..14] == [8, 6]);
        assert_eq!(answer[28..32], [192, 168, 137, 9]);

        // The host has an address there, too, but hears neither of them.
        let ours = frames::who_has(GUEST, own, Ipv4Addr::new(192, 168, 137, 1));
        assert!(tap.send(&ours) && tap.send(&question));
        let next = wait(&tap, |frame| frame[12..14] == [8, 6]);
        assert_eq!(next[28..32], [192, 168, 137, 9]);
        let unheard = far.attempt("busybox ping -c1 -W1 192.168.137.1");
        assert!(!unheard.status.success());
    });
}

#[test]
fn the_shortest_frames_are_redirected_too() {
    kernel::private(async {
        let handle = kernel().await;
        let a = Wire::lay(&handle, "tap0", None).await;
        let b = Wire::lay(&handle, "tap1", None).await;
        tc::add_hook(&handle, a.index).await.unwrap();
        tc::add_redirect(&handle, a.index, b.index).await.unwrap();
        let last = ethernet(BROADCAST, GUEST, 0x88b5, &[0xee; 46]);
        for length in 0..8 {
            let frame = ethernet(BROADCAST, GUEST, 0x0800, &vec![length; length.into()]);
            assert!(a.send(&frame) && a.send(&last));
            assert!(b.receives(&frame, &last), "{length} bytes of payload");
        }
    });
}

#[test]
fn a_redirect_is_known_for_one_whoever_made_it() {
    kernel::private(async {
        let handle = kernel().await;
        let a = Wire::lay(&handle, "tap0", None).await;
        let b = Wire::lay(&handle, "tap1", None).await;
        // As plugins do it that join a TAP to a veth.
        kernel::run(
            "tc qdisc add dev tap0 ingress
             tc filter add dev tap0 parent ffff: protocol all u32 match u8 0 0 action mirred egress redirect dev tap1",
        );
        let found = tc::hook(&handle, a.index).await.unwrap();
        assert_eq!(found, Some(tc::Hook::Ingress));
        assert_eq!(
            kind(tc::add_hook(&handle, a.index).await),
            Some(Kind::Exists)
        );
        let filters = tc::list(&handle, a.index).await.unwrap();
        let [filter] = filters.as_slice() else {
            panic!("{filters:?}");
        };
        assert_eq!(filter.action, tc::What::Redirect(b.index));
        assert_ne!(
            (filter.priority, filter.number()),
            (tc::PRIORITY, tc::NUMBER)
        );

        // A copy is no redirect, nor is one of a part.
        kernel::run(
            "tc filter del dev tap0 ingress
             tc filter add dev tap0 ingress prio 5 protocol all u32 match u8 0 0 action mirred egress mirror dev tap1
             tc filter add dev tap0 ingress prio 6 protocol ip u32 match ip dport 53 0xffff action mirred egress redirect dev tap1",
        );
        let filters = tc::list(&handle, a.index).await.unwrap();
        let what: Vec<_> = filters
            .iter()
            .map(|f| (f.priority, f.action.clone()))
            .collect();
        let other = || tc::What::Other("u32".into());
        assert_eq!(what, [(5, other()), (6, other())]);

        // Ours goes on an `ingress` of a stranger's as well.
        tc::add_redirect(&handle, a.index, b.index).await.unwrap();
        let filters = tc::list(&handle, a.index).await.unwrap();
        assert_eq!(filters[0].action, tc::What::Redirect(b.index));
        assert_eq!(filters[0].number(), tc::NUMBER);
        assert_eq!(filters.len(), 3);
    });
}

#[test]
fn a_redirect_goes_with_the_link_it_leads_to() {
    kernel::private(async {
        let handle = kernel().await;
        let a = Wire::lay(&handle, "tap0", None).await;
        let b = Wire::lay(&handle, "tap1", None).await;
        tc::add_hook(&handle, a.index).await.unwrap();
        tc::add_redirect(&handle, a.index, b.index).await.unwrap();
        link::delete(&handle, b.index).await.unwrap();
        // The filter stays, and leads nowhere: it is not taken for a right one.
        let filters = tc::list(&handle, a.index).await.unwrap();
        let [filter] = filters.as_slice() else {
            panic!("{filters:?}");
        };
        assert_ne!(filter.action, tc::What::Redirect(b.index));
        assert_eq!(filter.number(), tc::NUMBER);
        tc::delete(&handle, a.index, filter).await.unwrap();
        assert_eq!(tc::list(&handle, a.index).await.unwrap(), []);
    });
}

fn wait(tap: &Wire, desired: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match tap.read() {
            Some(frame) if desired(&frame) => return frame,
            Some(_) => {}
            None => {
                assert!(std::time::Instant::now() < until, "no answer");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }
}
