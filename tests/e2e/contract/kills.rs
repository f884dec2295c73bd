//! The daemon is killed again and again while 50 clients create and delete VMs: no VM twice, none lost, and nothing is left at the end.
//! Out of scope: crashes between the actions of a bring-up (`tests/kernel/crash`).
//!
//! `SLICE_API_KILLS` says how often (4; `make soak` raises it), `SLICE_SEED` with which seed; both are printed.

mod user;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use test_support::dice::Dice;
use test_support::harness::{Harness, slots, with_daemon};
use test_support::kernel::run;

use self::user::{Tally, User};
use super::client::Api;

/// The clients. Each has at most [`user::MOST`] VMs, and the group has 256 addresses.
const CLIENTS: u64 = 50;

/// The creates and deletes that are answered in one life of the daemon, at least.
const ANSWERS: usize = 60;

fn number(key: &str, default: u64) -> u64 {
    let text = std::env::var(key).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn kill_9_while_50_clients_create_and_delete_makes_no_vm_twice_and_loses_none() {
    let (kills, seed) = (number("SLICE_API_KILLS", 4), number("SLICE_SEED", 16));
    eprintln!("SLICE_API_KILLS={kills} SLICE_SEED={seed}");
    with_daemon(|mut harness| {
        harness.apply(&slots(0, "drop: [10.0.0.0/8]"));
        let api = Api::of(&harness);
        // What the first VM makes for all of the group exists, and what is made for one is gone again.
        let mut first = User::new(api.clone(), seed, CLIENTS);
        first.create();
        first.delete_all();
        let empty = settled(&harness);
        let users = (0..CLIENTS).map(|number| User::new(api.clone(), seed, number));
        let mut users: Vec<User> = users.collect();
        let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&stop);
            for user in &mut users {
                scope.spawn(|| user.run_until(&stop, &answered));
            }
            let mut dice = Dice::new(seed);
            for _ in 0..kills {
                // Some lives end before all is adopted, the others after many answers.
                if dice.below(3) > 0 {
                    let before = answered.load(Ordering::Relaxed);
                    harness.until("answers", || {
                        (answered.load(Ordering::Relaxed) >= before + ANSWERS).then_some(())
                    });
                }
                std::thread::sleep(Duration::from_millis(dice.below(800) as u64));
                kill(&mut harness, &mut dice);
            }
            std::thread::sleep(Duration::from_millis(300));
        });
        let tally = users.iter().map(|user| &user.tally).sum::<Tally>();
        eprintln!("{tally:?}");
        check(&harness, &api, &users);
        assert!(tally.is_meaningful(kills), "{tally:?}");
        harness.kill();
        harness.start();
        check(&harness, &api, &users);
        std::thread::scope(|scope| {
            for user in &mut users {
                scope.spawn(|| user.delete_all());
            }
        });
        assert_eq!(settled(&harness), empty);
        check(&harness, &api, &users);
    });
}

/// Ends the clients, also if the test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills the daemon, sometimes also while it starts, and starts it.
fn kill(harness: &mut Harness, dice: &mut Dice) {
    harness.kill();
    if dice.below(3) == 0 {
        let mut child = harness.sliced().spawn().expect("sliced");
        std::thread::sleep(Duration::from_millis(dice.below(300) as u64));
        child.kill().expect("killed");
        child.wait().expect("its status");
    }
    harness.start();
}

/// That the daemon has exactly the VMs that the clients have, and that the host has exactly what these need.
fn check(harness: &Harness, api: &Api, users: &[User]) {
    let held: BTreeMap<&str, &str> = users.iter().flat_map(User::held).collect();
    let listed = api.get("/nodes").json();
    let listed = listed.as_array().expect("a list");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let names = listed.iter().map(|node| text(&node["hostname"]));
    let names: Vec<String> = names.collect();
    let labels: Vec<(String, String)> = listed
        .iter()
        .map(|node| (text(&node["tags"][0]), text(&node["hostname"])))
        .collect();
    let expected: BTreeSet<(String, String)> = held
        .iter()
        .map(|(label, name)| (format!("name={label}"), (*name).to_owned()))
        .collect();
    let found: BTreeSet<(String, String)> = labels.iter().cloned().collect();
    let missing: Vec<_> = expected.difference(&found).collect();
    let more: Vec<_> = found.difference(&expected).collect();
    assert!(
        missing.is_empty() && more.is_empty() && names.len() == held.len(),
        "lost: {missing:?}; twice or never removed: {more:?}; {} of {}",
        names.len(),
        held.len()
    );
    for name in users.iter().flat_map(|user| &user.deleted) {
        assert!(!names.contains(name), "{name} was deleted");
    }
    harness.until("all are ready", || {
        let status = harness.get("hg sandbox")["status"].clone();
        let all = held.len() as u64;
        (status["ready_count"] == all && status["current"] == all).then_some(())
    });
    harness.until("the host has what they need, once", || {
        let needed = (held.len(), held.len(), held.len());
        (of_host(harness) == needed).then_some(())
    });
}

/// The numbers of namespaces, host links and leases.
fn of_host(harness: &Harness) -> (usize, usize, usize) {
    let leases = harness.get("leases");
    let leases = leases["items"].as_array().expect("items");
    let addresses: BTreeSet<_> = leases.iter().map(|lease| lease["ip"].to_string()).collect();
    assert_eq!(addresses.len(), leases.len(), "an address twice");
    let links = run("ip -o link show type veth");
    let links = links.lines().filter(|line| line.contains("slice/"));
    let namespaces = run("ls /run/netns");
    (namespaces.lines().count(), links.count(), leases.len())
}

/// What the host and the directories of the daemon have when nothing more changes.
fn settled(harness: &Harness) -> String {
    let (run_dir, state) = (harness.run.display(), harness.state());
    let look = || {
        let leases = harness.get("leases")["items"].clone();
        let rest = run(&format!(
            "ls /run/netns; ip -o link | cut -d: -f2 | sort; ip -4 route show table all | sort
             iptables-save | grep -v '^#' | sed 's/ \\[[0-9:]*\\]$//'
             find {run_dir} | sort; find {} -path '*/db/*' -prune -o -print | sort",
            state.display()
        ));
        format!("{leases}\n{rest}")
    };
    harness.until("no VM", || harness.vms().is_empty().then_some(()));
    harness.settles(Duration::from_secs(1), look);
    look()
}
