//! What is reported of a stage while one of its steps takes long: Unknown, since when, and the deadline.
//! Out of scope: what is reported when the step has ended.
//!
//! # Why
//! The condition of a stage states what was observed last. While a commit hangs, the rules of the new generation have not been read back,
//! and while drift is being repaired, the stored condition is known to be wrong. So a step that takes longer than [`REPORT_DELAY`] makes the
//! condition Unknown. Shorter steps are not stored: hundreds of VMs are created in this time.

use std::pin::Pin;
use std::time::Duration;

use parking_lot::Mutex;

use super::Engine;
use crate::api::condition::{Reason, Status};
use crate::api::meta::Timestamp;
use crate::api::stage::Stage;
use crate::api::vm::Vm;
use crate::clock;
use crate::reconcile::{Convergence, Program};
use crate::store;

/// A step that takes longer is reported.
const REPORT_DELAY: Duration = Duration::from_secs(1);

/// A step in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    text: String,
    since: Timestamp,
    program: Option<Program>,
}

/// The step that a run carries out now. None: the run observes.
#[derive(Debug, Default)]
pub(super) struct CurrentStep(Mutex<Option<Step>>);

impl CurrentStep {
    pub(super) fn begins(&self, text: String, program: Option<Program>) {
        let since = clock::now();
        *self.0.lock() = Some(Step {
            text,
            since,
            program,
        });
    }

    pub(super) fn ends(&self) {
        *self.0.lock() = None;
    }

    fn step(&self) -> Option<Step> {
        let step = self.0.lock();
        step.clone()
    }
}

impl Step {
    /// `iptables-restore runs since 2026-11-28T12:00:01Z, deadline 30s: commit rules …`.
    fn message(&self) -> String {
        let Self { text, since, .. } = self;
        let since = since.strftime("%Y-%m-%dT%H:%M:%SZ");
        match &self.program {
            Some(Program { name, deadline }) => {
                let deadline = humantime::format_duration(*deadline);
                format!("{name} runs since {since}, deadline {deadline}: {text}")
            }
            None => format!("runs since {since}: {text}"),
        }
    }
}

impl Engine {
    /// Waits for an observation of files, which may be on a file system that does not respond, and reports that it is pending.
    pub(super) async fn pending<T>(
        &self,
        vm: &Vm,
        stage: Stage,
        text: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, store::Error> {
        let mut work = Box::pin(work);
        let started_at = clock::now();
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            () = tokio::time::sleep(REPORT_DELAY) => {}
        }
        let step = Step {
            text: text.to_owned(),
            since: started_at,
            program: None,
        };
        let found = (Status::Unknown, Reason::Waiting, step.message());
        self.set_condition(vm, stage, found).await?;
        Ok(work.await)
    }

    /// Waits for a stage's loop, and meanwhile reports what the loop waits for.
    pub(super) async fn report_pending<O>(
        &self,
        vm: &Vm,
        stage: Stage,
        current: &CurrentStep,
        mut work: Pin<Box<impl Future<Output = Convergence<O>>>>,
    ) -> Convergence<O> {
        match stage {
            Stage::Net | Stage::Firewall => {}
            // The progress of a VMM or of a copy is reported by the code that waits for it.
            Stage::Lease | Stage::Vmm => return work.await,
        }
        let started_at = clock::now();
        let mut reported = None;
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(REPORT_DELAY) => {}
            }
            let step = current.step().unwrap_or_else(|| Step {
                text: "observe the actual state".to_owned(),
                since: started_at,
                program: None,
            });
            if reported.as_ref() == Some(&step) {
                continue;
            }
            let found = (Status::Unknown, Reason::Waiting, step.message());
            // The loop continues meanwhile: it must be neither cancelled nor delayed by the disk.
            let write = self.set_condition(vm, stage, found);
            tokio::select! {
                biased;
                done = &mut work => return done,
                written = write => match written {
                    Ok(()) => reported = Some(step),
                    Err(error) => tracing::warn!(vm = %vm.meta.name, %stage, %error, "failed to store the condition for a pending step"),
                },
            }
        }
    }
}
