//! Looks at a VM's run directory, and through `/proc` at its process.
//! Not here: judging what is found.

use std::time::Duration;

use super::note::Note;
use super::{
    CONSOLE, Control, Desired, LABEL_VAR, NOTE, OURS, Observed, Plug, RECORD, RunDir, Running,
    STRAY, Vmm, confine,
};
use crate::api::meta::Uid;
use crate::host::process::{self, Exit, Identity, Life, Record, TapSlot};
use crate::host::{Error, Kind, fs};
use crate::owner::{Instance, Label, Owner};

/// How often, and how far apart, a look waits for a birth under way: 5 s, for a busy machine is slow to load a VMM.
const BIRTH_PATIENCE: u32 = 500;
const BIRTH_STEP: Duration = Duration::from_millis(10);

impl Vmm {
    /// Every VM of this daemon that has a live VMM, wanted or not. One pass over `/proc`.
    pub async fn claimed(&self, instance: &Instance) -> Result<Vec<Label>, Error> {
        let labels: Vec<Label> = census()
            .await?
            .iter()
            .filter_map(|found| found.value.parse::<Label>().ok())
            .filter(|label| label.instance == *instance)
            .collect();
        let uids = labels.iter().filter_map(|label| match &label.owner {
            Owner::Vm { uid, .. } => Some(*uid),
            Owner::Ground => None,
        });
        self.lock().extend(uids);
        Ok(labels)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, std::collections::HashSet<Uid>> {
        // A set of uids is whole whatever its last user died of.
        self.seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

pub(super) async fn observe(rung: &Vmm, desired: &Desired) -> Result<Observed, Error> {
    let dir = look_at_dir(desired)?;
    let record = patient_record(desired).await?;
    let (recorded, ended) = follow(desired, record)?;
    let running = match recorded {
        Some(running) => vec![running],
        None if worth_a_census(rung, desired, &dir) => unrecorded(desired).await?,
        None => Vec::new(),
    };
    if running.is_empty() {
        rung.lock().remove(&desired.uid);
    }
    let last_words = if running.is_empty() {
        last_words(desired)
    } else {
        String::new()
    };
    Ok(Observed {
        dir,
        running,
        ended,
        last_words,
    })
}

fn look_at_dir(desired: &Desired) -> Result<RunDir, Error> {
    let mut beside = Vec::new();
    if Note::is_there(desired) {
        beside.push(NOTE.to_owned());
    }
    if fs::read_text(&desired.record())?.is_some() {
        beside.push(RECORD.to_owned());
    }
    Ok(match fs::look_at_dir(&desired.dir)? {
        fs::Dir::Absent if beside.is_empty() => RunDir::Absent,
        fs::Dir::Absent => RunDir::Present {
            ours: beside,
            others: Vec::new(),
        },
        fs::Dir::NotADirectory => RunDir::Foreign,
        fs::Dir::Present(names) => {
            let (mut ours, mut others): (Vec<_>, Vec<_>) = names.into_iter().partition(is_ours);
            // Where its own user may write all is its, and goes as one: its names are not to be told.
            if !others.is_empty() && confine::owner(&desired.dir)?.is_some_and(|user| user != 0) {
                others.clear();
                ours.push(STRAY.to_owned());
            }
            ours.extend(beside);
            ours.sort_unstable();
            ours.dedup();
            RunDir::Present { ours, others }
        }
    })
}

/// Or what a crash has left of writing it.
fn is_ours(name: &String) -> bool {
    let draft = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(".new"));
    OURS.contains(&draft.unwrap_or(name))
}

async fn patient_record(desired: &Desired) -> Result<Record, Error> {
    let path = desired.record();
    for _ in 0..BIRTH_PATIENCE {
        match process::read_record(&path) {
            Err(error) if error.kind == Kind::Busy => tokio::time::sleep(BIRTH_STEP).await,
            other => return other,
        }
    }
    process::read_record(&path)
}

/// What became of the process on record.
fn follow(desired: &Desired, record: Record) -> Result<(Option<Running>, Option<Exit>), Error> {
    let identity = match record {
        Record::None => return Ok((None, None)),
        Record::Unborn => return Ok((None, None)),
        Record::Of(identity) => identity,
    };
    match process::look(&identity)? {
        Life::Ended(exit) => Ok((None, Some(exit))),
        Life::Alive(process) => {
            let label = process::env_var(identity.pid, LABEL_VAR)?;
            let running = describe(desired, identity, label.as_deref(), Recorded::Yes)?;
            // `process` is held until here: what was described is what was looked at.
            drop(process);
            Ok((running, None))
        }
    }
}

/// Walking all of `/proc` is for the case that something could be there: before a launch, while files of a VMM are left, or
/// when the last census saw one. Never for a slot without VMM, never for a VM whose record is sound.
fn worth_a_census(rung: &Vmm, desired: &Desired, dir: &RunDir) -> bool {
    let traces = matches!(dir, RunDir::Present { ours, .. } if !ours.is_empty());
    desired.want.is_some() || traces || rung.lock().contains(&desired.uid)
}

async fn unrecorded(desired: &Desired) -> Result<Vec<Running>, Error> {
    let label = desired.label.to_string();
    let mut running = Vec::new();
    for found in census()
        .await?
        .into_iter()
        .filter(|found| found.value == label)
    {
        running.extend(describe(
            desired,
            found.identity,
            Some(&found.value),
            Recorded::No,
        )?);
    }
    Ok(running)
}

async fn census() -> Result<Vec<process::Found>, Error> {
    tokio::task::spawn_blocking(|| process::find(LABEL_VAR))
        .await
        .map_err(|error| Error::other("list the processes in", "/proc", error))?
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Recorded {
    Yes,
    No,
}

/// `None` for a process that does not bear our label.
fn describe(
    desired: &Desired,
    identity: Identity,
    label: Option<&str>,
    recorded: Recorded,
) -> Result<Option<Running>, Error> {
    let pid = identity.pid;
    let Some(process) = desired.label.claim(identity, label) else {
        return Ok(None);
    };
    Ok(Some(Running {
        process,
        argv: process::argv(pid)?,
        recorded: recorded == Recorded::Yes,
        plug: plug(desired, pid)?,
        polite: Control::in_dir(&desired.dir).is_some(),
        stale: stale(desired)?,
    }))
}

fn stale(desired: &Desired) -> Result<Vec<String>, Error> {
    match &desired.want {
        Some(launch) if !launch.files.is_empty() => {
            Ok(Note::stale(Note::read(desired)?.as_ref(), launch))
        }
        Some(_) | None => Ok(Vec::new()),
    }
}

fn plug(desired: &Desired, pid: u32) -> Result<Plug, Error> {
    let Some(launch) = &desired.want else {
        return Ok(Plug::In);
    };
    if !process::shares_netns(pid, launch.netns())? {
        return Ok(Plug::Elsewhere);
    }
    Ok(match process::tap_slot(pid)? {
        TapSlot::None | TapSlot::Attached(_) => Plug::In,
        TapSlot::Orphaned => Plug::TapGone,
    })
}

/// The last line that says something, at most 200 characters. A guest wrote it: nothing that could steer a terminal is left in it.
fn last_words(desired: &Desired) -> String {
    // What stands there is of the VMM's making: words that cannot be read are none.
    let tail = fs::tail(&desired.dir.join(CONSOLE), 4096);
    let tail = tail.ok().flatten().unwrap_or_default();
    let line = tail
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}
