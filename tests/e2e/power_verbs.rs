//! `vm start|stop|restart|pause|resume` on a VM in every state: what is answered, what `--wait` waits for, and what happens to the process.
//! Out of scope: how guests power down (`linux`); exits that nobody requested (`guests`).

use rustix::process::Signal;
use serde_json::Value;

use slicectl::api::vm::Hypervisor;
use test_support::harness::{Harness, signal, slots, with_daemon};
use test_support::vmm;

const VM: &str = "sandbox-1";

const VERBS: [&str; 5] = ["start", "stop", "restart", "pause", "resume"];

/// A VM whose guest ignores the power button: it stops after a second, so that requests arrive while it is stopping.
pub fn manifest(harness: &Harness) -> String {
    let initrd = harness.write("deaf", "tiny=deaf");
    let program = vmm::program(Hypervisor::CloudHypervisor, harness.dir.path());
    let vmm = format!(
        "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}\n      initrd_file: {initrd}\n      graceful_shutdown: 1s\n      restart: never",
        program.expect("a program").display(),
        vmm::tiny_guest().display(),
    );
    slots(1, "").replace("hypervisor: none", &vmm)
}

fn vm(harness: &Harness) -> Value {
    harness.get(&format!("vm {VM}"))
}

/// State, pid and generation.
fn seen(harness: &Harness) -> (String, Option<u64>, u64) {
    let vm = vm(harness);
    let (status, generation) = (&vm["status"]["vmm"], &vm["metadata"]["generation"]);
    let state = status["state"].as_str().expect("a state").to_owned();
    (state, status["pid"].as_u64(), generation.as_u64().unwrap())
}

fn is_in(harness: &Harness, state: &str) {
    harness.until(state, || (seen(harness).0 == state).then_some(()));
}

/// The number of processes that have ended so far, by whatever cause.
fn ends(harness: &Harness) -> u64 {
    let events = harness.events(&format!("vm/{VM}"));
    let ends = events.iter().filter(|event| {
        let reason = event["reason"].as_str();
        matches!(reason, Some("Ended" | "Stopped"))
    });
    ends.map(|event| event["count"].as_u64().unwrap()).sum()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Running,
    Paused,
    Stopping,
    Restarting,
    Stopped,
    Failed,
}

impl State {
    /// Brings the VM there from any other.
    fn enter(self, harness: &Harness) {
        harness.try_ctl(&format!("vm resume {VM} --wait=30s"));
        harness.ctl(&format!("vm start {VM} --wait=30s"));
        let power = |words: &str| drop(harness.ctl(&format!("vm {words}")));
        match self {
            Self::Running => {}
            Self::Paused => power(&format!("pause {VM} --wait=30s")),
            Self::Stopping => {
                power(&format!("stop {VM}"));
                is_in(harness, "stopping");
            }
            Self::Restarting => power(&format!("restart {VM}")),
            Self::Stopped => power(&format!("stop {VM} --wait=30s")),
            Self::Failed => {
                let pid = seen(harness).1.expect("a pid").try_into().expect("a pid");
                signal(pid, Signal::KILL);
                is_in(harness, "failed");
            }
        }
    }
}

/// What becomes of the process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Process {
    Same,
    New,
    None,
}

/// The output (a result, or part of an error), the state and the process that the wait ends with.
type Expected = (&'static str, &'static str, Process);

fn table() -> Vec<(State, [Expected; 5])> {
    use Process::{New, None, Same};
    let unchanged = "unchanged";
    let refused = |why, state, process| (why, state, process);
    let stopped = ("stopped", "stopped", None);
    let started = ("started", "running", New);
    let restarted = ("restarted", "running", New);
    vec![
        (
            State::Running,
            [
                (unchanged, "running", Same),
                stopped,
                restarted,
                ("paused", "paused", Same),
                (unchanged, "running", Same),
            ],
        ),
        (
            State::Paused,
            [
                refused("vm/sandbox-1 is paused: resume it", "paused", Same),
                stopped,
                restarted,
                (unchanged, "paused", Same),
                ("resumed", "running", Same),
            ],
        ),
        (
            State::Stopping,
            [
                started,
                (unchanged, "stopped", None),
                restarted,
                refused("vm/sandbox-1 is stopping", "stopping", Same),
                refused("vm/sandbox-1 is stopping", "stopping", Same),
            ],
        ),
        (
            State::Restarting,
            [
                (unchanged, "running", New),
                stopped,
                (unchanged, "running", New),
                refused("vm/sandbox-1 is restarting", "", Same),
                refused("vm/sandbox-1 is restarting", "", Same),
            ],
        ),
        (
            State::Stopped,
            [
                started,
                (unchanged, "stopped", None),
                restarted,
                refused("vm/sandbox-1 is stopped: start it", "stopped", None),
                refused("vm/sandbox-1 is stopped: start it", "stopped", None),
            ],
        ),
        (
            State::Failed,
            [
                started,
                stopped,
                restarted,
                refused("vm/sandbox-1 is not running: start it", "failed", None),
                refused("vm/sandbox-1 is not running: start it", "failed", None),
            ],
        ),
    ]
}

#[test]
fn every_verb_in_every_state_answers_what_is_true_and_waits_for_it() {
    with_daemon(|harness| {
        harness.apply(&manifest(&harness));
        for (state, row) in table() {
            for (verb, expected) in VERBS.into_iter().zip(row) {
                state.enter(&harness);
                check(&harness, state, verb, expected);
            }
        }
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        assert_eq!(vm(&harness)["status"]["vmm"]["restarts"], 0);
    });
}

fn check(harness: &Harness, state: State, verb: &str, (answer, end, process): Expected) {
    let case = format!("{verb} while {state:?}");
    let (before, ended) = (seen(harness), ends(harness));
    let output = harness.try_ctl(&format!("vm {verb} {VM} --wait=30s"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    let after = seen(harness);
    match output.status.success() {
        true => assert_eq!(out, format!("vm/{VM} {answer}\n"), "{case}: {error}"),
        false => assert!(error.contains(answer), "{case}: {out}{error}"),
    }
    let is_refused = !output.status.success();
    if !end.is_empty() {
        assert_eq!(after.0, end, "{case}");
    }
    match process {
        _ if is_refused => {}
        Process::Same => assert_eq!(after.1, before.1, "{case}"),
        Process::New => {
            assert!(
                after.1.is_some() && after.1 != before.1,
                "{case}: {after:?}"
            );
        }
        Process::None => assert_eq!(after.1, None, "{case}"),
    }
    // A restart in progress changes the generation itself.
    if answer == "unchanged" && state != State::Restarting {
        assert_eq!(after.2, before.2, "{case}");
    }
    // One stop at most, and only if a process was stopped.
    let was_running = before.1.is_some();
    let stops = u64::from(was_running && process != Process::Same && !is_refused);
    assert_eq!(ends(harness) - ended, stops, "{case}");
}

/// The second of two requests, the first of which is not waited for.
#[test]
fn of_two_requests_in_a_row_the_second_is_waited_for_and_nothing_drifts() {
    with_daemon(|harness| {
        harness.apply(&manifest(&harness));
        for first in VERBS {
            for second in VERBS {
                let case = format!("{first}, then {second}");
                State::Running.enter(&harness);
                let (before, ended) = (seen(&harness), ends(&harness));
                harness.ctl(&format!("vm {first} {VM}"));
                let output = harness.try_ctl(&format!("vm {second} {VM} --wait=30s"));
                let after = seen(&harness);
                let stops = matches!(first, "stop" | "restart");
                if !output.status.success() {
                    let error = String::from_utf8_lossy(&output.stderr);
                    let is_expected = (stops && matches!(second, "pause" | "resume"))
                        || (first == "pause" && second == "start");
                    assert!(is_expected, "{case}: {error}");
                    continue;
                }
                let (state, new) = match second {
                    "start" => ("running", stops),
                    "stop" => ("stopped", false),
                    "restart" => ("running", true),
                    "pause" => ("paused", false),
                    _ => ("running", false),
                };
                assert_eq!(after.0, state, "{case}");
                if state != "stopped" {
                    assert_eq!(after.1 != before.1, new, "{case}: {before:?} {after:?}");
                }
                let count = u64::from(new || state == "stopped");
                assert_eq!(ends(&harness) - ended, count, "{case}");
            }
        }
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
    });
}

#[test]
fn a_guest_that_another_program_paused_is_resumed_and_one_that_runs_is_unchanged() {
    with_daemon(|harness| {
        harness.apply(&manifest(&harness));
        let socket = vm(&harness)["status"]["vmm"]["api_socket"].clone();
        let socket = socket.as_str().expect("a socket").to_owned();
        let request = |verb: &str| {
            test_support::kernel::run(&format!(
                "curl -sf --unix-socket {socket} -X PUT http://localhost/api/v1/vm.{verb}"
            ))
        };
        assert_eq!(
            harness.ctl(&format!("vm resume {VM} --wait=30s")),
            format!("vm/{VM} unchanged\n")
        );
        request("pause");
        let before = seen(&harness);
        assert_eq!(
            harness.ctl(&format!("vm resume {VM} --wait=30s")),
            format!("vm/{VM} resumed\n")
        );
        assert_eq!(seen(&harness).1, before.1);
        let info = test_support::kernel::run(&format!(
            "curl -sf --unix-socket {socket} http://localhost/api/v1/vm.info"
        ));
        assert!(info.contains("Running"), "{info}");
        assert_eq!(
            harness.ctl(&format!("vm resume {VM} --wait=30s")),
            format!("vm/{VM} unchanged\n")
        );
    });
}

/// Without `--wait` the state is not reached yet: only the request is reported.
#[test]
fn without_a_wait_only_the_request_is_reported() {
    with_daemon(|harness| {
        harness.apply(&manifest(&harness));
        let requests = [
            ("stop", "stopped"),
            ("start", "ready"),
            ("restart", "ready"),
            ("pause", "paused"),
            ("resume", "ready"),
        ];
        for (verb, goal) in requests {
            let answer = harness.ctl(&format!("vm {verb} {VM}"));
            assert_eq!(answer, format!("vm/{VM} {verb} requested\n"));
            harness.ctl(&format!("wait vm/{VM} --for {goal} --timeout 30s"));
        }
    });
}

/// The reason that `wait` gives at its timeout is the state that the VM is in.
#[test]
fn a_wait_that_times_out_names_the_state_of_the_vm() {
    with_daemon(|harness| {
        harness.apply(&manifest(&harness));
        let wait =
            |goal: &str| harness.refused(&format!("wait vm/{VM} --for {goal} --timeout 300ms"), 1);
        let cases: [(State, &[(&str, &str)]); 4] = [
            (
                State::Running,
                &[
                    (
                        "stopped",
                        "it is running: stop it with slicectl vm stop sandbox-1",
                    ),
                    (
                        "paused",
                        "it is running: pause it with slicectl vm pause sandbox-1",
                    ),
                ],
            ),
            (
                State::Paused,
                &[
                    (
                        "stopped",
                        "it is paused: stop it with slicectl vm stop sandbox-1",
                    ),
                    ("ready", "Vmm is False (Paused)"),
                ],
            ),
            (
                State::Stopped,
                &[
                    (
                        "paused",
                        "it is stopped: start it with slicectl vm start sandbox-1",
                    ),
                    ("ready", "Vmm is False (Stopped)"),
                ],
            ),
            (
                State::Failed,
                &[
                    ("paused", "Vmm is False (Failed)"),
                    ("stopped", "Vmm is False (Failed)"),
                ],
            ),
        ];
        for (state, goals) in cases {
            state.enter(&harness);
            for (goal, reason) in goals {
                let error = wait(goal);
                assert!(error.contains(reason), "{state:?}, {goal}: {error}");
            }
        }
    });
}
