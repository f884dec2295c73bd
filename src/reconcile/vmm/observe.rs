//! Looks at a VM's run directory, and through `/proc` at its process.
//! Not here: judging what is found.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{
    Control, Desired, Guest, GuestState, LABEL_VAR, OURS, Observed, Plug, RECORD, RunDir, Running,
    STOPPING, Vmm, ending,
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
    let (recorded, ended, ended_as) = match follow(desired, record)? {
        Followed::Nothing => (None, None, None),
        Followed::Running(running) => (running, None, None),
        Followed::Ended(identity, exit) => (None, Some(exit), identity),
    };
    let mut running = match recorded {
        Some(running) => vec![running],
        None if worth_a_census(rung, desired, &dir) => unrecorded(desired).await?,
        None => Vec::new(),
    };
    if running.is_empty() {
        rung.lock().remove(&desired.uid);
    }
    for found in &mut running {
        found.guest = guest(desired, found).await?;
    }
    let last_words = if running.is_empty() {
        ending::last_lines(&desired.dir, 1).concat()
    } else {
        String::new()
    };
    Ok(Observed {
        dir,
        running,
        ended,
        ended_as,
        last_words,
    })
}

/// What the guest does, where it matters.
async fn guest(desired: &Desired, running: &Running) -> Result<Option<GuestState>, Error> {
    match (desired.guest, &desired.want) {
        (Guest::Any, _) | (_, None) => return Ok(None),
        (Guest::Running | Guest::Paused, Some(_)) => {}
    }
    let pid = running.process.thing().pid;
    match Control::in_dir(&desired.dir) {
        // It is just starting.
        None => Ok(None),
        Some(control) => control.state(&desired.dir, pid).await.map(Some),
    }
}

/// What of ours stands beside the run directory. The note of a stop goes with the record, and is named only without one.
fn beside(desired: &Desired) -> Result<Vec<String>, Error> {
    for (name, path) in [(RECORD, desired.record()), (STOPPING, desired.stopping())] {
        if fs::read_text(&path)?.is_some() {
            return Ok(vec![name.to_owned()]);
        }
    }
    Ok(Vec::new())
}

fn look_at_dir(desired: &Desired) -> Result<RunDir, Error> {
    let beside = beside(desired)?;
    Ok(match fs::look_at_dir(&desired.dir)? {
        fs::Dir::Absent if !beside.is_empty() => RunDir::Present {
            ours: beside,
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
            ours.extend(beside);
            ours.sort_unstable();
            ours.dedup();
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
enum Followed {
    /// There is none.
    Nothing,
    /// It runs; none: it does not bear our label.
    Running(Option<Running>),
    /// It has ended, in this boot if it is named.
    Ended(Option<Identity>, Exit),
}

fn follow(desired: &Desired, record: Record) -> Result<Followed, Error> {
    let identity = match record {
        Record::None | Record::Unborn => return Ok(Followed::Nothing),
        Record::Of(identity) => identity,
    };
    match process::look(&identity)? {
        Life::Ended(exit) => {
            let now = identity.boot == fs::boot_id()?;
            Ok(Followed::Ended(now.then_some(identity), exit))
        }
        Life::Alive(process) => {
            let label = process::env_var(identity.pid, LABEL_VAR)?;
            let running = describe(desired, identity, label.as_deref(), Recorded::Yes)?;
            // `process` is held until here: what was described is what was looked at.
            drop(process);
            Ok(Followed::Running(running))
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
        asked_ms: ending::asked_ms(desired, process.thing())?,
        guest: None,
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
