//! From what runs to what is to run. Pure.
//! Not here: looking, acting, how often.

use super::{Action, Desired, Launch, Observed, Plug, RunDir, Running};
use crate::reconcile::Conflict;

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let kept = desired
        .want
        .as_ref()
        .and_then(|launch| fitting(launch, &observed.running));
    let mut actions: Vec<Action> = observed
        .running
        .iter()
        .filter(|running| kept != Some(running))
        .flat_map(stop)
        .collect();
    match (&observed.dir, &desired.want) {
        (RunDir::Foreign, Some(_)) => return Err(foreign(desired)),
        (RunDir::Foreign | RunDir::Absent, None) => {}
        (RunDir::Absent, Some(_)) => {
            actions.push(Action::CreateRunDir);
            actions.extend(run(kept, observed));
        }
        (RunDir::Present { .. }, Some(_)) => actions.extend(run(kept, observed)),
        (RunDir::Present { ours, others }, None) => actions.extend(clear(ours, others)),
    }
    Ok(actions)
}

/// The one to keep: started exactly as wanted and still on its wire; of several, the one on record.
fn fitting<'a>(launch: &Launch, running: &'a [Running]) -> Option<&'a Running> {
    let fits = |running: &&Running| match running.plug {
        Plug::In => running.argv == launch.argv && running.stale.is_empty(),
        Plug::TapGone | Plug::Elsewhere => false,
    };
    let recorded = running.iter().filter(fits).find(|running| running.recorded);
    recorded.or_else(|| running.iter().find(fits))
}

/// Each step waits for its deadline and is nothing to do once the process has ended.
fn stop(running: &Running) -> Vec<Action> {
    let ask = running
        .polite
        .then(|| Action::AskToPowerDown(running.process.clone()));
    ask.into_iter()
        .chain([
            Action::Terminate(running.process.clone()),
            Action::Kill(running.process.clone()),
        ])
        .collect()
}

fn run(kept: Option<&Running>, observed: &Observed) -> Option<Action> {
    match kept {
        None => Some(Action::Launch {
            after: observed.ended,
        }),
        Some(running) if !running.recorded => Some(Action::Record(running.process.clone())),
        Some(_) => None,
    }
}

fn clear(ours: &[String], others: &[String]) -> Vec<Action> {
    let files = (!ours.is_empty()).then(|| Action::RemoveFiles(ours.to_vec()));
    let dir = others.is_empty().then_some(Action::RemoveRunDir);
    files.into_iter().chain(dir).collect()
}

fn foreign(desired: &Desired) -> Conflict {
    Conflict {
        thing: desired.dir.display().to_string(),
        remedy: format!(
            "it is no directory of ours: move {} away",
            desired.dir.display()
        ),
    }
}
