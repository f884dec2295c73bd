//! VMs of nodes without contact.
//! Out of scope: stopping the copy (the agent of the node does it before).

use std::time::{Duration, Instant};

use slicectl::fleet::keys::Key;
use slicectl::fleet::object::{Reconcile, Replacement};
use slicectl::fleet::schedule::replacement::MARGIN;
use test_support::kernel;

use super::fleet::{Fleet, LONG, group};

#[test]
fn a_vm_is_replaced_when_its_node_was_absent_for_long_enough_and_one_that_may_not_be_stays() {
    kernel::private(async {
        let fleet = Fleet::start([4, 4, 4]).await;
        let stays = group("stays", 3);
        let mut moves = group("moves", 3);
        let stop_after = Duration::from_secs(1);
        let grace = moves.spec.template.lifecycle.graceful_shutdown.get();
        let replace_after = stop_after + grace + MARGIN;
        moves.replacement = Some(Replacement {
            replace_after,
            stop_after,
            reconcile: Reconcile::KeepReplacement,
        });
        fleet.put_group(&stays).await;
        fleet.put_group(&moves).await;
        let before = fleet.bound(6).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let election = fleet.client.get(Key::Election).await.unwrap();
        let elected = election.1.expect("a leader");
        let leader = fleet.leader().await;
        let cut = (leader + 1) % 3;
        let name = fleet.nodes[cut].name().to_owned();
        fleet.nodes[cut].isolate();
        let begin = Instant::now();
        let of_cut = |group: &str, vms: &[slicectl::fleet::object::Vm]| {
            let all = vms.iter().filter(|vm| vm.group.as_str() == group);
            let on = all.filter(|vm| {
                vm.binding
                    .as_ref()
                    .is_some_and(|it| it.node.as_str() == name)
            });
            on.count()
        };
        assert_eq!((of_cut("stays", &before), of_cut("moves", &before)), (1, 1));
        let after = loop {
            let vms = fleet.vms().await;
            if of_cut("moves", &vms) == 0 {
                break vms;
            }
            assert!(begin.elapsed() < LONG + replace_after);
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let elapsed = begin.elapsed();
        println!("replaced {elapsed:?} after the partition; replace_after is {replace_after:?}");
        assert!(
            elapsed > replace_after + Duration::from_secs(29),
            "{elapsed:?}"
        );
        assert_eq!(of_cut("stays", &after), 1);
        let replaced: Vec<_> = after.iter().filter(|vm| !vm.previous.is_empty()).collect();
        assert_eq!(replaced.len(), 1);
        assert_eq!((replaced[0].epoch, replaced[0].previous[0].epoch), (2, 1));
        // The leader has written its key after the time had passed, and has seen that before it replaced the VM.
        let election = fleet.client.get(Key::Election).await.unwrap();
        let barrier = election.1.expect("a leader").mod_revision;
        let vm = fleet
            .client
            .get(Key::Vm(replaced[0].meta.uid))
            .await
            .unwrap();
        let written = vm.1.expect("the VM").mod_revision;
        assert!(elected.mod_revision < barrier && barrier < written);

        // The node returns, and its copy is confirmed to be deleted.
        fleet.nodes[cut].heal();
        let begin = Instant::now();
        while fleet.vms().await.iter().any(|vm| !vm.previous.is_empty()) {
            assert!(begin.elapsed() < LONG);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
}
