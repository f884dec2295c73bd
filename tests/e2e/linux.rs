//! The life of a Linux guest as its owner sees it: what it notices of a pause, a stop and a policy, and how it ends.
//! Out of scope: the same with dozens of tiny guests (`tests/vmm/tiny/life.rs`); what guests reach (`guests`).

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::guests::{initrd, kernel};
use test_support::harness::{self, Harness, signal, with_daemon};
use test_support::kernel::{Neighbour, attempt};
use test_support::linux::{
    answer, boots, find_in_output, guests, output, output_of, pid, question, type_line, vmm,
    wait_for_output,
};
use test_support::tiny::is_alive;

const VM: &str = "sandbox-1";

/// One isolated VM with these lines in its group; it may reach `net` and not `lan`.
fn manifest(harness: &Harness, lines: &str) -> String {
    let probes = "ping gateway 169.254.100.1\nping lan 192.168.1.10\nping net 203.0.113.10\n";
    let slots = harness::slots(1, "drop: [192.168.1.0/24]");
    guests(&slots, &kernel(), &initrd(harness, probes), lines)
}

/// Those two.
fn neighbours() -> [Neighbour; 2] {
    [
        Neighbour::join("lan0", "192.168.1.1/24", "192.168.1.10/24"),
        Neighbour::join("net0", "203.0.113.1/24", "203.0.113.10/24"),
    ]
}

/// Until it has booted so many times, and has found since what it reaches.
#[track_caller]
fn is_whole(harness: &Harness, times: usize) {
    boots(harness, VM, times);
    find_in_output(harness, VM, "what it reaches", |text| {
        let since = text.split(&format!("GUEST {VM} ready")).nth(times)?;
        ["gateway ok", "net ok", "lan blocked"]
            .iter()
            .all(|words| since.contains(&format!("GUEST {VM} {words}")))
            .then_some(())
    });
}

/// Applied, and not waited for: a VM that may stay down is never Ready.
fn apply(harness: &Harness, text: &str) {
    let file = harness.write("manifest.yaml", text);
    harness.ctl(&format!("apply -f {file}"));
}

/// Whether it answers the host, where that may ask.
fn answers(ip: &str) -> bool {
    attempt(&format!("busybox ping -c 1 -W 1 {ip}"))
        .status
        .success()
}

/// Seconds since it has booted, by its own clock.
fn uptime(harness: &Harness) -> f64 {
    let text = output_of(harness, VM, "cut -d' ' -f1 /proc/uptime");
    text.parse().expect("seconds")
}

#[test]
fn a_paused_linux_receives_nothing_its_clock_stops_and_it_goes_on_in_the_middle() {
    with_daemon(|mut harness| {
        // On a bridge, where the host may ask whether it answers.
        let slots = harness::bridge_group("sandbox", 1, "bridge: brvm0\ngateway: 192.168.137.1/24");
        let probes = "ping host 192.168.137.1\nspoof liar 192.168.137.99 192.168.137.1\n";
        harness.apply(&guests(&slots, &kernel(), &initrd(&harness, probes), ""));
        for words in ["host ok", "liar blocked"] {
            wait_for_output(&harness, VM, &format!("GUEST {VM} {words}"), 1);
        }
        let network = harness.get("vm sandbox-1")["status"]["network"].clone();
        let ip = network["ip"].as_str().unwrap();
        let reported = output_of(&harness, VM, "cat /proc/cmdline");
        let address = format!("ip={ip}::192.168.137.1:255.255.255.0:{VM}:");
        assert!(reported.contains(&address), "{reported}");
        let has = output_of(&harness, VM, "ip -4 -o addr show dev eth0");
        assert!(has.contains(&format!("inet {ip}/24 ")), "{has}");
        harness.until("an answer", || answers(ip).then_some(()));

        // Something that only this shell knows, and a guest that is never silent.
        type_line(&harness, VM, "word=$(hostname)-of-$$");
        type_line(&harness, VM, "while echo tick; do sleep 0.2; done &");
        wait_for_output(&harness, VM, "tick\r\n", 3);
        let before = (pid(&harness, VM), output_of(&harness, VM, "echo $word"));
        let (began, up) = (Instant::now(), uptime(&harness));
        harness.ctl("vm pause sandbox-1 --wait=20s");
        let paused = Instant::now();
        assert!(!answers(ip));
        let unheard = question(&harness, VM, "echo $word");
        harness.stays(Duration::from_secs(2), || output(&harness, VM));
        harness.kill();
        harness.start();
        harness.ctl("wait vm/sandbox-1 --for paused --timeout 20s");
        assert!(!answers(ip), "a restart of sliced does not wake it");
        harness.stays(Duration::from_millis(500), || output(&harness, VM));
        let pause = paused.elapsed();
        harness.ctl("vm resume sandbox-1 --wait=20s");
        harness.until("an answer", || answers(ip).then_some(()));
        assert_eq!(
            answer(&harness, VM, &unheard),
            before.1,
            "received afterwards"
        );
        let (up, took) = (uptime(&harness) - up, began.elapsed());
        // Clocks of host and guest are not quite the same.
        let most = (took - pause).as_secs_f64() + 0.5;
        assert!(
            up > 0.0 && up < most,
            "{up} s older, {took:?} with {pause:?} of pause"
        );
        assert_eq!(pid(&harness, VM), before.0);
        assert_eq!(
            output(&harness, VM).matches("ready").count(),
            1,
            "booted once"
        );
        assert_eq!(vmm(&harness, VM)["restarts"], 0);
    });
}

#[test]
fn a_linux_powers_down_when_it_is_stopped_and_one_that_will_not_is_terminated_in_the_end() {
    with_daemon(|harness| {
        let _around = neighbours();
        harness.apply(&manifest(&harness, "graceful_shutdown: 60s"));
        is_whole(&harness, 1);
        let first = pid(&harness, VM);
        let begin = Instant::now();
        harness.ctl("vm stop sandbox-1 --wait=60s");
        assert!(begin.elapsed() < Duration::from_secs(50));
        assert!(!is_alive(first));
        let (goodbye, terminated) = ("GUEST sandbox-1 powers down", "terminating on signal 15");
        let words = output(&harness, VM);
        assert!(
            words.contains(goodbye) && words.contains("Power down"),
            "{words}"
        );
        assert!(!words.contains(terminated), "{words}");
        let stopped = vmm(&harness, VM);
        assert_eq!(stopped["state"], "stopped");
        let exit = &stopped["last_exit"];
        assert_eq!((&exit["pid"], &exit["status"]), (&first.into(), &0.into()));
        assert!(exit["said"].to_string().contains("ower"), "{exit}");

        harness.ctl("vm start sandbox-1 --wait=20s");
        boots(&harness, VM, 2);
        let second = pid(&harness, VM);
        // Nobody there listens to the button any more.
        type_line(&harness, VM, "killall acpid");
        harness.until("deafness", || {
            output_of(&harness, VM, "pidof acpid || echo none")
                .eq("none")
                .then_some(())
        });
        let grace = Duration::from_secs(2);
        harness.apply(&manifest(&harness, "graceful_shutdown: 2s"));
        assert_eq!(pid(&harness, VM), second, "taken over live");
        let begin = Instant::now();
        harness.ctl("vm stop sandbox-1 --wait=60s");
        assert!(begin.elapsed() >= grace, "{:?}", begin.elapsed());
        assert!(!is_alive(second));
        let words = output(&harness, VM);
        assert_eq!(words.matches(goodbye).count(), 1, "{words}");
        assert!(words.contains(terminated), "{words}");
        assert_eq!(vmm(&harness, VM)["last_exit"]["pid"], second);

        harness.ctl("vm start sandbox-1 --wait=20s");
        is_whole(&harness, 3);
        assert_eq!(vmm(&harness, VM)["restarts"], 0, "nothing went wrong");
        harness.ctl("delete hg sandbox --wait=60s");
    });
}

/// How its VMM ended, as soon as one other than `known` has.
#[track_caller]
fn next_end(harness: &Harness, known: &Value) -> Value {
    harness.until("another end", || {
        let end = vmm(harness, VM)["last_exit"].clone();
        (end["pid"].is_u64() && end["pid"] != known["pid"]).then_some(end)
    })
}

#[test]
fn a_linux_that_panics_is_killed_reboots_or_powers_off_comes_back_as_its_policy_requires() {
    with_daemon(|harness| {
        let _around = neighbours();
        let with = |policy: &str| manifest(&harness, &format!("restart: {policy}"));
        let is_why = |end: &Value, status: Value, why: &str| {
            assert_eq!(end["status"], status, "{end}");
            assert!(end["reason"].as_str().unwrap().contains(why), "{end}");
        };
        apply(&harness, &with("on-failure"));
        boots(&harness, VM, 1);
        type_line(&harness, VM, "echo c > /proc/sysrq-trigger");
        let end = next_end(&harness, &Value::Null);
        is_why(&end, 1.into(), "kernel panicked");
        wait_for_output(&harness, VM, "Kernel panic - not syncing: sysrq", 1);
        boots(&harness, VM, 2);
        assert_eq!(vmm(&harness, VM)["restarts"], 1);

        signal(pid(&harness, VM), Signal::KILL);
        let end = next_end(&harness, &end);
        is_why(&end, Value::Null, "killed");
        assert_eq!(end["signal"], 9);
        is_whole(&harness, 3);
        let reported = harness.messages("vm/sandbox-1", "Drift");
        for why in ["it exited with status 1", "it was killed by SIGKILL"] {
            assert!(
                reported.iter().any(|reported| reported.contains(why)),
                "{reported:?}"
            );
        }

        // That is no failure, and so it stays down until there is another policy.
        type_line(&harness, VM, "poweroff -f");
        let end = next_end(&harness, &end);
        is_why(&end, 0.into(), "powered off or rebooted");
        harness.ctl("wait vm/sandbox-1 --for stopped --timeout 20s");
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        harness.stays(Duration::from_secs(1), || vmm(&harness, VM));
        apply(&harness, &with("always"));
        boots(&harness, VM, 4);
        type_line(&harness, VM, "reboot -f");
        let end = next_end(&harness, &end);
        is_why(&end, 0.into(), "powered off or rebooted");
        boots(&harness, VM, 5);

        apply(&harness, &with("never"));
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        type_line(&harness, VM, "echo c > /proc/sysrq-trigger");
        let end = next_end(&harness, &end);
        is_why(&end, 1.into(), "kernel panicked");
        harness.until("Failed", || {
            (vmm(&harness, VM)["state"] == "failed").then_some(())
        });
        harness.refused("wait hg/sandbox --for ready --timeout 1s", 1);
        harness.stays(Duration::from_secs(1), || vmm(&harness, VM));
        let described = harness.ctl("describe vm/sandbox-1");
        assert!(described.contains("kernel panicked"), "{described}");
        harness.ctl("vm start sandbox-1 --wait=20s");
        assert!(is_alive(pid(&harness, VM)));
    });
}

/// It knows no way to say that it panicked yet, but to reset.
#[test]
fn a_linux_that_finds_no_init_is_started_again_and_again_until_it_is_mended() {
    with_daemon(|harness| {
        apply(&harness, &manifest(&harness, "cmdline: rdinit=/nowhere"));
        harness.until("restarts", || {
            let restarts = vmm(&harness, VM)["restarts"].as_u64();
            restarts.filter(|restarts| *restarts > 1)
        });
        wait_for_output(&harness, VM, "Kernel panic", 2);
        let end = next_end(&harness, &Value::Null);
        assert_eq!(end["status"], 0, "{end}");
        harness.apply(&manifest(&harness, ""));
        boots(&harness, VM, 1);
        wait_for_output(&harness, VM, &format!("GUEST {VM} gateway ok"), 1);
    });
}
