//! How long it takes to bind many VMs, and what is written for each.
//! Out of scope: faults.

use std::time::{Duration, Instant};

use test_support::{kernel, turns};

use super::fleet::{Fleet, counts, group};

/// Far above what is measured.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn binding_1500_vms_takes_seconds_and_few_transactions() {
    let _turn = turns::alone();
    kernel::private(async {
        let fleet = Fleet::start([500, 500, 500]).await;
        let begin = Instant::now();
        for number in 0..6 {
            fleet.put_group(&group(&format!("g{number}"), 250)).await;
        }
        let vms = fleet.bound(1500).await;
        let bound = begin.elapsed();
        let leader = &fleet.nodes[fleet.leader().await];
        let reported = || {
            leader.link.read(|mirror, _| {
                let all: usize = mirror.statuses.values().map(|it| it.len()).sum();
                (all == 1500).then_some(())
            })
        };
        super::fleet::until("all are reported", LIMIT, reported).await;
        let ready = begin.elapsed();
        let status = leader.control.status();
        println!(
            "1500 VMs: bound after {bound:?}, Ready after {ready:?}; {} transactions, {} conflicts, {} bytes for each VM; last plan: {:?}",
            status.sent.transactions,
            status.sent.conflicts,
            status.sent.bytes / 1500,
            status.last_plan,
        );
        let (nodes, names) = counts(&vms);
        assert_eq!(names, 1500);
        assert!(nodes.values().all(|count| *count == 500), "{nodes:?}");
        assert!(bound < LIMIT);
        assert!(status.sent.transactions < 100, "{:?}", status.sent);
        assert!(status.sent.bytes / 1500 < 1500, "{:?}", status.sent);
    });
}
