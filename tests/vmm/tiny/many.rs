//! 32 real VMs: up, reached, kept through the death of the daemon, brought back one by one, gone.
//! Out of scope: single guests.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use test_support::harness::{self, Harness, signal, with_daemon};
use test_support::kernel::run;
use test_support::tiny::{self, Tiny, is_alive};

const MANY: usize = 32;

/// Until each has said that its gateway answers.
fn all_ready(harness: &Harness) -> Vec<Tiny> {
    let guests: Vec<Tiny> = tiny::all(harness).into_values().collect();
    assert_eq!(guests.len(), MANY);
    for guest in &guests {
        let what = format!("{} is ready", guest.name);
        harness.until(&what, || (guest.times_ready() == 1).then_some(()));
    }
    let pids: BTreeSet<u32> = guests.iter().filter_map(|guest| guest.pid).collect();
    assert_eq!(pids.len(), MANY, "one VMM for each VM");
    guests
}

/// For a while nothing happens that a guest would notice: none starts again or loses its gateway, which each pings all the time.
fn undisturbed(harness: &Harness, guests: &[Tiny]) {
    let reported = || {
        guests.iter().fold((0, 0), |(ready, lost), guest| {
            (
                ready + guest.times_ready(),
                lost + guest.output().matches("lost").count(),
            )
        })
    };
    // Three pings without answer, a second each, are a loss.
    harness.stays(Duration::from_millis(4500), reported);
    assert_eq!(reported(), (MANY, 0));
}

/// Pings all at the same time; the test fails if one does not answer.
fn ping(guests: &[Tiny]) {
    let ping = |guest: &Tiny| {
        format!(
            "busybox ping -c 1 -W 10 {} >/dev/null & jobs=\"$jobs $!\"\n",
            guest.ip
        )
    };
    let pings: String = guests.iter().map(ping).collect();
    run(&format!(
        "jobs=\n{pings}for job in $jobs; do wait $job; done"
    ));
}

#[test]
fn thirty_two_vms_live_on_when_the_daemon_is_killed_and_each_is_brought_back_alone() {
    with_daemon(|mut harness| {
        harness.apply(&tiny::guests(&harness::slots(MANY as u32, ""), ""));
        let guests = all_ready(&harness);
        let before = tiny::pids(&harness);
        let world = harness::world_to_the_last_handle();

        harness.kill();
        undisturbed(&harness, &guests);
        harness.start();
        let quiet = "initial sync done";
        harness.until("quiet again", || {
            (harness.log().matches(quiet).count() == 2).then_some(())
        });
        let log = harness.log();
        let last = log.lines().rfind(|line| line.contains(quiet)).unwrap();
        assert!(last.contains("actions=0"), "{last}");
        assert_eq!(tiny::pids(&harness), before);
        assert_eq!(harness::world_to_the_last_handle(), world);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        undisturbed(&harness, &guests);

        // One dies; the others notice nothing.
        let victim = &guests[17];
        signal(victim.pid.unwrap(), Signal::KILL);
        let name = &victim.name;
        harness.within(Duration::from_secs(2), "another VMM", || {
            let now = tiny::pids(&harness)[name];
            now.filter(|pid| Some(*pid) != victim.pid && is_alive(*pid))
        });
        harness.until("its guest", || {
            (tiny::all(&harness)[name].times_ready() >= 1).then_some(())
        });
        let mut now = tiny::pids(&harness);
        now.insert(name.clone(), victim.pid);
        assert_eq!(now, before);

        // All go politely, and side by side: one after the other would take the patience of many.
        let (guests, begin) = (tiny::all(&harness), Instant::now());
        harness.ctl("delete hg sandbox --wait=60s");
        eprintln!("{MANY} deleted: {} ms", begin.elapsed().as_millis());
        for guest in guests.values() {
            let last = format!("tiny: {} powers off", guest.name);
            assert!(guest.output().contains(&last), "{}", guest.output());
            assert!(!is_alive(guest.pid.unwrap()));
        }
        assert_eq!(run("ls /run/netns"), "");
        assert_eq!(run(&format!("ls {}/vm", harness.run.display())), "");
    });
}

#[test]
fn the_host_reaches_thirty_two_vms_on_a_bridge() {
    with_daemon(|harness| {
        let slots = harness::bridge_group(
            "web",
            MANY as u32,
            "bridge: brvm0\ngateway: 192.168.137.1/24",
        );
        harness.apply(&tiny::guests(&slots, ""));
        ping(&all_ready(&harness));
    });
}
