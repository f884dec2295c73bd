//! The recorded state of a VM's VMM, and the power decision that follows from its exit. Pure.
//! Out of scope: observing whether it runs (the Vmm stage), storing it (the engine).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::api::condition::Reason;
use crate::api::life::Restart;
use crate::api::meta::Timestamp;
use crate::api::view::ExitView;
use crate::api::vm::{Hypervisor, Power};
use crate::host::process::{Exit, Identity};

/// The checkpoint of the Vmm stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmCheckpoint {
    /// The process that was started last, until it is known to have ended.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub process: Option<StartedProcess>,
    /// The exit of the last process that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "last_end")]
    pub last_exit: Option<ProcessExit>,
    /// The number of restarts after the process had ended by itself.
    #[serde(default)]
    pub restarts: u32,
}

/// A process that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedProcess {
    /// The process.
    pub identity: Identity,
    /// When it was started.
    pub started_at: Timestamp,
    /// What confines it, as text for users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confined_by: Option<String>,
}

/// The exit of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessExit {
    /// The process.
    pub process: Identity,
    /// Its exit status or signal.
    pub exit: Exit,
    /// When the exit was observed.
    pub at: Timestamp,
    /// Why it exited.
    #[serde(rename = "why")]
    pub cause: ExitCause,
    /// The last lines of its console.
    #[serde(default)]
    #[serde(rename = "said")]
    pub console: Vec<String>,
    /// The exit is handled: sliced stopped the process, the VM was started since, or a start was requested.
    #[serde(default)]
    #[serde(rename = "answered")]
    pub handled: bool,
}

/// Why a process exited. Stored by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCause {
    /// sliced stopped it.
    #[serde(alias = "it was stopped")]
    Stopped,
    /// The guest powered off.
    PoweredOff,
    /// The guest rebooted: a Firecracker guest powers off this way.
    Rebooted,
    /// The guest powered off or rebooted: QEMU exits with status 0 for both.
    PoweredOffOrRebooted,
    /// QEMU exits with status 1 for both.
    PanickedOrVmmFailed,
    /// The VMM exited with another status.
    VmmFailed,
    /// SIGKILL that sliced did not send.
    Killed,
    /// Another program sent SIGTERM, SIGINT or SIGHUP.
    Terminated,
    /// Another signal.
    VmmCrashed,
    /// sliced was not running at that time.
    NotObserved,
    /// The text for users that an earlier version stored in place of the name.
    #[serde(untagged)]
    Text(String),
}

/// What to do with a VM's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerDecision {
    /// Start it, or leave it running.
    Run,
    /// Stop it, or leave it stopped, with reason and message of the condition.
    Stop(Reason, String),
    /// Stop it, then start it.
    Restart,
}

impl VmmCheckpoint {
    /// Records that this process runs.
    pub fn record_start(&mut self, started: StartedProcess) {
        if self.process.as_ref().map(|known| &known.identity) == Some(&started.identity) {
            return;
        }
        self.process = Some(started);
        if let Some(exit) = self.last_exit.as_mut().filter(|end| !end.handled) {
            exit.handled = true;
            self.restarts = self.restarts.saturating_add(1);
        }
    }

    /// Records that the process has ended.
    pub fn record_exit(&mut self, exit: ProcessExit) {
        self.process = None;
        self.last_exit = Some(exit);
    }

    /// Records that the last exit is handled: a start was requested.
    pub fn answer(&mut self) {
        if let Some(exit) = &mut self.last_exit {
            exit.handled = true;
        }
    }

    /// The checkpoint after a reboot: no process runs; the last exit is kept.
    #[must_use]
    pub fn after_reboot(self) -> Self {
        Self {
            process: None,
            ..self
        }
    }

    /// Decides what to do with the VM's process.
    pub fn evaluate_exit(&self, power: Power, restart: Restart) -> PowerDecision {
        match power {
            Power::Stopped => {
                let message = "stopped by slicectl vm stop; start it with slicectl vm start";
                return PowerDecision::Stop(Reason::Stopped, message.to_owned());
            }
            Power::Restarting => return PowerDecision::Restart,
            Power::Running | Power::Paused => {}
        }
        // An exit that was not observed yet is found by the stage.
        let exit = self.last_exit.as_ref().filter(|_| self.process.is_none());
        match exit {
            Some(end) if !end.handled && !is_restarted(restart, end.exit) => PowerDecision::Stop(
                match end.exit {
                    Exit::Code(0) => Reason::Stopped,
                    Exit::Code(_) | Exit::Signal(_) | Exit::Unknown => Reason::Failed,
                },
                format!("{}, and restart is {restart}", end.message()),
            ),
            Some(_) | None => PowerDecision::Run,
        }
    }
}

/// Whether the restart policy starts the VM again. An exit with unknown status counts as a failure.
fn is_restarted(restart: Restart, exit: Exit) -> bool {
    match (restart, exit) {
        (Restart::Always, _) => true,
        (Restart::Never, _) => false,
        (Restart::OnFailure, Exit::Code(0)) => false,
        (Restart::OnFailure, Exit::Code(_) | Exit::Signal(_) | Exit::Unknown) => true,
    }
}

impl ProcessExit {
    /// The exit as a sentence, e.g. `it exited with status 0: the guest powered off`.
    pub fn message(&self) -> String {
        match (self.exit, &self.cause) {
            // The status of a requested stop does not matter.
            (Exit::Unknown, ExitCause::Stopped) => ExitCause::Stopped.to_string(),
            (exit, cause) => format!("it {exit}: {cause}"),
        }
    }

    /// The view of the exit.
    pub fn view(&self) -> ExitView {
        let (status, signal) = match self.exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal(signal) => (None, Some(signal)),
            Exit::Unknown => (None, None),
        };
        ExitView {
            pid: self.process.pid,
            at: self.at,
            status,
            signal,
            reason: self.message(),
            last_output: self.console.clone(),
        }
    }
}

impl ExitCause {
    /// The meaning of an exit, by the exit statuses of each VMM.
    pub fn of(hypervisor: Hypervisor, exit: Exit, stopped: bool) -> Self {
        if stopped {
            return Self::Stopped;
        }
        match (exit, hypervisor) {
            (Exit::Code(0), Hypervisor::Qemu | Hypervisor::None) => Self::PoweredOffOrRebooted,
            (Exit::Code(0), Hypervisor::Firecracker) => Self::Rebooted,
            (Exit::Code(0), Hypervisor::CloudHypervisor) => Self::PoweredOff,
            (Exit::Code(1), Hypervisor::Qemu) => Self::PanickedOrVmmFailed,
            (Exit::Code(_), _) => Self::VmmFailed,
            (Exit::Signal(libc::SIGKILL), _) => Self::Killed,
            (Exit::Signal(libc::SIGTERM | libc::SIGINT | libc::SIGHUP), _) => Self::Terminated,
            (Exit::Signal(_), _) => Self::VmmCrashed,
            (Exit::Unknown, _) => Self::NotObserved,
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "it was stopped",
            Self::PoweredOff => "the guest powered off",
            Self::Rebooted => "the guest rebooted (a Firecracker guest powers off this way)",
            Self::PoweredOffOrRebooted => "the guest powered off or rebooted",
            Self::PanickedOrVmmFailed => "the guest's kernel panicked, or the VMM failed",
            Self::VmmFailed => "the VMM failed",
            Self::Killed => "possibly the OOM killer",
            Self::Terminated => "another program terminated it",
            Self::VmmCrashed => "the VMM crashed",
            Self::NotObserved => "sliced was not running at that time",
            Self::Text(text) => text,
        })
    }
}

#[cfg(test)]
mod tests {
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
        let old =
            r#"{"identity":{"pid":1,"start":7,"boot":"b"},"started_at":"1970-01-01T00:00:00Z"}"#;
        let decoded: VmmCheckpoint = serde_json::from_str(old).unwrap();
        assert_eq!(decoded.process, Some(started(1)));
        for checkpoint in [exited(Exit::Signal(9)), decoded, VmmCheckpoint::default()] {
            let text = crate::reconcile::checkpoint::vmm_text(&checkpoint);
            let decoded_again =
                text.map(|text| serde_json::from_str::<VmmCheckpoint>(&text).unwrap());
            // An empty checkpoint is not stored.
            assert_eq!(decoded_again.unwrap_or_default(), checkpoint);
        }
    }
}
