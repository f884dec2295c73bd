//! The recorded state of a VM's VMM, and the power decision that follows from its exit. Pure.
//! Out of scope: observing whether it runs (the Vmm stage), storing it (the engine).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::api::condition::Reason;
use crate::api::life::{ExitPolicy, Restart};
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
    /// Delete the VM; why, for users.
    Delete(String),
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
    pub fn evaluate_exit(&self, power: Power, policy: impl Into<ExitPolicy>) -> PowerDecision {
        let ExitPolicy {
            restart,
            delete_on_exit,
        } = policy.into();
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
            Some(end) if !end.handled && delete_on_exit && end.cause.may_be_of_guest() => {
                PowerDecision::Delete(end.message())
            }
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

    /// Whether the guest ended by itself, as far as it is known: an exit that was not observed may be one.
    fn may_be_of_guest(&self) -> bool {
        match self {
            Self::PoweredOff | Self::Rebooted | Self::PoweredOffOrRebooted | Self::NotObserved => {
                true
            }
            Self::Stopped
            | Self::PanickedOrVmmFailed
            | Self::VmmFailed
            | Self::Killed
            | Self::Terminated
            | Self::VmmCrashed
            | Self::Text(_) => false,
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
mod tests;
