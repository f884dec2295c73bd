//! Programs on links: made, read back, replaced, and strangers' beside them.
//! Out of scope: which frames a program drops.

use slicectl::host::tc::{self, Hook, Insn, What};
use slicectl::host::{Kind, link};

use crate::host_bridge::wire::{Wire, kernel, kind};
use test_support::kernel::{self, Canaries};

fn answer(k: u32) -> Vec<Insn> {
    vec![Insn {
        code: 6,
        jt: 0,
        jf: 0,
        k,
    }]
}

#[test]
fn a_program_is_put_read_back_replaced_and_deleted() {
    kernel::private(async {
        let canaries = Canaries::release();
        let handle = kernel().await;
        let index = Wire::lay(&handle, "tap0", None).await.index;
        assert_eq!(tc::hook(&handle, index).await.unwrap(), None);
        assert_eq!(tc::list(&handle, index).await.unwrap(), []);
        let early = tc::replace_program(&handle, index, &answer(tc::DROP)).await;
        assert_eq!(kind(early), Some(Kind::Other));

        tc::add_hook(&handle, index).await.unwrap();
        assert_eq!(tc::hook(&handle, index).await.unwrap(), Some(Hook::Clsact));
        assert_eq!(kind(tc::add_hook(&handle, index).await), Some(Kind::Exists));
        assert_eq!(tc::list(&handle, index).await.unwrap(), []);

        let long = answer(tc::DROP).repeat(tc::LONGEST);
        for program in [answer(tc::DROP), long, answer(tc::PASS)] {
            tc::replace_program(&handle, index, &program).await.unwrap();
            let filters = tc::list(&handle, index).await.unwrap();
            let [filter] = filters.as_slice() else {
                panic!("{} filters", filters.len());
            };
            assert!(filter.action == What::Program(program));
            assert_eq!(
                (
                    filter.priority,
                    filter.number(),
                    filter.protocol,
                    filter.chain
                ),
                (tc::PRIORITY, tc::NUMBER, 3, 0)
            );
        }
        for wrong in [Vec::new(), answer(0).repeat(tc::LONGEST + 1)] {
            let refused = tc::replace_program(&handle, index, &wrong).await;
            assert_eq!(kind(refused), Some(Kind::Other));
        }

        let [filter] = tc::list(&handle, index).await.unwrap().try_into().unwrap();
        tc::delete(&handle, index, &filter).await.unwrap();
        assert_eq!(
            kind(tc::delete(&handle, index, &filter).await),
            Some(Kind::Absent)
        );
        assert_eq!(tc::list(&handle, index).await.unwrap(), []);
        kernel::run("tc qdisc del dev tap0 clsact");
        assert_eq!(tc::hook(&handle, index).await.unwrap(), None);
        canaries.assert_alive();
    });
}

#[test]
fn foreign_filters_are_distinguished_from_ours_and_survive() {
    kernel::private(async {
        let handle = kernel().await;
        let index = Wire::lay(&handle, "tap0", None).await.index;
        kernel::run(
            "tc qdisc add dev tap0 clsact
             tc filter add dev tap0 ingress prio 1 protocol all bpf da bytecode '1,6 0 0 4294967295'
             tc filter add dev tap0 ingress prio 7 protocol ip u32 match ip dport 53 0xffff flowid :1
             tc filter add dev tap0 ingress prio 8 protocol all bpf bytecode '1,6 0 0 0'
             tc filter add dev tap0 ingress prio 9 chain 5 protocol all bpf da bytecode '1,6 0 0 2'
             tc filter add dev tap0 egress prio 1 protocol all bpf da bytecode '1,6 0 0 4294967295'",
        );
        let look =
            || kernel::run("tc filter show dev tap0 ingress; tc filter show dev tap0 egress");
        let before = look();
        let strangers = tc::list(&handle, index).await.unwrap();
        let reported: Vec<_> = strangers
            .iter()
            .map(|f| (f.priority, f.chain, f.protocol, f.action.clone()))
            .collect();
        assert_eq!(
            reported,
            [
                (1, 0, 3, What::Program(answer(tc::PASS))),
                (7, 0, 0x800, What::Other("u32".into())),
                (8, 0, 3, What::Other("bpf".into())),
                (9, 5, 3, What::Program(answer(tc::DROP))),
            ]
        );
        assert!(strangers.iter().all(|f| f.number() != tc::NUMBER));

        // Ours is asked before the stranger's of the same priority.
        tc::replace_program(&handle, index, &answer(tc::DROP))
            .await
            .unwrap();
        let filters = tc::list(&handle, index).await.unwrap();
        assert_eq!(filters.len(), 5);
        assert_eq!(filters[0].number(), tc::NUMBER);
        assert_eq!(filters[1..], strangers);
        tc::delete(&handle, index, &filters[0]).await.unwrap();
        assert_eq!(tc::list(&handle, index).await.unwrap(), strangers);
        assert_eq!(look(), before);

        // Any of them could be deleted by what the list says.
        for filter in &strangers {
            tc::delete(&handle, index, filter).await.unwrap();
        }
        assert_eq!(tc::list(&handle, index).await.unwrap(), []);
    });
}

#[test]
fn a_stranger_of_another_kind_at_our_priority_is_not_overwritten() {
    kernel::private(async {
        let handle = kernel().await;
        let index = Wire::lay(&handle, "tap0", None).await.index;
        kernel::run(
            "tc qdisc add dev tap0 clsact
             tc filter add dev tap0 ingress prio 1 protocol ip u32 match ip dport 53 0xffff flowid :1",
        );
        let before = tc::list(&handle, index).await.unwrap();
        let refused = tc::replace_program(&handle, index, &answer(tc::DROP)).await;
        assert_eq!(kind(refused), Some(Kind::Other));
        assert_eq!(tc::list(&handle, index).await.unwrap(), before);
    });
}

#[test]
fn filters_vanish_with_their_link() {
    kernel::private(async {
        let handle = kernel().await;
        let first = Wire::lay(&handle, "tap0", None).await.index;
        tc::add_hook(&handle, first).await.unwrap();
        tc::replace_program(&handle, first, &answer(tc::DROP))
            .await
            .unwrap();
        link::delete(&handle, first).await.unwrap();
        assert_eq!(kind(tc::hook(&handle, first).await), Some(Kind::Absent));
        let second = Wire::lay(&handle, "tap0", None).await.index;
        assert_ne!(first, second);
        assert_eq!(tc::hook(&handle, second).await.unwrap(), None);
        assert_eq!(tc::list(&handle, second).await.unwrap(), []);
    });
}

#[test]
fn more_filters_than_a_datagram_has_room_for_are_all_listed() {
    kernel::private(async {
        let handle = kernel().await;
        let index = Wire::lay(&handle, "tap0", None).await.index;
        let batch: String = (1..=400)
            .map(|n| format!("filter add dev tap0 ingress prio {n} protocol all bpf da bytecode '1,6 0 0 {n}'\n"))
            .collect();
        std::fs::write("/run/batch", format!("qdisc add dev tap0 clsact\n{batch}")).unwrap();
        kernel::run("tc -batch /run/batch");
        let filters = tc::list(&handle, index).await.unwrap();
        assert_eq!(filters.len(), 400);
        assert!(filters.is_sorted_by_key(|filter| filter.priority));
    });
}
