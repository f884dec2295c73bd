//! What is remembered of a VM's VMM, and what follows from how it ended. Pure.
//! Out of scope: observing whether it runs (the Vmm stage), storing it (the engine).

use serde::{Deserialize, Serialize};

use crate::api::condition::Reason;
use crate::api::life::Restart;
use crate::api::meta::Timestamp;
use crate::api::rung::RungPage;
use crate::api::view::ExitView;
use crate::api::vm::{Hypervisor, Power};
use crate::host::process::{Exit, Identity};

/// The Vmm rung's mark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMark {
    /// The one that was started last, until it is known to have ended.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Started>,
    /// How the last one that ended did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<End>,
    /// How often it was started again because it had ended of itself.
    #[serde(default)]
    pub restarts: u32,
}

/// A process that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Which.
    pub identity: Identity,
    /// When.
    pub started_at: Timestamp,
    /// By what it is confined, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confined_by: Option<String>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Which.
    pub process: Identity,
    /// How.
    pub exit: Exit,
    /// When that was seen.
    pub at: Timestamp,
    /// Why, in words.
    pub why: String,
    /// The last lines of its console.
    #[serde(default)]
    pub said: Vec<String>,
    /// Nothing follows from it any more: it was we who stopped it, or the VM was started since, or somebody wants it to be.
    #[serde(default)]
    pub answered: bool,
}

/// What is to become of a VM now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It runs.
    Run,
    /// It is down.
    Down(Reason, String),
    /// It goes down, and then runs again.
    Again,
}

impl ProcessMark {
    /// What the page remembers; a mark that cannot be understood says nothing.
    pub fn of(page: Option<&RungPage>) -> Self {
        let mark = page.and_then(|page| page.mark.as_deref());
        mark.and_then(|mark| serde_json::from_str(mark).ok())
            .unwrap_or_default()
    }

    /// As the page keeps it.
    pub fn text(&self) -> Option<String> {
        if *self == Self::default() {
            return None;
        }
        serde_json::to_string(self).ok()
    }

    /// This process runs.
    pub fn runs(&mut self, started: Started) {
        if self.process.as_ref().map(|known| &known.identity) == Some(&started.identity) {
            return;
        }
        self.process = Some(started);
        if let Some(end) = self.last_end.as_mut().filter(|end| !end.answered) {
            end.answered = true;
            self.restarts = self.restarts.saturating_add(1);
        }
    }

    /// The process has ended.
    pub fn ended(&mut self, end: End) {
        self.process = None;
        self.last_end = Some(end);
    }

    /// Somebody wants it to run, whatever the last end was.
    pub fn answer(&mut self) {
        if let Some(end) = &mut self.last_end {
            end.answered = true;
        }
    }

    /// Nothing of an earlier boot runs; what had ended in it has ended.
    #[must_use]
    pub fn after_a_reboot(self) -> Self {
        Self {
            process: None,
            ..self
        }
    }

    /// What is to become of the VM.
    pub fn verdict(&self, power: Power, restart: Restart) -> Verdict {
        match power {
            Power::Stopped => {
                let message = "by slicectl vm stop; slicectl vm start starts it";
                return Verdict::Down(Reason::Stopped, message.to_owned());
            }
            Power::Restarting => return Verdict::Again,
            Power::Running | Power::Paused => {}
        }
        // A process that nobody has seen end is for the rung to find.
        let end = self.last_end.as_ref().filter(|_| self.process.is_none());
        match end {
            Some(end) if !end.answered && !starts_again(restart, end.exit) => Verdict::Down(
                match end.exit {
                    Exit::Code(0) => Reason::Stopped,
                    Exit::Code(_) | Exit::Signal(_) | Exit::Unknown => Reason::Failed,
                },
                format!("{}, and restart is {restart}", end.words()),
            ),
            Some(_) | None => Verdict::Run,
        }
    }
}

/// An end that nobody saw may have been any: a VM that must not be down is started again for it.
fn starts_again(restart: Restart, exit: Exit) -> bool {
    match (restart, exit) {
        (Restart::Always, _) => true,
        (Restart::Never, _) => false,
        (Restart::OnFailure, Exit::Code(0)) => false,
        (Restart::OnFailure, Exit::Code(_) | Exit::Signal(_) | Exit::Unknown) => true,
    }
}

impl End {
    /// `it exited with status 0: the guest powered off`.
    pub fn words(&self) -> String {
        match (self.exit, self.why.as_str()) {
            // With which status is nobody's worry then.
            (Exit::Unknown, STOPPED) => STOPPED.to_owned(),
            (exit, why) => format!("it {exit}: {why}"),
        }
    }

    /// As answered.
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
            reason: self.words(),
            said: self.said.clone(),
        }
    }
}

/// By us, as somebody wanted.
const STOPPED: &str = "it was stopped";

/// What an exit means, by what each VMM exits with.
pub fn why(hypervisor: Hypervisor, exit: Exit, stopped: bool) -> String {
    if stopped {
        return STOPPED.to_owned();
    }
    match (exit, hypervisor) {
        (Exit::Code(0), Hypervisor::Qemu | Hypervisor::None) => {
            "the guest powered off or rebooted".to_owned()
        }
        (Exit::Code(0), Hypervisor::Firecracker) => {
            "the guest rebooted, its way of powering off".to_owned()
        }
        (Exit::Code(0), Hypervisor::CloudHypervisor) => "the guest powered off".to_owned(),
        (Exit::Code(1), Hypervisor::Qemu) => {
            "the guest's kernel panicked, or the VMM failed".to_owned()
        }
        (Exit::Code(_), _) => "the VMM failed".to_owned(),
        (Exit::Signal(libc::SIGKILL), _) => {
            "somebody killed it, or it wanted too much memory".to_owned()
        }
        (Exit::Signal(libc::SIGTERM | libc::SIGINT | libc::SIGHUP), _) => {
            "somebody terminated it".to_owned()
        }
        (Exit::Signal(_), _) => "the VMM crashed".to_owned(),
        (Exit::Unknown, _) => "sliced was not there to see it".to_owned(),
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

    fn end(exit: Exit) -> End {
        End {
            process: identity(1),
            exit,
            at: Timestamp::UNIX_EPOCH,
            why: why(Hypervisor::Qemu, exit, false),
            said: Vec::new(),
            answered: false,
        }
    }

    fn ended(exit: Exit) -> ProcessMark {
        let mut mark = ProcessMark::default();
        mark.runs(started(1));
        mark.ended(end(exit));
        mark
    }

    fn started(pid: u32) -> Started {
        Started {
            confined_by: None,
            identity: identity(pid),
            started_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_policy_decides_by_the_status_and_an_unknown_end_is_a_failure() {
        use Exit::{Code, Signal, Unknown};
        use Restart::{Always, Never, OnFailure};
        let down =
            |reason| move |found: Verdict| matches!(found, Verdict::Down(r, _) if r == reason);
        let run = |found| found == Verdict::Run;
        for exit in [Code(0), Code(1), Signal(9), Unknown] {
            assert!(run(ended(exit).verdict(Power::Running, Always)));
        }
        let stopped = down(Reason::Stopped);
        assert!(stopped(ended(Code(0)).verdict(Power::Running, Never)));
        assert!(stopped(ended(Code(0)).verdict(Power::Running, OnFailure)));
        for exit in [Code(1), Signal(9), Unknown] {
            assert!(run(ended(exit).verdict(Power::Running, OnFailure)));
            assert!(down(Reason::Failed)(
                ended(exit).verdict(Power::Running, Never)
            ));
        }
    }

    #[test]
    fn what_a_person_says_comes_before_the_policy() {
        let mark = ended(Exit::Code(0));
        let verdict = mark.verdict(Power::Stopped, Restart::Always);
        assert!(matches!(verdict, Verdict::Down(Reason::Stopped, _)));
        assert_eq!(
            mark.verdict(Power::Restarting, Restart::Never),
            Verdict::Again
        );
        let mut started = mark;
        started.answer();
        assert_eq!(
            started.verdict(Power::Running, Restart::Never),
            Verdict::Run
        );
    }

    #[test]
    fn an_end_is_answered_once_and_only_answers_to_ends_of_its_own_are_counted() {
        let mut mark = ended(Exit::Code(1));
        mark.runs(started(2));
        mark.runs(started(2));
        assert_eq!(mark.restarts, 1);
        // The next end is judged anew.
        let mut again = mark.clone();
        again.ended(end(Exit::Code(1)));
        assert!(matches!(
            again.verdict(Power::Running, Restart::Never),
            Verdict::Down(Reason::Failed, _)
        ));
        // One that we brought about is not counted.
        mark.ended(End {
            answered: true,
            ..end(Exit::Code(0))
        });
        mark.runs(started(3));
        assert_eq!(mark.restarts, 1);
    }

    #[test]
    fn one_that_was_stopped_while_nobody_looked_was_stopped_and_no_more_is_said() {
        let stopped = |exit| End {
            why: why(Hypervisor::Qemu, exit, true),
            ..end(exit)
        };
        assert_eq!(stopped(Exit::Unknown).words(), "it was stopped");
        assert_eq!(
            stopped(Exit::Code(0)).words(),
            "it exited with status 0: it was stopped"
        );
        assert!(end(Exit::Unknown).words().contains("not known"));
    }

    #[test]
    fn a_vm_that_was_done_stays_down_over_a_reboot_and_one_that_ran_runs_again() {
        let done = ended(Exit::Code(0)).after_a_reboot();
        assert!(matches!(
            done.verdict(Power::Running, Restart::Never),
            Verdict::Down(..)
        ));
        let mut ran = ProcessMark::default();
        ran.runs(started(1));
        let ran = ran.after_a_reboot();
        assert_eq!(ran.verdict(Power::Running, Restart::Never), Verdict::Run);
    }

    #[test]
    fn a_mark_of_an_earlier_sliced_is_understood() {
        let old =
            r#"{"identity":{"pid":1,"start":7,"boot":"b"},"started_at":"1970-01-01T00:00:00Z"}"#;
        let read: ProcessMark = serde_json::from_str(old).unwrap();
        assert_eq!(read.process, Some(started(1)));
        for mark in [ended(Exit::Signal(9)), read, ProcessMark::default()] {
            let text = mark.text();
            let again = text.map(|text| serde_json::from_str::<ProcessMark>(&text).unwrap());
            // What says nothing is not kept.
            assert_eq!(again.unwrap_or_default(), mark);
        }
    }
}
