//! The life of a Linux guest as its owner sees it: what it notices of a pause, a stop and a policy, and how it ends.
//! Out of scope: the same with dozens of tiny guests (`tests/tiny/life.rs`); what guests reach (`guests`).

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::guests::{initrd, kernel};
use crate::support::house::{self, House, inhabited, signal};
use crate::support::kernel::{Neighbour, attempt};
use crate::support::linux::{
    answer, ask, boots, guests, hear, pid, question, said, says, tell, vmm,
};
use crate::support::tiny::is_alive;

const VM: &str = "sandbox-1";

/// One isolated VM with these lines in its group; it may reach `net` and not `lan`.
fn manifest(house: &House, lines: &str) -> String {
    let probes = "ping gateway 169.254.100.1\nping lan 192.168.1.10\nping net 203.0.113.10\n";
    let slots = house::slots(1, "drop: [192.168.1.0/24]");
    guests(&slots, &kernel(), &initrd(house, probes), lines)
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
fn is_whole(house: &House, times: usize) {
    boots(house, VM, times);
    hear(house, VM, "what it reaches", |said| {
        let since = said.split(&format!("GUEST {VM} ready")).nth(times)?;
        ["gateway ok", "net ok", "lan blocked"]
            .iter()
            .all(|words| since.contains(&format!("GUEST {VM} {words}")))
            .then_some(())
    });
}

/// Applied, and not waited for: a VM that may stay down is never Ready.
fn apply(house: &House, text: &str) {
    let file = house.write("manifest.yaml", text);
    house.ctl(&format!("apply -f {file}"));
}

/// Whether it answers the host, where that may ask.
fn answers(ip: &str) -> bool {
    attempt(&format!("busybox ping -c 1 -W 1 {ip}"))
        .status
        .success()
}

/// Seconds since it has booted, by its own clock.
fn uptime(house: &House) -> f64 {
    let text = ask(house, VM, "cut -d' ' -f1 /proc/uptime");
    text.parse().expect("seconds")
}

#[test]
fn a_paused_linux_hears_nothing_its_clock_stands_still_and_it_goes_on_in_the_middle() {
    inhabited(|mut house| {
        // On a bridge, where the host may ask whether it answers.
        let slots = house::bridge_group("sandbox", 1, "bridge: brvm0\ngateway: 192.168.137.1/24");
        let probes = "ping host 192.168.137.1\nspoof liar 192.168.137.99 192.168.137.1\n";
        house.apply(&guests(&slots, &kernel(), &initrd(&house, probes), ""));
        for words in ["host ok", "liar blocked"] {
            says(&house, VM, &format!("GUEST {VM} {words}"), 1);
        }
        let network = house.get("vm sandbox-1")["status"]["network"].clone();
        let ip = network["ip"].as_str().unwrap();
        let told = ask(&house, VM, "cat /proc/cmdline");
        let address = format!("ip={ip}::192.168.137.1:255.255.255.0:{VM}:");
        assert!(told.contains(&address), "{told}");
        let has = ask(&house, VM, "ip -4 -o addr show dev eth0");
        assert!(has.contains(&format!("inet {ip}/24 ")), "{has}");
        house.until("an answer", || answers(ip).then_some(()));

        // Something that only this shell knows, and a guest that is never silent.
        tell(&house, VM, "word=$(hostname)-of-$$");
        tell(&house, VM, "while echo tick; do sleep 0.2; done &");
        says(&house, VM, "tick\r\n", 3);
        let before = (pid(&house, VM), ask(&house, VM, "echo $word"));
        let (began, up) = (Instant::now(), uptime(&house));
        house.ctl("vm pause sandbox-1 --wait=20s");
        let paused = Instant::now();
        assert!(!answers(ip));
        let unheard = question(&house, VM, "echo $word");
        house.stays(Duration::from_secs(2), || said(&house, VM));
        house.kill();
        house.start();
        house.ctl("wait vm/sandbox-1 --for paused --timeout 20s");
        assert!(!answers(ip), "a restart of sliced does not wake it");
        house.stays(Duration::from_millis(500), || said(&house, VM));
        let pause = paused.elapsed();
        house.ctl("vm resume sandbox-1 --wait=20s");
        house.until("an answer", || answers(ip).then_some(()));
        assert_eq!(answer(&house, VM, &unheard), before.1, "heard afterwards");
        let (up, took) = (uptime(&house) - up, began.elapsed());
        // Clocks of host and guest are not quite the same.
        let most = (took - pause).as_secs_f64() + 0.5;
        assert!(
            up > 0.0 && up < most,
            "{up} s older, {took:?} with {pause:?} of pause"
        );
        assert_eq!(pid(&house, VM), before.0);
        assert_eq!(said(&house, VM).matches("ready").count(), 1, "booted once");
        assert_eq!(vmm(&house, VM)["restarts"], 0);
    });
}

#[test]
fn a_linux_says_goodbye_when_it_is_stopped_and_one_that_will_not_is_terminated_in_the_end() {
    inhabited(|house| {
        let _around = neighbours();
        house.apply(&manifest(&house, "graceful_shutdown: 60s"));
        is_whole(&house, 1);
        let first = pid(&house, VM);
        let begin = Instant::now();
        house.ctl("vm stop sandbox-1 --wait=60s");
        assert!(begin.elapsed() < Duration::from_secs(50));
        assert!(!is_alive(first));
        let (goodbye, terminated) = ("GUEST sandbox-1 powers down", "terminating on signal 15");
        let words = said(&house, VM);
        assert!(
            words.contains(goodbye) && words.contains("Power down"),
            "{words}"
        );
        assert!(!words.contains(terminated), "{words}");
        let stopped = vmm(&house, VM);
        assert_eq!(stopped["state"], "stopped");
        let exit = &stopped["last_exit"];
        assert_eq!((&exit["pid"], &exit["status"]), (&first.into(), &0.into()));
        assert!(exit["said"].to_string().contains("ower"), "{exit}");

        house.ctl("vm start sandbox-1 --wait=20s");
        boots(&house, VM, 2);
        let second = pid(&house, VM);
        // Nobody there listens to the button any more.
        tell(&house, VM, "killall acpid");
        house.until("deafness", || {
            ask(&house, VM, "pidof acpid || echo none")
                .eq("none")
                .then_some(())
        });
        let grace = Duration::from_secs(2);
        house.apply(&manifest(&house, "graceful_shutdown: 2s"));
        assert_eq!(pid(&house, VM), second, "taken over live");
        let begin = Instant::now();
        house.ctl("vm stop sandbox-1 --wait=60s");
        assert!(begin.elapsed() >= grace, "{:?}", begin.elapsed());
        assert!(!is_alive(second));
        let words = said(&house, VM);
        assert_eq!(words.matches(goodbye).count(), 1, "{words}");
        assert!(words.contains(terminated), "{words}");
        assert_eq!(vmm(&house, VM)["last_exit"]["pid"], second);

        house.ctl("vm start sandbox-1 --wait=20s");
        is_whole(&house, 3);
        assert_eq!(vmm(&house, VM)["restarts"], 0, "nothing went wrong");
        house.ctl("delete hg sandbox --wait=60s");
    });
}

/// How its VMM ended, as soon as one other than `known` has.
#[track_caller]
fn next_end(house: &House, known: &Value) -> Value {
    house.until("another end", || {
        let end = vmm(house, VM)["last_exit"].clone();
        (end["pid"].is_u64() && end["pid"] != known["pid"]).then_some(end)
    })
}

#[test]
fn a_linux_that_panics_is_killed_reboots_or_powers_off_comes_back_as_its_policy_says() {
    inhabited(|house| {
        let _around = neighbours();
        let with = |policy: &str| manifest(&house, &format!("restart: {policy}"));
        let is_why = |end: &Value, status: Value, why: &str| {
            assert_eq!(end["status"], status, "{end}");
            assert!(end["reason"].as_str().unwrap().contains(why), "{end}");
        };
        apply(&house, &with("on-failure"));
        boots(&house, VM, 1);
        tell(&house, VM, "echo c > /proc/sysrq-trigger");
        let end = next_end(&house, &Value::Null);
        is_why(&end, 1.into(), "kernel panicked");
        says(&house, VM, "Kernel panic - not syncing: sysrq", 1);
        boots(&house, VM, 2);
        assert_eq!(vmm(&house, VM)["restarts"], 1);

        signal(pid(&house, VM), Signal::KILL);
        let end = next_end(&house, &end);
        is_why(&end, Value::Null, "killed");
        assert_eq!(end["signal"], 9);
        is_whole(&house, 3);
        let told = house.messages("vm/sandbox-1", "Drift");
        for why in ["it exited with status 1", "it was killed by SIGKILL"] {
            assert!(told.iter().any(|told| told.contains(why)), "{told:?}");
        }

        // That is no failure, and so it stays down until there is another policy.
        tell(&house, VM, "poweroff -f");
        let end = next_end(&house, &end);
        is_why(&end, 0.into(), "powered off or rebooted");
        house.ctl("wait vm/sandbox-1 --for stopped --timeout 20s");
        house.ctl("wait hg/sandbox --for ready --timeout 20s");
        house.stays(Duration::from_secs(1), || vmm(&house, VM));
        apply(&house, &with("always"));
        boots(&house, VM, 4);
        tell(&house, VM, "reboot -f");
        let end = next_end(&house, &end);
        is_why(&end, 0.into(), "powered off or rebooted");
        boots(&house, VM, 5);

        apply(&house, &with("never"));
        house.ctl("wait hg/sandbox --for ready --timeout 20s");
        tell(&house, VM, "echo c > /proc/sysrq-trigger");
        let end = next_end(&house, &end);
        is_why(&end, 1.into(), "kernel panicked");
        house.until("Failed", || {
            (vmm(&house, VM)["state"] == "failed").then_some(())
        });
        house.refused("wait hg/sandbox --for ready --timeout 1s", 1);
        house.stays(Duration::from_secs(1), || vmm(&house, VM));
        let described = house.ctl("describe vm/sandbox-1");
        assert!(described.contains("kernel panicked"), "{described}");
        house.ctl("vm start sandbox-1 --wait=20s");
        assert!(is_alive(pid(&house, VM)));
    });
}

/// It knows no way to say that it panicked yet, but to reset.
#[test]
fn a_linux_that_finds_no_init_is_started_again_and_again_until_it_is_mended() {
    inhabited(|house| {
        apply(&house, &manifest(&house, "cmdline: rdinit=/nowhere"));
        house.until("restarts", || {
            let restarts = vmm(&house, VM)["restarts"].as_u64();
            restarts.filter(|restarts| *restarts > 1)
        });
        says(&house, VM, "Kernel panic", 2);
        let end = next_end(&house, &Value::Null);
        assert_eq!(end["status"], 0, "{end}");
        house.apply(&manifest(&house, ""));
        boots(&house, VM, 1);
        says(&house, VM, &format!("GUEST {VM} gateway ok"), 1);
    });
}
