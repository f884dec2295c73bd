//! Plans while this node leads, and writes what is planned.
//! Out of scope: the election ([`super::election`]), the decisions ([`crate::fleet::schedule`]).
//!
//! # When
//! A plan is made when the objects have changed, when the last one asked for it (`wake_after`: a backoff or an absence ends), and after a
//! transaction that has failed. The objects are complete and not older than the last write of this leader.

use std::collections::BTreeMap;
use std::time::Duration;

use super::absence::Absences;
use super::looks::Looks;
use super::transaction::{Transaction, transactions};
use super::view::{self, Seen};
use super::{Control, Failure, PlanSummary, Term, remember};
use crate::api::meta::Uid;
use crate::clock;
use crate::fleet::contact::Boottime;
use crate::fleet::kv::{Error, OpResult, Txn};
use crate::fleet::link::{Backoff, boottime};
use crate::fleet::schedule;
use crate::fleet::schedule::step::{Plan, Step};
use crate::fleet::schedule::view::View;

/// The pause after a change, in which others may follow. It is at least as long as the last plan has taken.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// How long a plan is written after the objects were read. A node that returns and is lost again in this time is not noticed: it takes
/// the time to live of its lease.
const VALID: Duration = Duration::from_secs(10);

/// What the planner remembers.
#[derive(Default)]
struct Planner {
    absences: Absences,
    looks: Looks,
    /// The revision at which the term began, and [`crate::fleet::link::Link::acceptances`]: the rest is of this term in this history. A snapshot
    /// of the cluster may contain the election key of the present leader.
    term: (u64, u64),
    /// The objects must have this revision.
    floor: u64,
    /// The list and the revision of the last plan that was written.
    planned: Option<(u64, u64)>,
    /// When the next plan is due although nothing changes.
    wake: Option<Boottime>,
    /// The revision at which the election key was written after a plan that depends on time, and when.
    barrier: Option<(u64, Boottime)>,
    /// A write has an unknown outcome.
    has_unknown_write: bool,
    /// How long it took to make the last plan.
    took: Duration,
    backoff: Backoff,
}

/// What became of the writes.
enum Outcome {
    /// All are written.
    Written,
    /// A comparison did not hold.
    Conflict,
    /// This node does not lead any more, or the plan is too old.
    Stopped,
    /// etcd refuses a step for what it contains, and all others are written.
    Refused(Failure),
    /// A write has failed, or its outcome is unknown.
    Failed(Failure),
}

impl Outcome {
    /// The first in the order of precedence: a failure, a refusal, a conflict, none.
    fn or(self, other: Self) -> Self {
        let rank = |it: &Self| match it {
            Self::Written => 0,
            Self::Conflict => 1,
            Self::Refused(_) => 2,
            Self::Stopped | Self::Failed(_) => 3,
        };
        match rank(&self) >= rank(&other) {
            true => self,
            false => other,
        }
    }
}

/// etcd refuses a transaction for what it contains. Another attempt has the same result.
fn is_refused(failure: &Failure) -> bool {
    match failure {
        Failure::Etcd(error) => matches!(error, Error::Denied { .. } | Error::Invalid { .. }),
        _ => false,
    }
}

fn of_step(step: &Step, failure: &Failure) -> Failure {
    Failure::Other(format!("cannot {} {}: {failure}", step.action, step.name))
}

impl Control {
    /// Plans until the end.
    pub(super) async fn plans(&self) {
        let mut planner = Planner::default();
        let mut objects = self.link.subscribe();
        let mut terms = self.changed.subscribe();
        loop {
            objects.mark_unchanged();
            terms.mark_unchanged();
            let pause = self.plan_if_due(&mut planner).await;
            let paused = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = objects.changed() => {}
                _ = terms.changed() => {}
                () = paused => {}
            }
            tokio::time::sleep(planner.took.clamp(DEBOUNCE, VALID)).await;
        }
    }

    /// Plans if a plan is due; returns the time until the next one is due although nothing changes.
    async fn plan_if_due(&self, planner: &mut Planner) -> Option<Duration> {
        let Some(term) = self.planning() else {
            self.forget();
            return None;
        };
        planner.begin(term, self.link.acceptances());
        if planner.has_unknown_write {
            match self.invalidate(term).await {
                Ok(Some(revision)) => {
                    planner.has_unknown_write = false;
                    planner.floor = planner.floor.max(revision);
                }
                Ok(None) => return None,
                Err(failure) => return Some(self.failed(planner, &failure)),
            }
        }
        let now = boottime();
        let Some((at, view)) = self.look(planner, term, now) else {
            return planner.wake.map(|wake| wake.since(now));
        };
        planner.wake = None;
        let view = match view {
            Ok((view, note)) => {
                self.left_out(note);
                view
            }
            Err(reason) => {
                planner.planned = Some(at);
                self.not_planned(reason);
                return None;
            }
        };
        let plan = match self.plan(view).await {
            Ok(plan) => plan,
            Err(failure) => return Some(self.failed(planner, &failure)),
        };
        planner.took = boottime().since(now);
        let barrier = planner.barrier.take();
        let is_recent = |(revision, written): (u64, Boottime)| {
            at.1 >= revision && boottime().since(written) < VALID
        };
        if plan.depends_on_time && !barrier.is_some_and(is_recent) {
            return self.refresh(planner, term).await;
        }
        let outcome = self.write(planner, &plan, now).await;
        planner.wake = plan.wake_after.map(|after| now.plus(after));
        match outcome {
            Outcome::Written => {
                planner.planned = Some(at);
                planner.backoff.reset();
                let slot = &mut self.state.lock().planner_error;
                remember(slot, "cannot write a plan", None);
                planner.wake.map(|wake| wake.since(boottime()))
            }
            Outcome::Conflict => Some(planner.backoff.next()),
            Outcome::Stopped => Some(DEBOUNCE),
            Outcome::Refused(failure) | Outcome::Failed(failure) => {
                Some(self.failed(planner, &failure))
            }
        }
    }

    /// Writes the election key, and lets the next plan wait until this is watched. The watch may be behind by any time; what a node has done
    /// before this write is seen by that plan.
    async fn refresh(&self, planner: &mut Planner, term: Term) -> Option<Duration> {
        let begin = boottime();
        match self.invalidate(term).await {
            Ok(Some(revision)) => {
                planner.barrier = Some((revision, begin));
                planner.floor = planner.floor.max(revision);
                planner.planned = None;
                Some(DEBOUNCE)
            }
            Ok(None) => None,
            Err(failure) => Some(self.failed(planner, &failure)),
        }
    }

    /// The objects, if a plan is due: the list and the revision that they are of.
    fn look(&self, planner: &mut Planner, term: Term, now: Boottime) -> Option<((u64, u64), Seen)> {
        let (is_awake, planned) = (planner.is_awake(now), planner.planned);
        let floor = planner.floor;
        let Planner {
            absences, looks, ..
        } = planner;
        self.link.read_listed(|mirror, contact, list| {
            absences.look(mirror, term.create_revision, list, now);
            let at = (list, mirror.revision);
            let is_due = planned != Some(at) || is_awake;
            (is_due && mirror.revision >= floor && contact.may_act(now)).then(|| {
                looks.look(mirror, now);
                let seen = (&*absences, &*looks);
                (at, view::of(mirror, seen, clock::now(), now))
            })
        })
    }

    async fn plan(&self, view: View) -> Result<Plan, Failure> {
        let begin = boottime();
        let planned = tokio::task::spawn_blocking(move || schedule::plan(&view, &mut Uid::random));
        let plan = planned
            .await
            .map_err(|error| Failure::Other(format!("cannot plan: {error}")))?;
        let mut steps = BTreeMap::new();
        for step in plan.subnets.iter().chain(&plan.steps) {
            *steps.entry(step.action).or_default() += 1;
        }
        let mut state = self.state.lock();
        if state.not_planned.take().is_some() {
            tracing::info!("VMs are scheduled again");
        }
        state.blocked.clone_from(&plan.blocked);
        state.last_plan = Some(PlanSummary {
            at: clock::now(),
            took: boottime().since(begin),
            steps,
        });
        drop(state);
        Ok(plan)
    }

    /// Writes the subnets, then the rest: also if etcd refuses a subnet, without which the VMs of its group on that node wait.
    async fn write(&self, planner: &mut Planner, plan: &Plan, read: Boottime) -> Outcome {
        planner.planned = None;
        match self.write_steps(planner, &plan.subnets, read).await {
            of_subnets @ (Outcome::Written | Outcome::Refused(_)) => {
                let outcome = self.write_steps(planner, &plan.steps, read).await;
                outcome.or(of_subnets)
            }
            outcome => outcome,
        }
    }

    async fn write_steps(&self, planner: &mut Planner, steps: &[Step], read: Boottime) -> Outcome {
        let Some(term) = self.planning() else {
            return Outcome::Stopped;
        };
        let transactions = match transactions(steps, term.revision) {
            Ok(transactions) => transactions,
            Err(error) => return Outcome::Failed(Failure::Other(error.to_string())),
        };
        let mut outcome = Outcome::Written;
        for Transaction { txn, bytes, steps } in transactions {
            let is_current = self
                .planning()
                .is_some_and(|it| it.revision == term.revision);
            if !is_current || boottime().since(read) >= VALID {
                return Outcome::Stopped;
            }
            match self.send(planner, term, &txn, bytes).await {
                Ok(true) => {}
                // The other transactions are independent of it, unless another node was elected.
                Ok(false) => outcome = outcome.or(Outcome::Conflict),
                Err(failure) if is_refused(&failure) => {
                    match self.write_alone(planner, term, &steps, failure).await {
                        failed @ Outcome::Failed(_) => return failed,
                        other => outcome = outcome.or(other),
                    }
                }
                Err(failure) => return Outcome::Failed(failure),
            }
        }
        outcome
    }

    /// Writes the steps of a transaction that etcd refuses one by one: one that can never be written must not keep the others, also those of
    /// later transactions, from being written.
    async fn write_alone(
        &self,
        planner: &mut Planner,
        term: Term,
        steps: &[&Step],
        failure: Failure,
    ) -> Outcome {
        if let [step] = steps {
            return Outcome::Refused(of_step(step, &failure));
        }
        let mut last = failure;
        for step in steps {
            let transactions = match transactions(std::slice::from_ref(*step), term.revision) {
                Ok(transactions) => transactions,
                Err(error) => return Outcome::Failed(Failure::Other(error.to_string())),
            };
            for Transaction { txn, bytes, .. } in transactions {
                match self.send(planner, term, &txn, bytes).await {
                    Ok(_) => {}
                    Err(failure) if is_refused(&failure) => last = of_step(step, &failure),
                    Err(failure) => return Outcome::Failed(failure),
                }
            }
        }
        Outcome::Refused(last)
    }

    /// Sends a transaction; whether it was applied.
    async fn send(
        &self,
        planner: &mut Planner,
        term: Term,
        txn: &Txn,
        bytes: usize,
    ) -> Result<bool, Failure> {
        let result = self.link.client().txn(txn).await;
        planner.has_unknown_write |= matches!(result, Err(Error::OutcomeUnknown { .. }));
        let done = {
            let mut state = self.state.lock();
            state.sent.transactions += 1;
            state.sent.bytes += bytes as u64;
            let done = result?;
            state.sent.conflicts += u64::from(!done.succeeded);
            done
        };
        if done.succeeded {
            planner.floor = planner.floor.max(done.header.revision.0);
            return Ok(true);
        }
        if let [OpResult::Found(found)] = &done.results[..] {
            let own = found.as_ref().filter(|found| {
                found.create_revision.0 == term.create_revision && found.lease == Some(term.lease)
            });
            self.corrected(term, own.map(|own| own.mod_revision.0));
        }
        Ok(false)
    }

    /// The revision of the election key as it was found; `None`: another node was elected, or nobody.
    fn corrected(&self, term: Term, revision: Option<u64>) {
        let mut state = self.state.lock();
        let is_same = |it: &&mut Term| it.create_revision == term.create_revision;
        match (state.term.as_mut().filter(is_same), revision) {
            (Some(current), Some(revision)) => current.revision = revision,
            (Some(_), None) => state.term = None,
            (None, _) => {}
        }
        drop(state);
        self.notify();
    }

    fn failed(&self, planner: &mut Planner, failure: &Failure) -> Duration {
        let slot = &mut self.state.lock().planner_error;
        remember(slot, "cannot write a plan", Some(failure));
        planner.backoff.next()
    }

    fn not_planned(&self, reason: String) {
        let mut state = self.state.lock();
        if state.not_planned.as_ref() != Some(&reason) {
            tracing::error!("{reason}");
        }
        state.not_planned = Some(reason);
    }

    fn left_out(&self, note: Option<String>) {
        let mut state = self.state.lock();
        if let Some(note) = note
            .as_ref()
            .filter(|it| state.left_out.as_ref() != Some(*it))
        {
            tracing::error!("{note}");
        }
        state.left_out = note;
    }

    /// What only a leader reports.
    fn forget(&self) {
        let mut state = self.state.lock();
        state.not_planned = None;
        state.left_out = None;
        state.planner_error = None;
        state.blocked.clear();
    }
}

impl Planner {
    /// The time has come that the last plan asked for.
    fn is_awake(&self, now: Boottime) -> bool {
        self.wake.is_some_and(|wake| wake <= now)
    }

    /// What was remembered of an earlier term, or of another history of the cluster, has no meaning in this one.
    fn begin(&mut self, term: Term, acceptances: u64) {
        let begun = (term.create_revision, acceptances);
        if self.term != begun {
            *self = Self {
                term: begun,
                floor: term.create_revision,
                ..Self::default()
            };
        }
    }
}
