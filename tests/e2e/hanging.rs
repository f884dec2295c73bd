//! Programs in `PATH` that hang, talk without end, stop or leave children behind: whatever they do, they end in time, what is said
//! of their VM is true meanwhile, and everybody else is served.
//! Out of scope: CNI plugins (`cni_faults`), the runner alone (its unit tests).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use test_support::harness::{self, Harness, Place, group, slots};
use test_support::kernel::run;

/// The specification's.
const BOUND: Duration = Duration::from_secs(2);

/// An `iptables-restore` before the real one in the daemon's `PATH`, which does in the namespaces listed in `only` what `hang` says.
struct Restore(PathBuf);

impl Restore {
    fn lay(harness: &mut Harness) -> Self {
        let dir = harness.dir.path().join("bin");
        fs::create_dir(&dir).expect("a directory");
        let real = run("command -v iptables-restore");
        let (real, place) = (real.trim(), dir.display());
        let script = format!(
            "#!/bin/sh
             if [ \"$1\" = --version ] && [ -e {place}/version ]; then . {place}/version; fi
             if [ -e {place}/files ]; then sleep 0.2; ulimit -n >{place}/files; fi
             if [ -e {place}/hang ] && grep -qF \"$(readlink /proc/$$/ns/net)\" {place}/only; then . {place}/hang; fi
             exec {real} \"$@\"\n"
        );
        let program = dir.join("iptables-restore");
        fs::write(&program, script).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
        let path = std::env::var("PATH").expect("PATH");
        harness.env.push(("PATH", format!("{place}:{path}")));
        Self(dir)
    }

    fn hang(&self, how: &str, places: &[&Place]) {
        let inodes: Vec<String> = places
            .iter()
            .map(|place| run(&inside(place, "readlink /proc/self/ns/net")))
            .collect();
        fs::write(self.0.join("only"), inodes.concat()).expect("written");
        fs::write(self.0.join("hang.new"), how).expect("written");
        fs::rename(self.0.join("hang.new"), self.0.join("hang")).expect("renamed");
    }

    fn heal(&self) {
        fs::remove_file(self.0.join("hang")).expect("removed");
    }

    /// Processes that it, or what it has started, left behind.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let name = entry.file_name();
            let ours = fs::read(entry.path().join("environ")).unwrap_or_default();
            let place = self.0.display().to_string();
            let ours = String::from_utf8_lossy(&ours).into_owned();
            if ours.contains("SLICE_HELPER=") && ours.contains(&place) {
                let argv = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let argv = String::from_utf8_lossy(&argv).replace('\0', " ");
                left.push(format!("{} {argv}", name.to_string_lossy()));
            }
        }
        left
    }
}

fn inside(place: &Place, command: &str) -> String {
    format!("ip netns exec {} {command}", place.name)
}

fn rules(place: &Place) -> String {
    run(&inside(place, "iptables -S"))
}

fn flush(place: &Place) {
    run(&inside(place, "iptables -F"));
}

/// A VM's condition of that type, and the VM's generation.
fn condition(harness: &Harness, vm: &str, kind: &str) -> (Value, u64) {
    let found = harness.get(&format!("vm {vm}"));
    let conditions = found["status"]["conditions"].as_array();
    let of_kind = |c: &&Value| c["type"] == kind;
    let condition = conditions.and_then(|all| all.iter().find(of_kind));
    let generation = found["metadata"]["generation"].as_u64().unwrap_or(0);
    (condition.cloned().unwrap_or_default(), generation)
}

/// Never True of a generation whose rules were not read back.
fn is_honest((condition, generation): &(Value, u64)) -> bool {
    condition["status"] != "True"
        || condition["observed_generation"].as_u64() == Some(*generation)
        || condition["observedGeneration"].as_u64() == Some(*generation)
}

fn with_restore(args: &[&str], test: impl FnOnce(Harness, Restore) + Send) {
    harness::empty(|mut harness| {
        let restore = Restore::lay(&mut harness);
        harness.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        harness.start();
        test(harness, restore);
    });
}

#[test]
fn a_commit_that_hangs_is_unknown_since_then_ends_in_time_and_holds_up_nobody_else() {
    with_restore(&["--filter-deadline", "3s"], |harness, restore| {
        // Each variant has VMs of its own: one is not repaired again and again.
        harness.apply(&slots(14, "drop: [\"192.168.1.0/24\"]"));
        // How it hangs; whether the program ends by itself, without having done anything.
        let table = [
            ("trap '' TERM INT HUP; sleep 600", false),
            ("while :; do echo endless >&2; done", false),
            ("kill -STOP $$; sleep 600", false),
            (
                "setsid sh -c 'setsid sleep 600 & sleep 600' & sleep 600",
                false,
            ),
            ("sleep 600 & exit 0", true),
            (
                "setsid sleep 600 >/dev/null 2>&1 </dev/null & exec setsid sleep 600",
                true,
            ),
            ("yes >&2 & exit 1", true),
        ];
        for (at, (how, ends)) in table.into_iter().enumerate() {
            let name = format!("sandbox-{}", 2 * at + 1);
            let first = harness.place(&name);
            let second = harness.place(&format!("sandbox-{}", 2 * at + 2));
            let (right, beside) = (rules(&first), rules(&second));
            restore.hang(how, &[&first]);
            flush(&first);
            if !ends {
                let (unknown, _) = harness.until("Unknown", || {
                    let found = condition(&harness, &name, "Firewall");
                    (found.0["status"] == "Unknown").then_some(found)
                });
                let message = unknown["message"].as_str().expect("a message");
                for word in ["iptables-restore runs since 20", "deadline 3s"] {
                    assert!(message.contains(word), "{how}: {message}");
                }
                assert_eq!(
                    harness.get(&format!("vm {name}"))["status"]["ready"],
                    false,
                    "{how}"
                );
            }
            flush(&second);
            harness.within(BOUND, "the other one is repaired", || {
                (rules(&second) == beside).then_some(())
            });
            let (failed, _) = harness.until("False", || {
                let found = condition(&harness, &name, "Firewall");
                (found.0["status"] == "False").then_some(found)
            });
            if !ends {
                let message = failed["message"].as_str().expect("a message");
                assert!(message.contains("deadline of 3s"), "{how}: {message}");
            }
            restore.heal();
            harness.until("it is repaired", || (rules(&first) == right).then_some(()));
            harness.ctl(&format!("wait vm/{name} --for ready --timeout 90s"));
            harness.until("nobody is left", || {
                let left = restore.left();
                // What has closed its pipes and left its group without a deadline is found at the daemon's end.
                let left = left.iter().filter(|left| !left.contains("setsid"));
                (ends || left.count() == 0).then_some(())
            });
        }
        let mut harness = harness;
        harness.stop();
        assert_eq!(restore.left(), [""; 0]);
    });
}

#[test]
fn a_policy_that_is_tightened_while_commits_hang_is_never_reported_as_enforced_and_the_old_one_does()
 {
    with_restore(&["--filter-deadline", "4s"], |harness, restore| {
        harness.apply(&slots(2, "drop: [\"192.168.1.0/24\"]"));
        let (first, second) = (harness.place("sandbox-1"), harness.place("sandbox-2"));
        let before = rules(&first);
        let (_, old) = condition(&harness, "sandbox-1", "Firewall");
        restore.hang("sleep 600", &[&first]);
        let file = harness.write("m.yaml", &slots(2, "drop: [\"10.0.0.0/8\"]"));
        harness.ctl(&format!("apply -f {file}"));
        harness.within(BOUND, "the other one has the new policy", || {
            rules(&second).contains("10.0.0.0/8").then_some(())
        });
        let begin = Instant::now();
        let mut unknown = false;
        while begin.elapsed() < Duration::from_secs(6) {
            let found = condition(&harness, "sandbox-1", "Firewall");
            assert!(is_honest(&found), "{found:?}");
            assert!(found.1 == old || found.0["status"] != "True", "{found:?}");
            unknown |= found.0["status"] == "Unknown"
                && found.0["message"]
                    .as_str()
                    .is_some_and(|m| m.contains("runs since"));
            assert_eq!(rules(&first), before, "all or nothing");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(unknown);
        restore.heal();
        harness.ctl("wait vm/sandbox-1 --for ready --timeout 90s");
        assert!(rules(&first).contains("10.0.0.0/8"));
    });
}

#[test]
fn more_vms_hang_than_there_are_workers_and_all_others_are_served() {
    let args = ["--concurrency", "2", "--filter-deadline", "20s"];
    with_restore(&args, |mut harness, restore| {
        let both = format!(
            "{}---\n{}",
            slots(6, ""),
            group("other", 1, "169.254.200.0/22", "")
        );
        harness.apply(&both);
        harness.ctl("wait hg/other --for ready --timeout 30s");
        let stuck: Vec<Place> = (1..=6)
            .map(|n| harness.place(&format!("sandbox-{n}")))
            .collect();
        let other = harness.place("other-1");
        let right = rules(&other);
        restore.hang("trap '' TERM; sleep 600", &stuck.iter().collect::<Vec<_>>());
        stuck.iter().for_each(flush);
        for vm in 1..=6 {
            harness.until("Unknown", || {
                let found = condition(&harness, &format!("sandbox-{vm}"), "Firewall");
                (found.0["status"] == "Unknown").then_some(())
            });
        }
        flush(&other);
        harness.within(BOUND, "the other one is repaired", || {
            (rules(&other) == right).then_some(())
        });
        let (status, took) = harness.stop();
        assert!(status.success(), "{status}");
        assert!(took < Duration::from_millis(2500), "{took:?}");
        assert_eq!(restore.left(), [""; 0], "they ended with the daemon");
        restore.heal();
        harness.start();
        harness.ctl("wait hg/sandbox hg/other --for ready --timeout 60s");
    });
}

#[test]
fn a_program_that_does_not_report_its_version_ends_the_daemon_with_a_sentence() {
    harness::empty(|mut harness| {
        let restore = Restore::lay(&mut harness);
        fs::write(restore.0.join("version"), "trap '' TERM; sleep 600").expect("written");
        let begin = Instant::now();
        let mut child = harness.sliced().spawn().expect("sliced");
        let status = child.wait().expect("its status");
        assert_eq!(status.code(), Some(1));
        assert!(begin.elapsed() < Duration::from_secs(15));
        let output = harness.log();
        assert!(
            output.contains("did not end within its deadline of 5s"),
            "{output}"
        );
        assert_eq!(restore.left(), [""; 0]);
    });
}

#[test]
fn what_the_daemon_starts_has_the_limit_of_files_that_the_daemon_was_started_with() {
    harness::empty(|mut harness| {
        let restore = Restore::lay(&mut harness);
        // The limit is set soon after the start of a program (`host::process::files`).
        fs::write(restore.0.join("files"), "").expect("written");
        harness.files = Some((700, 4096));
        harness.start();
        let limits = fs::read_to_string(format!("/proc/{}/limits", harness.pid())).expect("limits");
        let raised = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let soft = raised.and_then(|line| line.split_whitespace().nth(3));
        assert_eq!(soft, Some("4096"), "{raised:?}");
        harness.apply(&slots(1, ""));
        let files = fs::read_to_string(restore.0.join("files")).expect("files");
        assert_eq!(files.trim(), "700");
    });
}
