//! The daemon as a process: how it begins, ends, rests, and says what is wrong.
//! Out of scope: what it makes.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use test_support::harness::{self, Harness, empty, slots, with_daemon};
use test_support::kernel::run;
use test_support::tiny;

fn output(harness: &Harness) -> Output {
    harness.run_to_end(harness.sliced())
}

/// It ends with 1 and one line of error, which has these words in it.
fn refuses(harness: &Harness, words: &[&str]) {
    let output = output(harness);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let errors: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("ERROR") || line.contains("panicked"))
        .collect();
    assert_eq!(errors.len(), 1, "{text}");
    for word in words {
        assert!(errors[0].contains(word), "{word}: {text}");
    }
}

#[test]
fn sigterm_ends_it_within_2_s_and_slots_remain() {
    with_daemon(|mut harness| {
        harness.apply(&slots(4, ""));
        let world = harness::world_to_the_last_handle();
        let (status, took) = harness.stop();
        assert!(status.success());
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(harness::world_to_the_last_handle(), world);
    });
}

#[test]
fn once_converges_and_exits_with_0_or_when_a_file_is_broken_with_1() {
    empty(|mut harness| {
        harness.args = vec!["--once".into()];
        harness.save("sandbox.yaml", &slots(3, ""));
        let done = output(&harness);
        assert_eq!(
            done.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        assert_eq!(run("ls /run/netns").lines().count(), 3);
        let world = harness::world_to_the_last_handle();
        assert_eq!(output(&harness).status.code(), Some(0));
        assert_eq!(harness::world_to_the_last_handle(), world);
        harness.save("broken.yaml", "config: [");
        assert_eq!(output(&harness).status.code(), Some(1));
        assert_eq!(harness::world_to_the_last_handle(), world);
        std::fs::remove_file(harness.conf().join("broken.yaml")).unwrap();
        std::fs::remove_file(harness.conf().join("sandbox.yaml")).unwrap();
        assert_eq!(output(&harness).status.code(), Some(0));
        assert_eq!(run("ls /run/netns"), "");
    });
}

#[test]
fn once_exits_with_1_when_a_slot_cannot_be_built() {
    empty(|mut harness| {
        harness.args = vec!["--once".into()];
        let manifest = slots(1, "").replace(
            "hypervisor: none",
            "hypervisor: qemu\n      kernel_file: /nowhere/vmlinuz",
        );
        harness.save("sandbox.yaml", &manifest);
        assert_eq!(output(&harness).status.code(), Some(1));
    });
}

#[test]
fn at_rest_it_logs_nothing_and_uses_almost_no_processor_time() {
    empty(|mut harness| {
        // The directories above the manifests are watched, and other tests create files in /tmp all the time; /run is this test's own.
        harness.dir = tempfile::tempdir_in("/run").unwrap();
        std::fs::create_dir(harness.conf()).unwrap();
        harness.env.push(("SLICE_LOG", "slicectl=debug".into()));
        harness.start();
        harness.save("sandbox.yaml", &slots(16, "drop: [192.168.1.0/24]"));
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        // What building has stirred up is looked at once more, when that may be; and then it rests, and goes on resting: 3 s
        // alone might lie between two ticks.
        harness.until("3 s of rest", || {
            let (spent, text) = stirred(&harness);
            (spent <= REST && text.is_empty()).then_some(())
        });
        // Others read what is watched: every process that starts opens files in /etc.
        let (manifest, ended) = (harness.conf().join("sandbox.yaml"), AtomicBool::new(false));
        let [(spent, first), (more, second)] = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    for path in [Path::new("/etc/passwd"), &manifest] {
                        std::fs::read(path).unwrap();
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let windows = [stirred(&harness), stirred(&harness)];
            ended.store(true, Ordering::Relaxed);
            windows
        });
        assert_eq!(first + &second, "");
        // A daemon that polls does so in both windows; what else runs on this machine makes a wake-up more expensive in one.
        assert!(spent.min(more) <= REST, "{spent:?}, {more:?}");
    });
}

/// 0.2 % of 3 s.
const REST: Duration = Duration::from_millis(6);

/// What is done in the 3 s from now on: processor time, and words in the log.
fn stirred(harness: &Harness) -> (Duration, String) {
    let (log, spent) = (harness.log(), processor_time(harness.pid()));
    std::thread::sleep(Duration::from_secs(3));
    let spent = processor_time(harness.pid()) - spent;
    (spent, harness.log()[log.len()..].to_owned())
}

/// What a process has spent so far, in threads that have ended, too (clock_getcpuclockid(3)).
fn processor_time(pid: u32) -> Duration {
    let mut clock = 0;
    let mut spent = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let pid = libc::pid_t::try_from(pid).unwrap();
    // SAFETY: it writes one clock id to where there is room for one.
    let found = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    assert_eq!(found, 0, "no clock of process {pid}");
    // SAFETY: it writes one time to where there is room for one.
    let read = unsafe { libc::clock_gettime(clock, &raw mut spent) };
    assert_eq!(read, 0, "the clock of process {pid} cannot be read");
    let seconds = Duration::from_secs(spent.tv_sec.try_into().unwrap());
    seconds + Duration::from_nanos(spent.tv_nsec.try_into().unwrap())
}

#[test]
fn log_lines_are_json_on_request_and_the_filter_is_obeyed() {
    empty(|mut harness| {
        harness.args = vec!["--log-format".into(), "json".into()];
        harness.start();
        harness.apply(&slots(1, ""));
        harness.stop();
        let log = harness.log();
        assert!(log.lines().count() > 1);
        for line in log.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(line["level"].is_string() && line["timestamp"].is_string());
        }
        harness.env.push(("SLICE_LOG", "off".into()));
        harness.start();
        harness.stop();
        assert_eq!(harness.log(), log);
    });
}

#[test]
fn a_missing_iptables_gives_one_clear_sentence() {
    empty(|mut harness| {
        harness.env.push(("PATH", "/nowhere".into()));
        refuses(&harness, &["iptables"]);
    });
}

#[test]
fn without_root_there_is_one_clear_sentence() {
    empty(|harness| {
        use std::os::unix::process::CommandExt;
        run(&format!(
            "chmod -R a+rwX {}; chmod a+rwx /run",
            harness.dir.path().display()
        ));
        let output = harness
            .sliced()
            .stderr(Stdio::piped())
            .uid(65534)
            .gid(65534)
            .output();
        // Where the build's own folder is closed to others the program cannot even be started.
        let output = match output {
            Ok(output) => output,
            Err(_) => {
                let copy = harness.dir.path().join("sliced");
                run(&format!(
                    "chmod a+rx {} && install {} {}",
                    harness.dir.path().display(),
                    env!("CARGO_BIN_EXE_sliced"),
                    copy.display()
                ));
                let mut command = Command::new(&copy);
                command
                    .arg("--state-dir")
                    .arg(harness.state())
                    .arg("--config-dir")
                    .arg(harness.conf());
                command
                    .arg("--run-dir")
                    .arg(&harness.run)
                    .uid(65534)
                    .gid(65534)
                    .output()
                    .unwrap()
            }
        };
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.matches("ERROR").count(), 1, "{text}");
        assert!(text.contains("root"), "{text}");
        assert!(!text.contains("panicked"), "{text}");
    });
}

#[test]
fn a_full_disk_under_the_state_is_reported_and_what_runs_goes_on() {
    with_daemon(|mut harness| {
        harness.stop();
        run(&format!(
            "mount -t tmpfs -o size=3m tmpfs {}",
            harness.state().display()
        ));
        harness.start();
        harness.apply(&slots(2, ""));
        let world = harness::world_to_the_last_handle();
        run(&format!(
            "dd if=/dev/zero of={}/fill bs=64k 2>/dev/null || true",
            harness.state().display()
        ));
        let manifest = harness.write("more.yaml", &slots(40, ""));
        let output = harness.try_ctl(&format!("apply -f {manifest} --wait=3s"));
        assert_eq!(
            harness::world_to_the_last_handle().contains("sandbox-1@"),
            world.contains("sandbox-1@")
        );
        assert!(!harness.log().contains("panicked"), "{}", harness.log());
        if !output.status.success() {
            assert!(!output.stderr.is_empty());
        }
        run(&format!("rm {}/fill", harness.state().display()));
        harness.kill();
        harness.start();
        harness.apply(&slots(2, ""));
        assert_eq!(harness.vms(), ["sandbox-1", "sandbox-2"]);
    });
}

#[test]
fn a_state_folder_that_cannot_be_written_gives_one_clear_sentence() {
    empty(|harness| {
        run(&format!(
            "mount -t tmpfs -o ro tmpfs {}",
            harness.state().display()
        ));
        refuses(&harness, &["state", "Read-only"]);
    });
}

#[test]
fn a_daemon_that_is_to_go_first_does_so_and_what_it_starts_does_not() {
    with_daemon(|mut harness| {
        harness.kill();
        let mut nice = Command::new("setsid");
        nice.args(["nice", "-n", "-5"])
            .arg(env!("CARGO_BIN_EXE_sliced"));
        let plain = harness.sliced();
        nice.envs(
            plain
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        );
        nice.args(plain.get_args()).stderr(Stdio::null());
        let mut daemon = nice.spawn().unwrap();
        harness.until("it answers", || {
            harness.try_ctl("version").status.success().then_some(())
        });
        let of = |pid: u32, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        let nice_of = |pid| -> i32 {
            let stat = of(pid, "stat").unwrap();
            let after_the_name = stat.rsplit_once(") ").unwrap().1;
            after_the_name.split(' ').nth(16).unwrap().parse().unwrap()
        };
        if !rustix::process::geteuid().is_root() || nice_of(daemon.id()) == 0 {
            let is_ci = std::env::var_os("CI").is_some();
            assert!(!is_ci, "this test needs root, and CI has to give it");
            eprintln!("NOT RUN: only the host's root may go first");
            daemon.kill().unwrap();
            daemon.wait().unwrap();
            return;
        }
        assert_eq!(nice_of(daemon.id()), -5);
        // Not every kernel shares out to sessions.
        if let Ok(group) = of(daemon.id(), "autogroup") {
            assert!(group.ends_with(" nice -5\n"), "{group}");
        }
        harness.apply(&tiny::guests(&harness::slots(1, ""), ""));
        let pid = tiny::pids(&harness)["sandbox-1"].unwrap();
        assert_eq!(nice_of(pid), 0);
        if let Ok(group) = of(pid, "autogroup") {
            assert!(group.ends_with(" nice 0\n"), "{group}");
        }
        harness.ctl("delete hg sandbox --wait=20s");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    });
}

/// A daemon in a container finds the kernel's settings read-only, all of them or a part.
#[test]
fn doctor_and_the_condition_name_settings_that_cannot_be_written() {
    for below in ["/proc/sys", "/proc/sys/net"] {
        empty(|mut harness| {
            harness.start();
            let healthy = String::from_utf8(harness.try_ctl("doctor").stdout).unwrap();
            assert!(
                healthy.contains("a network namespace was created"),
                "{healthy}"
            );
            run(&format!(
                "mount --bind {below} {below} && mount -o remount,ro,bind {below}"
            ));
            let output = harness.try_ctl("doctor");
            let reported = String::from_utf8(output.stdout).unwrap();
            let row = reported
                .lines()
                .find(|line| line.contains("network namespaces"));
            let row = row.unwrap_or_else(|| panic!("{reported}"));
            assert!(
                row.contains("cannot write settings in a new namespace"),
                "{below}: {row}"
            );
            assert!(
                row.contains("Read-only file system") && row.contains(below),
                "{below}: {row}"
            );
            assert!(!output.status.success(), "{below}");
            let file = harness.write("m.yaml", &slots(1, ""));
            harness.ctl(&format!("apply -f {file}"));
            let reported = harness.until("the condition", || {
                let reported = harness.get("vm sandbox-1")["status"]["conditions"].to_string();
                let events = harness.try_ctl("events").stdout;
                let events = String::from_utf8_lossy(&events).into_owned();
                [reported, events]
                    .into_iter()
                    .find(|reported| reported.contains("Read-only file system"))
            });
            assert!(reported.contains("sysctl"), "{reported}");
        });
    }
}

/// A log that takes nothing: its device is full, its file system is, nobody reads the pipe, or it is closed.
#[test]
fn a_log_that_takes_nothing_holds_nothing_up() {
    for (what, log) in [
        ("a full device", "ln -s /dev/full LOG"),
        (
            "a full file system",
            "mkdir LOGS; mount -t tmpfs -o size=64k logs LOGS; dd if=/dev/zero of=LOGS/log bs=1 2>/dev/null || true; ln -s LOGS/log LOG",
        ),
        ("a pipe that nobody reads", "mkfifo LOG"),
    ] {
        eprintln!("{what}");
        empty(|mut harness| {
            let dir = harness.dir.path().display().to_string();
            run(&log
                .replace("LOGS", &format!("{dir}/logs"))
                .replace("LOG", &format!("{dir}/log")));
            let path = harness.dir.path().join("log");
            // Read and write: it has a reader from the start.
            let reader = std::fs::File::options().read(true).write(true).open(&path);
            harness.env.push(("SLICE_LOG", "trace".into()));
            harness.start();
            harness.ctl(&format!(
                "apply -f {} --wait=30s",
                harness.write("m.yaml", &slots(2, ""))
            ));
            let closed = slots(2, "drop: [\"203.0.113.0/24\"]");
            harness.ctl(&format!(
                "apply -f {} --wait=30s",
                harness.write("m.yaml", &closed)
            ));
            let place = harness.place("sandbox-1");
            let rules = run(&format!("ip netns exec {} iptables-save", place.name));
            assert!(rules.contains("203.0.113.0/24"), "{what}: {rules}");
            let (status, took) = harness.stop();
            assert!(
                status.success() && took < Duration::from_secs(5),
                "{what}: {status} {took:?}"
            );
            drop(reader);
        });
    }
}
