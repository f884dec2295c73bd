//! Thousands of VMs that are built or deleted keep nobody who is there already from being repaired.
//! Out of scope: the queue's laws (`tests/pure/queue`).

use std::time::{Duration, Instant};

use test_support::harness::{self, Harness, Place, group, slots, with_daemon};
use test_support::kernel::run;

/// The specification's.
const BOUND: Duration = Duration::from_secs(2);

/// As many as are on their way when each VM is broken.
const CROWD: usize = 2000;
const PER_GROUP: usize = 250;

fn rules(place: &Place) -> String {
    run(&format!("ip netns exec {} iptables -S", place.name))
}

fn crowd(count: usize) -> String {
    let groups = (0..CROWD / PER_GROUP).map(|n| {
        let range = format!("169.254.{}.0/22", 104 + 4 * n);
        let text = group(&format!("crowd-{n}"), count as u32, &range, "");
        let (_, group) = text.split_once("host_groups:\n").expect("a group");
        group.to_owned()
    });
    format!("config:\n  host_groups:\n{}", groups.collect::<String>())
}

/// How many of the crowd are still to be built, or still there.
fn on_their_way(harness: &Harness, desired: bool) -> usize {
    let list = harness.get("vms");
    let vms = list["items"].as_array().expect("items");
    let ours = vms.iter().filter(|vm| {
        let name = vm["metadata"]["name"].as_str().unwrap_or_default();
        name.starts_with("crowd-")
    });
    match desired {
        true => CROWD - ours.filter(|vm| vm["status"]["ready"] == true).count(),
        false => ours.count(),
    }
}

#[test]
fn drift_and_a_new_policy_of_old_vms_do_not_wait_for_thousands_that_are_built_or_deleted() {
    with_daemon(|harness| {
        harness.apply(&slots(4, "drop: [\"192.168.1.0/24\"]"));
        let places: Vec<Place> = (1..=4)
            .map(|n| harness.place(&format!("sandbox-{n}")))
            .collect();
        let flushed = |place: &Place, what: &str| {
            let right = rules(place);
            let started = Instant::now();
            run(&format!("ip netns exec {} iptables -F", place.name));
            harness.within(BOUND, what, || (rules(place) == right).then_some(()));
            println!("{what}: {:?}", started.elapsed());
        };
        // Old enough that what the kernel reported of their making is over.
        std::thread::sleep(Duration::from_secs(4));
        let file = harness.write("crowd.yaml", &crowd(PER_GROUP));
        harness.ctl(&format!("apply -f {file}"));
        flushed(&places[0], "flushed rules while many are built");
        let mtu = || run(&format!("ip link show {}", places[1].link));
        let right = mtu();
        let started = Instant::now();
        run(&format!("ip link set {} mtu 1300", places[1].link));
        harness.within(BOUND, "another MTU while many are built", || {
            (mtu() == right).then_some(())
        });
        println!("MTU: {:?}", started.elapsed());
        let new = harness.write(
            "new.yaml",
            &slots(4, "drop: [\"192.168.1.0/24\", \"10.9.0.0/16\"]"),
        );
        harness.ctl(&format!("apply -f {new}"));
        let started = Instant::now();
        harness.within(BOUND, "a new policy while many are built", || {
            let all = places
                .iter()
                .all(|place| rules(place).contains("10.9.0.0/16"));
            all.then_some(())
        });
        println!("policy: {:?}", started.elapsed());
        let left = on_their_way(&harness, true);
        println!("{left} of {CROWD} are still to be built");
        assert!(left > CROWD / 2, "only {left} were before it in the queue");
        // They do not starve either.
        harness.until("some of them are ready", || {
            (on_their_way(&harness, true) < left).then_some(())
        });
        let file = harness.write("crowd.yaml", &crowd(0));
        harness.ctl(&format!("apply -f {file}"));
        flushed(&places[2], "flushed rules while many are deleted");
        let left = on_their_way(&harness, false);
        println!("{left} are still there");
        assert!(left > CROWD / 20, "only {left} were before it in the queue");
    });
}

/// Each slot has four routes, and the kernel reports those of hundreds within one window of events.
#[test]
fn vms_that_are_built_and_deleted_cause_no_observation_of_others() {
    harness::empty(|mut harness| {
        harness.env.push(("SLICE_LOG", "slicectl=debug".into()));
        harness.start();
        harness.apply(&slots(4, ""));
        // Old enough that what the kernel reported of their making is over.
        std::thread::sleep(Duration::from_secs(4));
        let before = harness.log().len();
        for (count, desired) in [(PER_GROUP, true), (0, false)] {
            let text = group("crowd", count as u32, "169.254.104.0/22", "");
            let file = harness.write("crowd.yaml", &text);
            harness.ctl(&format!("apply -f {file}"));
            harness.until("it is done", || {
                let left = on_their_way(&harness, desired);
                let done = match desired {
                    true => left == CROWD - PER_GROUP,
                    false => left == 0,
                };
                done.then_some(())
            });
            std::thread::sleep(Duration::from_secs(1));
        }
        let log = harness.log();
        let observed = |vm: &str| {
            let line = format!("process is converged vm={vm}-");
            log[before..].matches(&line).count()
        };
        assert!(observed("crowd") >= PER_GROUP, "{}", observed("crowd"));
        assert_eq!(observed("sandbox"), 0);
    });
}
