//! How guests end and what else they do: on request, too late, by themselves, by a crash, too loudly.
//! Out of scope: what the Vmm stage does with other processes.

use std::time::{Duration, Instant};

use slicectl::reconcile::vmm::LOG_LIMIT;

use test_support::harness::{self, Harness, with_daemon};
use test_support::tiny::{self, Tiny, is_alive};

/// One VM whose guest has been told these words.
fn apply(harness: &Harness, words: &str) -> Tiny {
    let file = harness.write(
        "manifest.yaml",
        &tiny::guests(&harness::slots(1, ""), words),
    );
    harness.ctl(&format!("apply -f {file}"));
    tiny::all(harness).into_values().next().expect("a VM")
}

/// Until it has printed that.
fn expect_output(harness: &Harness, guest: &Tiny, words: &str) {
    harness.until(words, || guest.output().contains(words).then_some(()));
}

#[test]
fn a_guest_that_listens_goes_at_once_and_a_deaf_one_is_asked_first() {
    with_daemon(|harness| {
        let mut took = Vec::new();
        for words in ["", "tiny=deaf"] {
            let guest = apply(&harness, words);
            harness.until("the guest", || (guest.times_ready() == 1).then_some(()));
            let pid = guest.pid.or(tiny::pids(&harness)["sandbox-1"]).unwrap();
            let begin = Instant::now();
            harness.ctl("delete hg sandbox --wait=60s");
            took.push(begin.elapsed());
            assert!(!is_alive(pid));
            let text = guest.output();
            let (last, other) = match words {
                "" => ("powers off", "ignores"),
                _ => ("sandbox-1 ignores the button", "powers off"),
            };
            assert!(text.contains(last) && !text.contains(other), "{text}");
        }
        eprintln!("has_control_socket: {:?}, deaf: {:?}", took[0], took[1]);
        // It had time to obey, and not for ever.
        assert!(took[1] > took[0] + Duration::from_secs(2), "{took:?}");
        assert!(took[1] < Duration::from_secs(20), "{took:?}");
    });
}

#[test]
fn a_guest_that_powers_itself_off_is_seen_at_once() {
    with_daemon(|harness| {
        let guest = apply(&harness, "tiny=off");
        expect_output(&harness, &guest, "powers off by itself");
        let reported = harness.within(Duration::from_secs(1), "the event", || {
            // Whether it was Ready before, or ended too soon for that.
            harness.messages("vm/sandbox-1", "Ended").pop()
        });
        assert!(reported.contains("it exited with status 0"), "{reported}");
    });
}

#[test]
fn a_guest_that_crashes_at_every_start_is_started_less_and_less_often() {
    with_daemon(|harness| {
        let guest = apply(&harness, "tiny=crash");
        expect_output(&harness, &guest, "crashes");
        let starts = || guest.output().matches("sandbox-1 starts").count();
        std::thread::sleep(Duration::from_secs(3));
        let seen = starts();
        assert!((2..=8).contains(&seen), "{seen} starts in 3 s");
        harness.within(Duration::from_secs(10), "the reason CrashLoop", || {
            let vm = harness.get("vm sandbox-1");
            let conditions = vm["status"]["conditions"].as_array()?.clone();
            let found = conditions.into_iter().find(|c| c["type"] == "Vmm")?;
            (found["reason"] == "CrashLoop").then_some(())
        });
        let seen = starts();
        std::thread::sleep(Duration::from_secs(3));
        assert!(starts() - seen <= 1, "{} more in 3 s", starts() - seen);
        // Told to behave, it is up without waiting for the next try.
        let guest = apply(&harness, "");
        harness.until("a guest that is ready", || {
            let guests = tiny::all(&harness);
            (guests[&guest.name].times_ready() == 1).then_some(())
        });
    });
}

#[test]
fn a_guest_that_prints_for_ever_fills_its_log_and_no_more_and_still_goes_politely() {
    with_daemon(|harness| {
        let guest = apply(&harness, "tiny=flood");
        let length = || std::fs::metadata(&guest.log).map_or(0, |found| found.len());
        harness.until("a full log", || (length() >= LOG_LIMIT / 2).then_some(()));
        harness.until("a log that grows no more", || {
            let before = length();
            std::thread::sleep(Duration::from_millis(500));
            (length() <= before).then_some(())
        });
        assert!(length() <= LOG_LIMIT, "{}", length());
        let pid = tiny::pids(&harness)["sandbox-1"].unwrap();
        assert!(is_alive(pid));
        assert_eq!(harness.messages("vm/sandbox-1", "Drift"), [""; 0]);
        let begin = Instant::now();
        harness.ctl("delete hg sandbox --wait=60s");
        eprintln!("a flooding guest deleted: {:?}", begin.elapsed());
        assert!(!is_alive(pid));
    });
}
