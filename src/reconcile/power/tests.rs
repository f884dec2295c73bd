//! The power decision for each exit, and stored checkpoints of earlier versions.
//! Out of scope: observing exits.

use super::*;

fn identity(pid: u32) -> Identity {
    Identity {
        pid,
        start: 7,
        boot: "b".into(),
    }
}

fn end(exit: Exit) -> ProcessExit {
    ProcessExit {
        process: identity(1),
        exit,
        at: Timestamp::UNIX_EPOCH,
        cause: ExitCause::of(Hypervisor::Qemu, exit, false),
        console: Vec::new(),
        handled: false,
    }
}

fn exited(exit: Exit) -> VmmCheckpoint {
    let mut checkpoint = VmmCheckpoint::default();
    checkpoint.record_start(started(1));
    checkpoint.record_exit(end(exit));
    checkpoint
}

fn started(pid: u32) -> StartedProcess {
    StartedProcess {
        confined_by: None,
        identity: identity(pid),
        started_at: Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn the_restart_policy_decides_by_the_exit_status_and_an_unknown_exit_is_a_failure() {
    use Exit::{Code, Signal, Unknown};
    use Restart::{Always, Never, OnFailure};
    let is_stop = |reason| move |decision: PowerDecision| matches!(decision, PowerDecision::Stop(r, _) if r == reason);
    let is_run = |found| found == PowerDecision::Run;
    for exit in [Code(0), Code(1), Signal(9), Unknown] {
        assert!(is_run(exited(exit).evaluate_exit(Power::Running, Always)));
    }
    let is_stopped = is_stop(Reason::Stopped);
    assert!(is_stopped(
        exited(Code(0)).evaluate_exit(Power::Running, Never)
    ));
    assert!(is_stopped(
        exited(Code(0)).evaluate_exit(Power::Running, OnFailure)
    ));
    for exit in [Code(1), Signal(9), Unknown] {
        assert!(is_run(
            exited(exit).evaluate_exit(Power::Running, OnFailure)
        ));
        assert!(is_stop(Reason::Failed)(
            exited(exit).evaluate_exit(Power::Running, Never)
        ));
    }
}

#[test]
fn a_requested_power_state_takes_precedence_over_the_restart_policy() {
    let checkpoint = exited(Exit::Code(0));
    let decision = checkpoint.evaluate_exit(Power::Stopped, Restart::Always);
    assert!(matches!(decision, PowerDecision::Stop(Reason::Stopped, _)));
    assert_eq!(
        checkpoint.evaluate_exit(Power::Restarting, Restart::Never),
        PowerDecision::Restart
    );
    let mut started = checkpoint;
    started.answer();
    assert_eq!(
        started.evaluate_exit(Power::Running, Restart::Never),
        PowerDecision::Run
    );
}

#[test]
fn a_vm_is_deleted_when_its_guest_ended_by_itself_and_after_nothing_else() {
    use Exit::{Code, Signal, Unknown};
    use Hypervisor::{CloudHypervisor, Firecracker, Qemu};
    let table = [
        (Qemu, Code(0), false, true),
        (Firecracker, Code(0), false, true),
        (CloudHypervisor, Code(0), false, true),
        // It is unknown: started again, work that runs once would run twice.
        (Qemu, Unknown, false, true),
        (Firecracker, Unknown, false, true),
        (CloudHypervisor, Unknown, false, true),
        // A panic, or a failure of the VMM.
        (Qemu, Code(1), false, false),
        (Firecracker, Code(1), false, false),
        (CloudHypervisor, Code(1), false, false),
        (Qemu, Signal(9), false, false),
        (Firecracker, Signal(15), false, false),
        (CloudHypervisor, Signal(11), false, false),
        // sliced stopped it.
        (Qemu, Code(0), true, false),
        (Firecracker, Code(0), true, false),
        (CloudHypervisor, Unknown, true, false),
    ];
    for (hypervisor, exit, stopped, is_deleted) in table {
        let mut checkpoint = VmmCheckpoint::default();
        checkpoint.record_start(started(1));
        checkpoint.record_exit(ProcessExit {
            cause: ExitCause::of(hypervisor, exit, stopped),
            handled: stopped,
            ..end(exit)
        });
        let what = format!("{hypervisor}, {exit}, stopped: {stopped}");
        for restart in [Restart::Always, Restart::OnFailure, Restart::Never] {
            let policy = |delete_on_exit| ExitPolicy {
                restart,
                delete_on_exit,
            };
            let decide = |checkpoint: &VmmCheckpoint, power, delete_on_exit| {
                checkpoint.evaluate_exit(power, policy(delete_on_exit))
            };
            let deletes = |checkpoint: &VmmCheckpoint, power| {
                matches!(decide(checkpoint, power, true), PowerDecision::Delete(_))
            };
            assert_eq!(deletes(&checkpoint, Power::Running), is_deleted, "{what}");
            // It may have been paused when the daemon was killed.
            assert_eq!(deletes(&checkpoint, Power::Paused), is_deleted, "{what}");
            // The stored exit decides after a reboot as well, and a user's request takes precedence.
            let rebooted = checkpoint.clone().after_reboot();
            assert_eq!(deletes(&rebooted, Power::Running), is_deleted, "{what}");
            assert!(!deletes(&checkpoint, Power::Stopped), "{what}");
            assert!(!deletes(&checkpoint, Power::Restarting), "{what}");
            let mut answered = checkpoint.clone();
            answered.answer();
            assert!(!deletes(&answered, Power::Running), "{what}");
            // Nothing else depends on it.
            if !is_deleted {
                assert_eq!(
                    decide(&checkpoint, Power::Running, true),
                    decide(&checkpoint, Power::Running, false),
                    "{what}"
                );
            }
        }
    }
    // It runs: it has not ended.
    let mut running = VmmCheckpoint::default();
    running.record_start(started(1));
    let policy = ExitPolicy {
        restart: Restart::Never,
        delete_on_exit: true,
    };
    assert_eq!(
        running.evaluate_exit(Power::Running, policy),
        PowerDecision::Run
    );
    assert_eq!(
        running.after_reboot().evaluate_exit(Power::Running, policy),
        PowerDecision::Run
    );
}

#[test]
fn an_exit_is_handled_once_and_only_restarts_after_unrequested_exits_are_counted() {
    let mut checkpoint = exited(Exit::Code(1));
    checkpoint.record_start(started(2));
    checkpoint.record_start(started(2));
    assert_eq!(checkpoint.restarts, 1);
    // The next exit is evaluated again.
    let mut next = checkpoint.clone();
    next.record_exit(end(Exit::Code(1)));
    assert!(matches!(
        next.evaluate_exit(Power::Running, Restart::Never),
        PowerDecision::Stop(Reason::Failed, _)
    ));
    // A requested stop is not counted.
    checkpoint.record_exit(ProcessExit {
        handled: true,
        ..end(Exit::Code(0))
    });
    checkpoint.record_start(started(3));
    assert_eq!(checkpoint.restarts, 1);
}

#[test]
fn the_message_of_an_exit_names_the_signal_once() {
    for (exit, message) in [
        (
            Exit::Signal(9),
            "it was killed by SIGKILL: possibly the OOM killer",
        ),
        (
            Exit::Signal(11),
            "it was killed by SIGSEGV: the VMM crashed",
        ),
        (
            Exit::Signal(15),
            "it was killed by SIGTERM: another program terminated it",
        ),
        (Exit::Signal(31), "it was killed by SIGSYS: the VMM crashed"),
        (
            Exit::Signal(64),
            "it was killed by signal 64: the VMM crashed",
        ),
        (
            Exit::Code(1),
            "it exited with status 1: the guest's kernel panicked, or the VMM failed",
        ),
    ] {
        assert_eq!(end(exit).message(), message);
    }
}

#[test]
fn the_message_of_a_requested_stop_has_no_unknown_status() {
    let stopped = |exit| ProcessExit {
        cause: ExitCause::of(Hypervisor::Qemu, exit, true),
        ..end(exit)
    };
    assert_eq!(stopped(Exit::Unknown).message(), "it was stopped");
    assert_eq!(
        stopped(Exit::Code(0)).message(),
        "it exited with status 0: it was stopped"
    );
    assert!(end(Exit::Unknown).message().contains("unknown status"));
}

#[test]
fn a_vm_that_had_exited_stays_stopped_after_a_reboot_and_one_that_ran_is_started() {
    let exited = exited(Exit::Code(0)).after_reboot();
    assert!(matches!(
        exited.evaluate_exit(Power::Running, Restart::Never),
        PowerDecision::Stop(..)
    ));
    let mut running = VmmCheckpoint::default();
    running.record_start(started(1));
    let rebooted = running.after_reboot();
    assert_eq!(
        rebooted.evaluate_exit(Power::Running, Restart::Never),
        PowerDecision::Run
    );
}

#[test]
fn a_cause_is_stored_by_name_and_the_text_of_an_earlier_version_is_kept() {
    for (stored, cause) in [
        ("Stopped", ExitCause::Stopped),
        ("it was stopped", ExitCause::Stopped),
        ("Killed", ExitCause::Killed),
        (
            "somebody killed it",
            ExitCause::Text("somebody killed it".into()),
        ),
    ] {
        let decoded: ExitCause = serde_json::from_value(stored.into()).unwrap();
        assert_eq!(decoded, cause, "{stored}");
        let encoded = serde_json::to_value(&decoded).unwrap();
        let again: ExitCause = serde_json::from_value(encoded).unwrap();
        assert_eq!(again, cause, "{stored}");
    }
    let stopped = ExitCause::of(Hypervisor::Qemu, Exit::Code(0), true);
    assert_eq!(serde_json::to_value(stopped).unwrap(), "Stopped");
}

#[test]
fn a_checkpoint_of_an_earlier_version_is_decoded() {
    let old = r#"{"identity":{"pid":1,"start":7,"boot":"b"},"started_at":"1970-01-01T00:00:00Z"}"#;
    let decoded: VmmCheckpoint = serde_json::from_str(old).unwrap();
    assert_eq!(decoded.process, Some(started(1)));
    for checkpoint in [exited(Exit::Signal(9)), decoded, VmmCheckpoint::default()] {
        let text = crate::reconcile::checkpoint::vmm_text(&checkpoint);
        let decoded_again = text.map(|text| serde_json::from_str::<VmmCheckpoint>(&text).unwrap());
        // An empty checkpoint is not stored.
        assert_eq!(decoded_again.unwrap_or_default(), checkpoint);
    }
}
