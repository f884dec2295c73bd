//! Looks at a VM's run directory, and through `/proc` at its process.
//! Not here: judging what is found.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{
    CONSOLE, Control, Desired, LABEL_VAR, OURS, Observed, Plug, RECORD, RunDir, Running, Vmm,
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
    let recorded = fs::read_text(&desired.record())?.is_some();
    Ok(match fs::look_at_dir(&desired.dir)? {
        fs::Dir::Absent if recorded => RunDir::Present {
            ours: vec![RECORD.to_owned()],
            others: Vec::new(),
        },
        fs::Dir::Absent => RunDir::Absent,
        fs::Dir::NotADirectory => RunDir::Foreign,
        fs::Dir::Present(names) => {
            let owner = owner(&desired.dir)?;
            let is_ours = |name: &String| {
                let made_by_the_vmm =
                    || owner != 0 && owner_or_none(&desired.dir.join(name)) == Some(owner);
                OURS.contains(&name.as_str()) || made_by_the_vmm()
            };
            let (mut ours, others): (Vec<_>, Vec<_>) = names.into_iter().partition(is_ours);
            if recorded {
                ours.push(RECORD.to_owned());
                ours.sort_unstable();
                ours.dedup();
            }
            RunDir::Present { ours, others }
        }
    })
}

/// Who may write in the run directory: the VMM's user. Root, if that is what it runs as.
fn owner(dir: &Path) -> Result<u32, Error> {
    let found = std::fs::symlink_metadata(dir);
    let found = found.map_err(|error| Error::io("look at", dir.display().to_string(), error))?;
    Ok(found.uid())
}

fn owner_or_none(path: &Path) -> Option<u32> {
    std::fs::symlink_metadata(path)
        .ok()
        .map(|found| found.uid())
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

/// They are written before the start and never while it runs, so they are what it has read.
fn stale(desired: &Desired) -> Result<Vec<String>, Error> {
    let files = desired.want.iter().flat_map(|launch| &launch.files);
    let mut stale = Vec::new();
    for file in files {
        let found = fs::read(&desired.dir.join(&file.name))?;
        if found.as_deref() != Some(file.text.as_bytes()) {
            stale.push(file.name.clone());
        }
    }
    Ok(stale)
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
