//! Computes the actions from the observed to the desired state. Pure.
//! Out of scope: observing, acting, retrying; whether a VM that has ended may be started again.

use super::{
    Action, Attachment, CONSOLE, CONSOLE_OLD, Desired, DesiredGuest, EvaluatedExits, NOTE,
    Observed, RECORD, Retain, RunDir, Running,
};
use crate::api::life::GracePeriod;
use crate::reconcile::Conflict;
use crate::vmm::{GuestState, Launch};

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let kept = desired
        .launch
        .as_ref()
        .and_then(|launch| matching(launch, &observed.running));
    let mut actions: Vec<Action> = observed
        .running
        .iter()
        .filter(|running| kept != Some(running))
        .flat_map(|running| match desired.forced {
            true => vec![Action::Kill(running.process.clone())],
            false => stop(running, desired.grace),
        })
        .collect();
    match (&observed.dir, &desired.launch) {
        (RunDir::Foreign, Some(_)) => return Err(not_a_directory(desired)),
        (RunDir::Foreign | RunDir::Absent, None) => {}
        (RunDir::Absent, Some(_)) => {
            actions.push(Action::CreateRunDir);
            actions.extend(run(desired, kept, observed));
        }
        (RunDir::Present { .. }, Some(_)) => actions.extend(run(desired, kept, observed)),
        (RunDir::Present { ours, others }, None) => match desired.left {
            Retain::Nothing => actions.extend(clear(ours, others)),
            Retain::Log => {
                actions.extend(evaluate_exit(desired, observed));
                actions.extend(clear_except_logs(ours));
            }
        },
    }
    Ok(actions)
}

/// The process to keep: started exactly as desired and still attached to its network; of several, the recorded one.
pub(super) fn matching<'a>(launch: &Launch, running: &'a [Running]) -> Option<&'a Running> {
    let is_match = |running: &&Running| match running.attachment {
        Attachment::In => running.argv == launch.argv && running.stale.is_empty(),
        Attachment::TapGone | Attachment::Elsewhere => false,
    };
    let recorded = running
        .iter()
        .filter(is_match)
        .find(|running| running.recorded);
    recorded.or_else(|| running.iter().find(is_match))
}

/// Stops a process: a single power-down request and the grace period, then signals with their own deadlines. Each action does nothing
/// once the process has ended.
fn stop(running: &Running, grace: GracePeriod) -> Vec<Action> {
    let process = || running.process.clone();
    let grace = u64::try_from(grace.get().as_millis()).unwrap_or(u64::MAX);
    let wait = |left_ms| Action::PoweredDown {
        process: process(),
        left_ms,
    };
    let request = match running.power_down_requested_ms {
        None if running.has_control_socket && grace > 0 => {
            vec![Action::RequestPowerDown(process()), wait(grace)]
        }
        Some(asked) if asked < grace => vec![wait(grace - asked)],
        None | Some(_) => Vec::new(),
    };
    let signals = [Action::Terminate(process()), Action::Kill(process())];
    request.into_iter().chain(signals).collect()
}

fn run(desired: &Desired, kept: Option<&Running>, observed: &Observed) -> Vec<Action> {
    let Some(running) = kept else {
        let after = observed.ended;
        let launch = Action::Launch { after };
        return evaluate_exit(desired, observed)
            .into_iter()
            .chain([launch])
            .collect();
    };
    let process = || running.process.clone();
    let record = (!running.recorded).then(|| Action::Record(process()));
    let guest = match (desired.guest, running.guest) {
        (DesiredGuest::Paused, Some(GuestState::Paused | GuestState::Ended)) => None,
        (DesiredGuest::Paused, None | Some(GuestState::Starting | GuestState::Running)) => {
            Some(Action::Pause(process()))
        }
        (DesiredGuest::Running, Some(GuestState::Paused)) => Some(Action::Resume(process())),
        (DesiredGuest::Running | DesiredGuest::Any, _) => None,
    };
    record.into_iter().chain(guest).collect()
}

/// How a process ended must be stored before its files are removed.
fn evaluate_exit(desired: &Desired, observed: &Observed) -> Option<Action> {
    let EvaluatedExits::Of(known) = &desired.evaluated_exits else {
        return None;
    };
    let ended = observed.ended_as.is_some() && observed.ended_as != *known;
    let will_end = observed.running.iter().any(|running| running.recorded);
    (ended || will_end).then_some(Action::RecordExit)
}

fn clear(ours: &[String], others: &[String]) -> Vec<Action> {
    let files = (!ours.is_empty()).then(|| Action::RemoveFiles(ours.to_vec()));
    let dir = others.is_empty().then_some(Action::RemoveRunDir);
    files.into_iter().chain(dir).collect()
}

/// The process record and the note are kept, too: a daemon that has lost its state needs them to know that the VM has run, and which users'
/// files were changed for it.
fn clear_except_logs(ours: &[String]) -> Option<Action> {
    let is_kept = |name: &&String| [CONSOLE, CONSOLE_OLD, NOTE, RECORD].contains(&name.as_str());
    let rest: Vec<String> = ours.iter().filter(|name| !is_kept(name)).cloned().collect();
    (!rest.is_empty()).then_some(Action::RemoveFiles(rest))
}

fn not_a_directory(desired: &Desired) -> Conflict {
    Conflict {
        object: desired.dir.display().to_string(),
        remedy: format!("it is not a directory: move {} away", desired.dir.display()),
    }
}
