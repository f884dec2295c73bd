//! At most one node leads at any time.
//! Out of scope: members of etcd that fail ([`super::cluster`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use slicectl::fleet::control::Control;
use slicectl::fleet::keys::Key;
use test_support::kernel;

use super::fleet::{Fleet, counts, group};

/// Looks all the time whether two nodes lead; returns the longest time without a leader.
fn observe(controls: Vec<Arc<Control>>, end: Arc<AtomicBool>) -> Duration {
    let (mut seen, mut longest) = (Instant::now(), Duration::ZERO);
    while !end.load(Ordering::Relaxed) {
        let leaders = controls.iter().filter(|it| it.status().is_leader).count();
        assert!(leaders <= 1, "{leaders} nodes lead");
        if leaders == 1 {
            seen = Instant::now();
        }
        longest = longest.max(seen.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    longest
}

#[test]
fn one_node_leads_at_any_time_also_when_the_leader_is_paused_cut_off_or_stopped() {
    kernel::private(async {
        let mut fleet = Fleet::start([20, 20, 20]).await;
        let controls = fleet.nodes.iter().map(|it| Arc::clone(&it.control));
        let end = Arc::new(AtomicBool::new(false));
        let (controls, ended) = (controls.collect(), Arc::clone(&end));
        let observer = std::thread::spawn(move || observe(controls, ended));

        let mut web = group("web", 6);
        fleet.put_group(&web).await;
        fleet.bound(6).await;

        let paused = fleet.leader().await;
        fleet.nodes[paused].pause(Duration::from_secs(25));
        let begin = Instant::now();
        let second = fleet.leader_except(paused).await;
        println!("another leader {:?} after the pause", begin.elapsed());
        web.spec.count = 12;
        fleet.put_group(&web).await;
        fleet.bound(12).await;
        tokio::time::sleep(Duration::from_secs(26).saturating_sub(begin.elapsed())).await;
        assert_eq!(fleet.leader().await, second, "it leads on");

        fleet.nodes[second].isolate();
        let begin = Instant::now();
        let third = fleet.leader_except(second).await;
        println!("another leader {:?} after the partition", begin.elapsed());
        web.spec.count = 18;
        fleet.put_group(&web).await;
        fleet.bound(18).await;
        fleet.nodes[second].heal();

        let begin = Instant::now();
        fleet.nodes[third].stop();
        let fourth = fleet.leader_except(third).await;
        println!("another leader {:?} after a clean stop", begin.elapsed());
        assert!(begin.elapsed() < Duration::from_secs(5), "it has resigned");
        assert_ne!(fourth, third);
        web.spec.count = 20;
        fleet.put_group(&web).await;
        let vms = fleet.bound(20).await;
        assert_eq!(counts(&vms).1, 20);
        end.store(true, Ordering::Relaxed);
        println!("without a leader: {:?}", observer.join().unwrap());
    });
}

#[test]
fn an_election_key_that_is_deleted_is_noticed_and_one_node_leads_again() {
    kernel::private(async {
        let fleet = Fleet::start([4, 4, 4]).await;
        let key = Key::Election;
        let before = fleet.client.get(&key).await.unwrap().1.unwrap();
        fleet.client.delete(&key).await.unwrap();
        fleet.put_group(&group("web", 3)).await;
        let vms = fleet.bound(3).await;
        let after = fleet.client.get(&key).await.unwrap().1.unwrap();
        assert_ne!(after.create_revision, before.create_revision);
        assert_eq!(counts(&vms).1, 3);
    });
}
