//! The lives of VMs: what people tell them, how they end, what follows, and what a daemon that dies in between makes of it.
//! Out of scope: the same decisions without a host (`src/reconcile/life.rs`).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use test_support::harness::{self, Harness, signal, with_daemon};
use test_support::kernel::run;
use test_support::tiny::{self, Tiny, is_alive};

/// `count` VMs with these lines in their group, whose guests have been told these words; ready.
fn apply(harness: &Harness, count: u32, lines: &str, words: &str) -> Vec<Tiny> {
    write(harness, count, lines, words);
    let guests: Vec<Tiny> = tiny::all(harness).into_values().collect();
    for guest in &guests {
        harness.until("the guest", || (guest.times_ready() > 0).then_some(()));
    }
    harness.ctl("wait hg/sandbox --for ready --timeout 30s");
    tiny::all(harness).into_values().collect()
}

fn write(harness: &Harness, count: u32, lines: &str, words: &str) {
    // On a bridge, where the host may ask whether they answer.
    let slots = harness::bridge_group("sandbox", count, "bridge: brvm0\ngateway: 192.168.137.1/24");
    let guests = tiny::guests(&slots, words);
    let text = guests.replace(
        "hypervisor: qemu",
        &format!("hypervisor: qemu\n      {lines}"),
    );
    let file = harness.write("manifest.yaml", &text);
    harness.ctl(&format!("apply -f {file}"));
}

fn vm(harness: &Harness, name: &str) -> Value {
    harness.get(&format!("vm {name}"))
}

fn state(harness: &Harness, name: &str) -> String {
    let vm = vm(harness, name);
    vm["status"]["vmm"]["state"]
        .as_str()
        .expect("a state")
        .to_owned()
}

fn pid(harness: &Harness, name: &str) -> u32 {
    harness.until("a process", || tiny::pids(harness)[name])
}

/// Whether its guest answers.
fn answers(vm: &Value) -> bool {
    let ip = vm["status"]["network"]["ip"].as_str().expect("an address");
    let ping = format!("busybox ping -c 1 -W 1 {ip} >/dev/null && echo yes || echo no");
    run(&ping).contains("yes")
}

/// Says one thing to a QEMU, past `sliced`.
fn qmp(vm: &Value, command: &str) {
    let socket = vm["status"]["vmm"]["api_socket"].as_str().unwrap();
    let mut stream = UnixStream::connect(socket).expect("QMP");
    let mut received = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    received.read_line(&mut line).unwrap();
    for command in ["qmp_capabilities", command] {
        writeln!(stream, "{{\"execute\":\"{command}\"}}").unwrap();
        received.read_line(&mut line).unwrap();
    }
}

fn last_exit(harness: &Harness, name: &str) -> Value {
    vm(harness, name)["status"]["vmm"]["last_exit"].clone()
}

#[test]
fn a_paused_vm_is_silent_stays_so_when_the_daemon_dies_and_goes_on_where_it_was() {
    with_daemon(|mut harness| {
        let pid_before = pid_of(&apply(&harness, 1, "restart: always", "")[0]);
        let running = vm(&harness, "sandbox-1");
        harness.until("an answer", || answers(&running).then_some(()));
        harness.ctl("vm pause sandbox-1 --wait=20s");
        let paused = vm(&harness, "sandbox-1");
        assert!(!answers(&paused));
        assert_eq!(paused["power"], "paused");
        assert_eq!(paused["status"]["vmm"]["pid"], pid_before);
        assert!(harness.ctl("get vms").contains("Paused"));
        // It is as somebody wants it, so nobody waits for its group.
        harness.ctl("wait hg/sandbox --for ready --timeout 5s");
        assert_eq!(
            harness.ctl("vm pause sandbox-1"),
            "vm/sandbox-1 unchanged\n"
        );

        harness.kill();
        harness.start();
        harness.ctl("wait vm/sandbox-1 --for paused --timeout 20s");
        assert!(!answers(&paused), "a restart does not wake it");
        // Somebody else does: that is drift, and seen at the next look.
        qmp(&paused, "cont");
        harness.kill();
        harness.start();
        harness.until("held again", || (!answers(&paused)).then_some(()));
        let reported = harness.until("the event", || {
            harness.messages("vm/sandbox-1", "Drift").pop()
        });
        assert!(reported.contains("pause the guest"), "{reported}");
        // The state is lost: the record of the VM tells.
        harness.stop();
        std::fs::remove_dir_all(harness.state()).unwrap();
        harness.start();
        harness.ctl("wait vm/sandbox-1 --for paused --timeout 20s");
        assert!(!answers(&paused));

        harness.ctl("vm resume sandbox-1 --wait=20s");
        let resumed = vm(&harness, "sandbox-1");
        assert_eq!(resumed["status"]["vmm"]["pid"], pid_before);
        harness.until("an answer", || answers(&resumed).then_some(()));
        // A held guest cannot hear its power button; it powers off all the same.
        harness.ctl("vm pause sandbox-1 --wait=20s");
        let guest = tiny::all(&harness).into_values().next().unwrap();
        harness.ctl("vm stop sandbox-1 --wait=20s");
        assert!(guest.output().contains("powers off"), "{}", guest.output());
    });
}

fn pid_of(guest: &Tiny) -> u32 {
    guest.pid.expect("a process")
}

#[test]
fn a_vm_is_stopped_started_and_restarted_and_keeps_its_address_and_its_log() {
    with_daemon(|mut harness| {
        let guest = apply(&harness, 1, "restart: always", "").remove(0);
        let first = pid(&harness, "sandbox-1");
        harness.ctl("vm stop sandbox-1 --wait=20s");
        assert!(!is_alive(first));
        let stopped = vm(&harness, "sandbox-1");
        assert_eq!(stopped["status"]["vmm"]["state"], "stopped");
        assert_eq!(stopped["status"]["vmm"]["pid"], Value::Null);
        assert_eq!(stopped["status"]["ready"], false);
        let exit = last_exit(&harness, "sandbox-1");
        assert_eq!((&exit["pid"], &exit["status"]), (&first.into(), &0.into()));
        assert!(
            exit["reason"].as_str().unwrap().contains("it was stopped"),
            "{exit}"
        );
        assert!(exit["said"].to_string().contains("powers off"), "{exit}");
        assert!(harness.ctl("logs sandbox-1").contains("powers off"));
        assert!(harness.ctl("describe vm/sandbox-1").contains("Last exit"));
        assert!(harness.ctl("get vms").contains("Stopped"));
        assert!(harness.ctl("get leases").contains(&guest.ip));
        harness.ctl("wait hg/sandbox --for ready --timeout 5s");
        let why = harness.refused("vm pause sandbox-1", 1);
        assert!(why.contains("slicectl vm start sandbox-1"), "{why}");

        // It stays down whatever becomes of the daemon.
        harness.kill();
        harness.start();
        harness.ctl("wait vm/sandbox-1 --for stopped --timeout 20s");
        harness.stays(Duration::from_secs(1), || state(&harness, "sandbox-1"));
        assert!(harness.ctl("logs sandbox-1").contains("powers off"));

        harness.ctl("vm start sandbox-1 --wait=20s");
        let second = pid(&harness, "sandbox-1");
        assert_ne!(first, second);
        assert_eq!(
            vm(&harness, "sandbox-1")["status"]["network"]["ip"],
            guest.ip.as_str()
        );
        harness.until("its guest", || {
            answers(&vm(&harness, "sandbox-1")).then_some(())
        });

        harness.ctl("vm restart sandbox-1 --wait=20s");
        let third = pid(&harness, "sandbox-1");
        assert!(!is_alive(second) && third != second);
        let restarted = vm(&harness, "sandbox-1");
        assert_eq!(restarted["power"], Value::Null, "running again");
        assert_eq!(restarted["status"]["network"]["ip"], guest.ip.as_str());
        assert_eq!(
            restarted["status"]["vmm"]["restarts"], 0,
            "nothing went wrong"
        );
        harness.until("its guest", || {
            answers(&vm(&harness, "sandbox-1")).then_some(())
        });

        let why = harness.refused("vm stop sandbox-2", 1);
        assert!(why.contains("did you mean vm/sandbox-1?"), "{why}");
        harness.ctl("vm stop sandbox-1 --wait=20s");
        harness.ctl("delete hg sandbox --wait=20s");
        assert_eq!(run(&format!("ls {}/vm", harness.run.display())), "");
    });
}

#[test]
fn a_guest_that_ignores_its_button_has_its_time_holds_up_nobody_and_loses_none_of_it_to_a_crash() {
    with_daemon(|mut harness| {
        let grace = Duration::from_secs(6);
        let guests = apply(&harness, 2, "graceful_shutdown: 6s", "tiny=deaf");
        let deaf = &guests[0];
        let begin = Instant::now();
        harness.ctl("vm stop sandbox-1");
        harness.until("it is asked", || {
            deaf.output().contains("ignores the button").then_some(())
        });
        harness.until("its state", || {
            (state(&harness, "sandbox-1") == "stopping").then_some(())
        });
        // Killed between asking and ending; the time that was given is not given again.
        harness.kill();
        harness.start();
        // Meanwhile the other one is served.
        harness.ctl("vm pause sandbox-2 --wait=3s");
        assert!(
            is_alive(pid_of(deaf)) && begin.elapsed() < grace,
            "{:?}",
            begin.elapsed()
        );
        harness.ctl("wait vm/sandbox-1 --for stopped --timeout 20s");
        let took = begin.elapsed();
        assert!(took >= grace && took < 2 * grace, "{took:?}");
        assert!(!is_alive(pid_of(deaf)));
        assert_eq!(
            deaf.output().matches("ignores the button").count(),
            1,
            "asked once"
        );
        // Shortened while it runs: taken over live, and without asking at all.
        let other = pid(&harness, "sandbox-2");
        write(&harness, 2, "graceful_shutdown: 0s", "tiny=deaf");
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        assert_eq!(pid(&harness, "sandbox-2"), other, "the same process");
        let begin = Instant::now();
        harness.ctl("vm stop sandbox-2 --wait=20s");
        assert!(begin.elapsed() < grace, "{:?}", begin.elapsed());
        assert!(!guests[1].output().contains("ignores"));
    });
}

#[test]
fn a_vm_that_ends_is_started_again_as_its_policy_requires_and_a_change_of_policy_is_noticed() {
    with_daemon(|harness| {
        write(&harness, 1, "restart: on-failure", "tiny=off");
        let guest = tiny::all(&harness).into_values().next().unwrap();
        harness.ctl("wait vm/sandbox-1 --for stopped --timeout 30s");
        assert!(guest.output().contains("powers off by itself"));
        harness.ctl("wait hg/sandbox --for ready --timeout 5s");
        let exit = last_exit(&harness, "sandbox-1");
        assert_eq!(exit["status"], 0, "{exit}");
        harness.stays(Duration::from_secs(1), || state(&harness, "sandbox-1"));
        assert!(
            harness
                .ctl("logs sandbox-1")
                .contains("powers off by itself")
        );
        let reported = harness.messages("vm/sandbox-1", "Ended");
        assert_eq!(
            reported,
            ["it exited with status 0: the guest powered off or rebooted"]
        );
        // Started by hand it runs once more.
        harness.ctl("vm start sandbox-1");
        harness.until("its second end", || {
            let exit_now = last_exit(&harness, "sandbox-1");
            (exit_now["pid"] != exit["pid"]).then_some(())
        });
        harness.ctl("wait vm/sandbox-1 --for stopped --timeout 20s");
        assert_eq!(vm(&harness, "sandbox-1")["status"]["vmm"]["restarts"], 0);
        // From now on it is started again and again.
        write(&harness, 1, "restart: always", "tiny=off");
        harness.until("restarts", || {
            let restarts = vm(&harness, "sandbox-1")["status"]["vmm"]["restarts"].as_u64();
            restarts.filter(|restarts| *restarts > 1)
        });
    });
}

#[test]
fn a_vm_that_is_killed_is_a_failure_even_if_nobody_saw_it() {
    with_daemon(|mut harness| {
        apply(&harness, 1, "restart: never", "");
        signal(pid(&harness, "sandbox-1"), Signal::KILL);
        harness.until("failed", || {
            (state(&harness, "sandbox-1") == "failed").then_some(())
        });
        let exit = last_exit(&harness, "sandbox-1");
        assert_eq!(
            (&exit["signal"], &exit["status"]),
            (&9.into(), &Value::Null)
        );
        assert!(
            harness
                .refused("wait hg/sandbox --for ready --timeout 1s", 1)
                .contains("Failed")
        );

        write(&harness, 1, "restart: on-failure", "");
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        let now = vm(&harness, "sandbox-1");
        assert_eq!(now["status"]["vmm"]["restarts"], 1);
        assert_eq!(
            now["status"]["vmm"]["last_exit"], exit,
            "once known, never lost"
        );

        // While nobody looks.
        let second = pid(&harness, "sandbox-1");
        harness.kill();
        signal(second, Signal::KILL);
        harness.start();
        harness.until("another process", || {
            tiny::pids(&harness)["sandbox-1"].filter(|pid| *pid != second)
        });
        let exit = last_exit(&harness, "sandbox-1");
        assert_eq!(
            (&exit["signal"], &exit["status"]),
            (&Value::Null, &Value::Null)
        );
        assert!(
            exit["reason"].as_str().unwrap().contains("unknown status"),
            "{exit}"
        );
        assert_eq!(exit["pid"], second);
    });
}
