//! `wait`, and `--wait` of other verbs: watches until objects reach the goal, and reports what is missing at the timeout.
//! Out of scope: polling; a watch notifies.

use std::cell::RefCell;
use std::time::Duration;

use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::BoxStream;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

mod agent;
mod reasons;
mod terminal;

use self::reasons::{condition, holders, not_ready_reasons};
use super::args::{Goal, WaitArgs};
use super::failure::Failure;
use super::paint::one_line;
use super::target::{self, Target};
use super::{print, rows, vm_state};
use crate::api::meta::Uid;
use crate::api::view::{Change, Kind, Object, VmmState};
use crate::wire::Client;
use crate::wire::client::ClientError;

/// Interval of attempts to reopen a watch after the daemon has closed it.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// `wait KIND/NAME… --for ready|stopped|paused|agent|deleted`.
pub async fn wait(client: &Client, args: WaitArgs) -> Result<(), Failure> {
    let targets = target::targets(&args.targets)?;
    let goal = args.goal;
    let other_kind = targets.iter().find(|target| target.kind != Kind::Vm);
    if let (Goal::Stopped | Goal::Paused | Goal::Agent | Goal::Userdata, Some(target)) =
        (goal, other_kind)
    {
        let usage = format!(
            "--for {} is valid for VMs only, not for {target}",
            goal_text(goal)
        );
        return Err(Failure::Usage(usage));
    }
    reach(client, &targets, goal, args.timeout, Terminal::Wait).await?;
    let text = match goal {
        Goal::Agent => "agent answers",
        Goal::Userdata => "userdata succeeded",
        _ => goal_text(goal),
    };
    if args.quiet {
        return Ok(());
    }
    let lines: String = targets.iter().map(|t| format!("{t} {text}\n")).collect();
    print::out(&lines)
}

fn goal_text(goal: Goal) -> &'static str {
    match goal {
        Goal::Ready => "ready",
        Goal::Stopped => "stopped",
        Goal::Paused => "paused",
        Goal::Agent => "agent",
        Goal::Userdata => "userdata",
        Goal::Deleted => "deleted",
    }
}

/// An object that has reached the goal.
pub struct Reached<'t> {
    /// Its name.
    pub target: &'t Target,
    /// Its state; `None` if it is deleted.
    pub object: Option<Object>,
}

/// `vm/web-1 deleted (in 1.2s)`.
pub fn deleted_lines(reached: &[Reached<'_>], elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let targets = reached.iter().map(|reached| reached.target);
    targets
        .map(|target| format!("{target} deleted (in {seconds:.1}s)\n"))
        .collect()
}

/// Returns when all of `targets` reach the goal; fails after `limit` with the reason for each target that does not, and before that if one
/// cannot become ready without a change by the user. On a terminal, a spinner per target shows the progress.
pub async fn until<'t>(
    client: &Client,
    targets: &'t [Target],
    goal: Goal,
    limit: Duration,
) -> Result<Vec<Reached<'t>>, Failure> {
    reach(client, targets, goal, limit, Terminal::Fail).await
}

/// What a wait does with an object that cannot become ready without a change by the user.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Terminal {
    /// Fails: the user of this command makes the change, and has just made the wrong one.
    Fail,
    /// Waits for the change, as `wait` of kubectl does.
    Wait,
}

async fn reach<'t>(
    client: &Client,
    targets: &'t [Target],
    goal: Goal,
    limit: Duration,
    terminal: Terminal,
) -> Result<Vec<Reached<'t>>, Failure> {
    let bars = MultiProgress::new();
    let watches: Vec<Watch> = targets
        .iter()
        .map(|target| Watch::new(target, goal, terminal, &bars))
        .collect();
    let all = try_join_all(watches.iter().map(|watch| watch.run(client)));
    let outcome = tokio::time::timeout(limit, all).await;
    watches
        .iter()
        .for_each(|watch| watch.spinner.finish_and_clear());
    match outcome {
        Ok(result) => {
            result?;
            let reached = watches.iter().zip(targets);
            let reached = reached.map(|(watch, target)| Reached {
                target,
                object: watch.seen.borrow().object.clone(),
            });
            Ok(reached.collect())
        }
        Err(_) => {
            let mut causes = Vec::new();
            for watch in &watches {
                causes.extend(watch.missing(client, limit).await);
            }
            Err(Failure::Failed(causes))
        }
    }
}

struct Watch<'a> {
    target: &'a Target,
    goal: Goal,
    terminal: Terminal,
    seen: RefCell<WatchState>,
    spinner: ProgressBar,
}

/// The state that a watch has reported so far.
#[derive(Default)]
struct WatchState {
    synced: bool,
    object: Option<Object>,
    /// The first uid: a different one under the same name means that the first object is deleted.
    first: Option<Uid>,
}

impl WatchState {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Synced => self.synced = true,
            Change::Deleted { .. } => self.object = None,
            Change::Added { object } | Change::Modified { object } => {
                self.first = self.first.or(object.metadata().uid);
                self.object = Some(object);
            }
        }
    }

    fn reaches(&self, goal: Goal) -> bool {
        match (goal, &self.object) {
            (Goal::Deleted, None) => self.synced || self.first.is_some(),
            (_, None) => false,
            (Goal::Agent, Some(object)) => agent::answers(object),
            (Goal::Userdata, Some(object)) => agent::is_provisioned(object),
            (Goal::Stopped, Some(object)) => is_in(object, VmmState::Stopped),
            (Goal::Paused, Some(object)) => is_in(object, VmmState::Paused),
            (Goal::Ready, Some(object)) => !object.metadata().deleting && is_ready(object),
            (Goal::Deleted, Some(object)) => object.metadata().uid != self.first,
        }
    }
}

impl<'a> Watch<'a> {
    fn new(target: &'a Target, goal: Goal, terminal: Terminal, bars: &MultiProgress) -> Self {
        let bar = bars.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(target.to_string());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self {
            target,
            goal,
            terminal,
            seen: RefCell::default(),
            spinner: bar,
        }
    }

    async fn run(&self, client: &Client) -> Result<(), Failure> {
        let mut changes = match self.open(client).await {
            // A daemon that ends has closed the connection: it may be restarting.
            Err(ClientError::ConnectionFailed { .. }) => self.reopen(client).await?,
            opened => opened?,
        };
        loop {
            while let Some(Ok(change)) = changes.next().await {
                self.seen.borrow_mut().apply(change);
                if self.seen.borrow().reaches(self.goal) {
                    self.spinner.finish_and_clear();
                    return Ok(());
                }
                self.spinner.set_message(one_line(&self.progress()));
                self.fail_if_terminal(client).await?;
            }
            changes = self.reopen(client).await?;
        }
    }

    /// Fails if the object cannot become ready without a change by the user.
    async fn fail_if_terminal(&self, client: &Client) -> Result<(), Failure> {
        let seen = self.seen.borrow().object.clone();
        let obstacle = match (self.goal, &seen) {
            (Goal::Agent, Some(object)) => agent::obstacle(object),
            (Goal::Userdata, Some(object)) => {
                agent::obstacle(object).or_else(|| agent::failure(object))
            }
            _ => None,
        };
        if let Some(cause) = obstacle {
            return Err(Failure::Failed(vec![cause]));
        }
        let Some(object) =
            seen.filter(|_| self.goal == Goal::Ready && self.terminal == Terminal::Fail)
        else {
            return Ok(());
        };
        match terminal::reasons(client, self.target, &object).await {
            None => Ok(()),
            Some(reasons) => {
                let target = self.target;
                let cause = format!("{target} cannot become ready without a change");
                Err(Failure::Failed([vec![cause], reasons].concat()))
            }
        }
    }

    async fn open(
        &self,
        client: &Client,
    ) -> Result<BoxStream<'static, Result<Change, ClientError>>, ClientError> {
        client
            .watch(self.target.kind, Some(&self.target.name))
            .await
    }

    /// Retries until the timeout, since the daemon may restart during a wait.
    async fn reopen(
        &self,
        client: &Client,
    ) -> Result<BoxStream<'static, Result<Change, ClientError>>, ClientError> {
        let first = self.seen.borrow().first;
        loop {
            self.spinner.set_message("reconnecting to sliced");
            tokio::time::sleep(RETRY_INTERVAL).await;
            self.seen.replace(WatchState {
                first,
                ..WatchState::default()
            });
            match self.open(client).await {
                Err(ClientError::Unreachable { .. } | ClientError::ConnectionFailed { .. }) => {}
                other => return other,
            }
        }
    }

    fn progress(&self) -> String {
        match &self.seen.borrow().object {
            None => "not created yet".to_owned(),
            Some(object) if self.goal == Goal::Deleted => describe_finalizers(object),
            Some(Object::HostGroup(group)) => format!(
                "{}/{} VMs ready",
                group.status.ready_count, group.status.desired
            ),
            Some(Object::Vm(vm)) => rows::missing(&vm.status.conditions)
                .map(condition)
                .unwrap_or_default(),
            Some(Object::Lease(_)) => String::new(),
        }
    }

    /// Why the target has not reached the goal, one entry per cause; empty if it has.
    async fn missing(&self, client: &Client, timeout: Duration) -> Vec<String> {
        let (target, limit) = (self.target, humantime::format_duration(timeout));
        let (object, reached, synced) = {
            let state = self.seen.borrow();
            (state.object.clone(), state.reaches(self.goal), state.synced)
        };
        let Some(object) = object else {
            return match (reached, synced) {
                (true, _) => Vec::new(),
                (false, true) => vec![format!("timed out after {limit}: {target} does not exist")],
                (false, false) => {
                    vec![format!(
                        "timed out after {limit}: no response from sliced for {target}"
                    )]
                }
            };
        };
        match (reached, self.goal) {
            (true, _) => Vec::new(),
            (false, Goal::Deleted) => {
                let finalizers = describe_finalizers(&object);
                let mut causes = vec![format!(
                    "timed out after {limit}: {target} still exists, {finalizers}"
                )];
                causes.extend(holders(client, target, &object).await);
                causes
            }
            (false, Goal::Agent | Goal::Userdata) => {
                let mut causes = vec![match agent::answers(&object) {
                    true => format!(
                        "timed out after {limit}: the userdata of {target} has not succeeded"
                    ),
                    false => {
                        format!("timed out after {limit}: the agent of {target} does not answer")
                    }
                }];
                match (is_ready(&object), agent::reason(&object)) {
                    (true, Some(reason)) => causes.push(reason),
                    (false, _) | (true, None) => {
                        causes.extend(not_ready_reasons(client, &object).await);
                    }
                }
                causes
            }
            (false, Goal::Ready | Goal::Stopped | Goal::Paused) => {
                let text = goal_text(self.goal);
                let mut causes = vec![format!("timed out after {limit}: {target} is not {text}")];
                match power_reason(&object, self.goal) {
                    Some(reason) => causes.push(reason),
                    None => causes.extend(not_ready_reasons(client, &object).await),
                }
                causes
            }
        }
    }
}

fn is_ready(object: &Object) -> bool {
    match object {
        Object::HostGroup(group) => group.status.ready,
        Object::Vm(vm) => vm.status.ready,
        Object::Lease(_) => true,
    }
}

/// Whether the object is a VM in this state at its latest generation.
fn is_in(object: &Object, state: VmmState) -> bool {
    let Object::Vm(vm) = object else {
        return false;
    };
    let vmm_condition = vm.status.conditions.iter().find(|c| c.kind == "Vmm");
    let generation = vmm_condition.map(|condition| condition.observed_generation);
    !vm.metadata.deleting && vm.status.vmm.state == state && generation == vm.metadata.generation
}

fn describe_finalizers(object: &Object) -> String {
    let metadata = object.metadata();
    match (metadata.deleting, metadata.finalizers.as_slice()) {
        (false, _) => "its deletion is not requested".to_owned(),
        (true, []) if matches!(object, Object::HostGroup(_)) => "waiting for its VMs".to_owned(),
        (true, []) => "without finalizers".to_owned(),
        (true, finalizers) => format!("finalizers: {}", finalizers.join(", ")),
    }
}

/// Why a VM is not stopped or paused, if that is because nobody requested it.
fn power_reason(object: &Object, goal: Goal) -> Option<String> {
    match object {
        Object::Vm(vm) => {
            vm_state::reason(vm, goal).map(|reason| format!("vm/{}: {reason}", vm.metadata.name))
        }
        Object::HostGroup(_) | Object::Lease(_) => None,
    }
}
