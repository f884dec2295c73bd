//! Real guests under QEMU: what they reach, what restarts them, what leaves them alone.
//! Out of scope: the Vmm stage alone (`tests/vmm`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

pub use test_support::harness::pids;
use test_support::harness::{self, Harness, signal, with_daemon};
use test_support::kernel::{Neighbour, run};

pub fn guest_dir() -> PathBuf {
    let dir = std::env::var_os("SLICE_GUEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest"),
        PathBuf::from,
    );
    assert!(
        dir.join("vmlinuz").exists() && dir.join("initrd").exists(),
        "there is no guest in {0}: make it with `examples/guest/build.sh {0}`, or name another place in SLICE_GUEST_DIR",
        dir.display()
    );
    dir
}

/// The base guest with these probes.
pub fn initrd(harness: &Harness, probes: &str) -> String {
    let words = harness.write("probes", probes);
    let out = harness.dir.path().join("initrd").display().to_string();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/guest/with-probes.sh");
    let made = Command::new(script)
        .arg(guest_dir().join("initrd"))
        .args([&words, &out])
        .status();
    assert!(made.expect("with-probes.sh").success());
    out
}

fn guests(count: u32, kernel: &str, initrd: &str, network: &str) -> String {
    let slots = harness::slots(count, network);
    let qemu =
        format!("hypervisor: qemu\n      kernel_file: {kernel}\n      initrd_file: {initrd}");
    slots.replace("hypervisor: none", &qemu)
}

pub fn kernel() -> String {
    guest_dir().join("vmlinuz").display().to_string()
}

/// Until the guest has printed it on its console, `times` times.
pub fn wait_for_output(harness: &Harness, vm: &str, words: &str, times: usize) {
    harness.until(&format!("{vm} says {words}"), || {
        let log = harness.try_ctl(&format!("logs {vm}")).stdout;
        (String::from_utf8_lossy(&log).matches(words).count() >= times).then_some(())
    });
}

fn is_alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

#[test]
fn two_guests_reach_what_they_may_through_live_changes_and_the_death_of_the_daemon() {
    with_daemon(|mut harness| {
        let _lan = Neighbour::join("lan0", "192.168.1.1/24", "192.168.1.10/24");
        let net = Neighbour::join("net0", "203.0.113.1/24", "203.0.113.10/24");
        let probes = "ping lan 192.168.1.10\nping net 203.0.113.10\nping host 203.0.113.1\n\
            ping 169.254.100.1 169.254.100.1\nping 169.254.100.2 169.254.100.2\n\
            ping 169.254.100.5 169.254.100.5\nping 169.254.100.6 169.254.100.6\n";
        let image = initrd(&harness, probes);
        let manifest = |network: &str| guests(2, &kernel(), &image, network);
        harness.save("sandbox.yaml", &manifest("drop: [192.168.1.0/24]"));
        harness.ctl("wait hg/sandbox --for ready --timeout 60s");
        for (vm, other) in [("sandbox-1", "sandbox-2"), ("sandbox-2", "sandbox-1")] {
            let (own, other) = (harness.place(vm), harness.place(other));
            for words in ["net ok", "lan blocked", "host blocked"] {
                wait_for_output(&harness, vm, &format!("GUEST {vm} {words}"), 1);
            }
            for (address, verdict) in [
                (own.gateway, "ok"),
                (other.gateway, "blocked"),
                (other.ip, "blocked"),
            ] {
                wait_for_output(&harness, vm, &format!("GUEST {vm} {address} {verdict}"), 1);
            }
        }
        let before = pids(&harness);
        assert_eq!(before.len(), 2);
        let vm = harness.get("vm sandbox-1");
        assert_eq!(vm["status"]["vmm"]["state"], "running");
        assert!(Path::new(vm["status"]["vmm"]["api_socket"].as_str().unwrap()).exists());
        assert_eq!(net.run("ip -o link show eth0").lines().count(), 1);

        // Live: what was allowed is cut, what was dropped opens, and no guest notices but by its packets.
        harness.save("sandbox.yaml", &manifest("drop: [203.0.113.0/24]"));
        wait_for_output(&harness, "sandbox-1", "GUEST sandbox-1 net blocked", 1);
        wait_for_output(&harness, "sandbox-1", "GUEST sandbox-1 lan ok", 1);
        assert_eq!(pids(&harness), before);

        // kill -9: the traffic goes on, and the guests are the same ones afterwards.
        let world = harness::world_to_the_last_handle();
        harness.kill();
        let mut flows = Command::new("sh");
        let pings = flows
            .args([
                "-c",
                "ip netns exec lan0 timeout 3 tcpdump -l -n -i eth0 -c 2 icmp 2>&1",
            ])
            .output()
            .unwrap();
        assert!(
            String::from_utf8_lossy(&pings.stdout).contains("echo request"),
            "{pings:?}"
        );
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        harness.stays(Duration::from_secs(1), || harness.messages("", "Drift"));
        assert_eq!(pids(&harness), before);
        assert_eq!(harness::world_to_the_last_handle(), world);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);

        // SIGTERM within 2 s, and the guests run on.
        let (status, took) = harness.stop();
        assert!(
            status.success() && took < Duration::from_secs(2),
            "{status} {took:?}"
        );
        assert!(before.iter().all(|pid| is_alive(*pid)));

        // The state is lost, too.
        std::fs::remove_dir_all(harness.state()).unwrap();
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        assert_eq!(pids(&harness), before);

        // Asked politely, both power down.
        let logs: Vec<PathBuf> = ["sandbox-1", "sandbox-2"]
            .iter()
            .map(|vm| {
                harness.get(&format!("vm {vm}"))["status"]["vmm"]["log"]
                    .as_str()
                    .unwrap()
                    .into()
            })
            .collect();
        let kept: Vec<std::fs::File> = logs
            .iter()
            .map(|log| std::fs::File::open(log).unwrap())
            .collect();
        std::fs::remove_file(harness.conf().join("sandbox.yaml")).unwrap();
        harness.ctl("wait hg/sandbox vm/sandbox-1 vm/sandbox-2 --for deleted --timeout 30s");
        for mut log in kept {
            let mut text = String::new();
            let _ = std::io::Read::read_to_string(&mut log, &mut text);
            assert!(text.contains("powers down"), "{text}");
        }
        assert!(!before.iter().any(|pid| is_alive(*pid)));
        assert_eq!(run("ls /run/netns | grep -c slice || true").trim(), "0");
        assert_eq!(run(&format!("ls {}/vm", harness.run.display())), "");
    });
}

#[test]
fn guests_on_a_bridge_have_their_addresses_and_reach_each_other_and_are_reached() {
    with_daemon(|harness| {
        let probes = "ping host 192.168.137.1\nping one 192.168.137.20\nping two 192.168.137.21\n";
        let network = "bridge: brvm0\ngateway: 192.168.137.1/24\naddresses: [192.168.137.20/24, 192.168.137.21/24]";
        let slots = harness::bridge_group("web", 2, network);
        let qemu = format!(
            "hypervisor: qemu\n      kernel_file: {}\n      initrd_file: {}",
            kernel(),
            initrd(&harness, probes)
        );
        harness.apply(&slots.replace("hypervisor: none", &qemu));
        for vm in ["web-1", "web-2"] {
            for reached in ["host", "one", "two"] {
                wait_for_output(&harness, vm, &format!("GUEST {vm} {reached} ok"), 1);
            }
        }
        for address in ["192.168.137.20", "192.168.137.21"] {
            run(&format!("busybox ping -c 1 -W 5 {address}"));
        }
        let before = pids(&harness);
        // A TAP that is gone is another one: the VMM is started at it.
        let network = &harness.get("vm web-1")["status"]["network"];
        run(&format!("ip link del {}", network["tap"].as_str().unwrap()));
        harness.until("another VMM", || {
            let now = pids(&harness);
            (now.len() == 2 && now[0] != before[0] && is_alive(now[0])).then_some(())
        });
        wait_for_output(&harness, "web-1", "GUEST web-1 two ok", 1);
        assert_eq!(pids(&harness)[1], before[1], "the other one stays");
        harness.ctl("delete hg web --wait=30s");
        // The host network is another key: it follows the group.
        harness.within(Duration::from_secs(1), "the bridge is gone", || {
            (!run("ip -o link").contains("brvm0")).then_some(())
        });
    });
}

#[test]
fn a_killed_vmm_comes_back_and_the_event_names_how_it_ended() {
    with_daemon(|harness| {
        harness.apply(&guests(1, &kernel(), &initrd(&harness, ""), ""));
        let before = pids(&harness)[0];
        let uid = harness.place("sandbox-1").uid;
        signal(before, Signal::KILL);
        harness.within(Duration::from_secs(2), "a new VMM", || {
            pids(&harness)
                .into_iter()
                .find(|pid| *pid != before && is_alive(*pid))
        });
        let reported = harness.until("the event", || {
            harness.messages("vm/sandbox-1", "Drift").pop()
        });
        assert!(
            reported.contains("start the VMM again: it was killed by SIGKILL"),
            "{reported}"
        );
        assert_eq!(harness.place("sandbox-1").uid, uid);
    });
}

#[test]
fn a_guest_whose_tap_or_namespace_is_taken_away_is_started_on_the_new_one() {
    with_daemon(|harness| {
        harness.apply(&guests(
            1,
            &kernel(),
            &initrd(&harness, "ping gateway 169.254.100.1\n"),
            "",
        ));
        wait_for_output(&harness, "sandbox-1", "GUEST sandbox-1 gateway ok", 1);
        let place = harness.place("sandbox-1");
        let mut before = pids(&harness)[0];
        for sabotage in [
            format!("ip netns exec {} ip link del tap0", place.name),
            format!("ip netns del {}", place.name),
        ] {
            run(&sabotage);
            before = harness.until("another VMM", || {
                pids(&harness)
                    .into_iter()
                    .find(|pid| *pid != before && is_alive(*pid))
            });
            harness.ctl("wait vm/sandbox-1 --for ready --timeout 30s");
            wait_for_output(&harness, "sandbox-1", "GUEST sandbox-1 gateway ok", 1);
            let theirs = std::fs::read_link(format!("/proc/{before}/ns/net")).unwrap();
            let ours = run(&format!(
                "nsenter --net={} readlink /proc/self/ns/net",
                place.netns
            ));
            assert_eq!(theirs.to_str(), Some(ours.trim()), "{sabotage}");
        }
    });
}

#[test]
fn a_kernel_that_does_not_boot_backs_off_with_a_clear_condition() {
    with_daemon(|harness| {
        let bad = harness.write("vmlinuz", &"no kernel at all\n".repeat(1000));
        let file = harness.write("m.yaml", &guests(1, &bad, &initrd(&harness, ""), ""));
        harness.ctl(&format!("apply -f {file}"));
        let condition = |harness: &Harness| {
            let vm = harness.get("vm sandbox-1");
            let conditions = vm["status"]["conditions"].as_array()?.clone();
            conditions
                .into_iter()
                .find(|c| c["type"] == "Vmm" && c["status"] == "False")
        };
        let found = harness.until("a condition", || {
            condition(&harness).filter(|c| !c["message"].as_str().unwrap_or_default().is_empty())
        });
        assert!(
            ["CrashLoop", "ActionFailed", "Invalid", "NotConverging"]
                .contains(&found["reason"].as_str().unwrap()),
            "{found}"
        );
        // 2.5 s of it are a handful of starts, not hundreds.
        let starts = || {
            harness.log().matches("cannot").count()
                + harness
                    .events("vm/sandbox-1")
                    .iter()
                    .filter_map(|e| e["count"].as_u64())
                    .sum::<u64>() as usize
        };
        let before = starts();
        std::thread::sleep(Duration::from_millis(2500));
        assert!(
            starts() - before <= 8,
            "{} in 2.5 s:\n{}",
            starts() - before,
            harness.ctl("events")
        );
        // Mended, it boots at once: a new intent clears the backoff.
        harness.write("m.yaml", &guests(1, &kernel(), &initrd(&harness, ""), ""));
        harness.ctl(&format!("apply -f {file} --wait=60s"));
        wait_for_output(&harness, "sandbox-1", "GUEST sandbox-1 ready", 1);
    });
}

#[test]
fn a_group_deleted_while_its_guests_boot_is_gone_soon_and_leaves_nothing() {
    with_daemon(|harness| {
        harness.save(
            "sandbox.yaml",
            &guests(2, &kernel(), &initrd(&harness, ""), ""),
        );
        harness.until("a VMM", || (!pids(&harness).is_empty()).then_some(()));
        let born = pids(&harness);
        std::fs::remove_file(harness.conf().join("sandbox.yaml")).unwrap();
        harness.ctl("wait hg/sandbox vm/sandbox-1 vm/sandbox-2 --for deleted --timeout 40s");
        assert!(!born.iter().any(|pid| is_alive(*pid)));
        assert_eq!(
            run(&format!("ls {}/vm /run/netns", harness.run.display()))
                .matches('-')
                .count(),
            0
        );
    });
}
