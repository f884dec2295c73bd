//! Observes a VM's run directory and, through `/proc`, its process.
//! Out of scope: evaluating the observation.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::MutexGuard;

use super::identity::{Evidence, Owner as Belongs, Users};
use super::moved::OwnDisk;
use super::note::Note;
use super::plan::matching;
use super::{
    Attachment, BACK_END_RECORD, Desired, DesiredGuest, INPUT, LABEL_VAR, MANAGED_FILES, NOTE,
    OTHER_FILES, Observed, RECORD, ROLE_VAR, RunDir, Running, STOPPING, Vmm, confine, ending,
};
use crate::api::meta::Uid;
use crate::api::vmm_ids::IdRange;
use crate::host::blocking::within;
use crate::host::process::{self, Exit, Identity, Origin, ProcessState, Record, TapSlot};
use crate::host::{Error, Kind, cgroup, fs};
use crate::owner::{self, Instance, Label};
use crate::vmm::{Control, GuestState, jailer};

/// How long an observation waits for a start in progress: a busy machine is slow to load a VMM.
const START_DEADLINE: Duration = Duration::from_secs(5);
/// First and longest interval between checks of it; each interval is twice the previous one.
const FIRST_STEP: Duration = Duration::from_millis(1);
const LAST_STEP: Duration = Duration::from_millis(16);
/// Deadline for a process to end after it has closed its control socket.
const ENDING: Duration = Duration::from_millis(100);
/// Deadline for a process to end after it has released its memory, and so its arguments: the memory that it shares is freed after that.
const EXITING: Duration = Duration::from_secs(1);
/// Number of attempts to read the arguments or the TAP of a process that is being executed.
const EXEC_RETRIES: u32 = 10;

impl Vmm {
    /// Sets the range that users are assigned from.
    pub fn with_users(self, range: IdRange) -> Self {
        self.users().range = range;
        self
    }

    /// Sets the assignments of users to VMs, from the store.
    pub fn set_users(&self, of: HashMap<u32, Uid>) {
        self.users().of = of;
    }

    /// The live VMMs of this daemon, desired or not, each with its pid. One pass over `/proc`. Ignores processes of root, see
    /// [`super::identity`].
    pub async fn claimed(&self, instance: &Instance) -> Result<Vec<(Label, u32)>, Error> {
        let mut claimed = self.scan(instance).await?;
        claimed.retain(|(label, _)| label.instance == *instance);
        Ok(claimed)
    }

    async fn scan(&self, instance: &Instance) -> Result<Vec<(Label, u32)>, Error> {
        let users = self.users().clone();
        let known: HashSet<Uid> = users.of.values().copied().collect();
        let mut claimed = Vec::new();
        for (process, owner) in list_processes(users).await? {
            let pid = process.identity.pid;
            let uid = match &owner {
                Belongs::Named(label) => owner::uid_of(label),
                Belongs::Uid(uid) => *uid,
                Belongs::Unknown => continue,
            };
            self.seen.lock().insert(uid);
            match owner {
                Belongs::Named(label) => claimed.push((label, pid)),
                // The object of the VM, if there is one, contains the name.
                Belongs::Uid(uid) if !known.contains(&uid) => {
                    claimed.extend(unnamed_label(instance, uid).map(|label| (label, pid)));
                }
                Belongs::Uid(_) | Belongs::Unknown => {}
            }
        }
        // A concurrent call may have set it.
        let _ = self.scanned.set(());
        Ok(claimed)
    }

    /// The range that users are assigned from.
    pub(super) fn user_range(&self) -> IdRange {
        self.users().range
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        self.users.lock()
    }

    /// Whether a process of the VM may run that the record does not name. A record of a process, or of a failed start, is reliable: the
    /// child writes it before anything else. Without a record, files of a VMM or the last observation indicate a process. For all VMs with
    /// neither, a single pass over `/proc` is sufficient.
    async fn may_be_unrecorded(
        &self,
        desired: &Desired,
        dir: &RunDir,
        record: RecordState,
    ) -> Result<bool, Error> {
        match record {
            RecordState::Reliable => return Ok(false),
            RecordState::Missing => {}
        }
        if matches!(dir, RunDir::Present { ours, .. } if !ours.is_empty()) {
            return Ok(true);
        }
        if desired.launch.is_some() && !self.scanned.initialized() {
            self.scan(&desired.label.instance).await?;
        }
        Ok(self.seen.lock().contains(&desired.uid))
    }
}

pub(super) async fn observe(vmm: &Vmm, desired: &Desired) -> Result<Observed, Error> {
    let dir = observe_dir(desired)?;
    ending::check_stop(desired)?;
    let record = await_record(desired).await?;
    let RecordedProcess {
        running,
        ended,
        ended_as,
        trail: record_state,
    } = recorded_process(desired, record).await?;
    let mut running = match running {
        Some(running) => vec![running],
        None if vmm.may_be_unrecorded(desired, &dir, record_state).await? => {
            let users = vmm.users().clone();
            find_unrecorded(desired, users).await?
        }
        None => Vec::new(),
    };
    match running.is_empty() {
        true => vmm.seen.lock().remove(&desired.uid),
        false => vmm.seen.lock().insert(desired.uid),
    };
    // A VMM that will be replaced or removed is not queried for the state of its guest: it may be unable to respond.
    let kept = desired.launch.as_ref();
    let kept = kept.and_then(|launch| matching(launch, &running));
    let kept = kept.map(|kept| kept.process.resource().clone());
    for found in &mut running {
        if kept.as_ref() != Some(found.process.resource()) {
            continue;
        }
        found.guest = match guest(desired, found).await {
            Ok(state) => state,
            // A VMM closes its socket before it ends.
            Err(_) if ends(found.process.resource(), ENDING).await? => {
                return Box::pin(observe(vmm, desired)).await;
            }
            Err(error) => return Err(error),
        };
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
        last_output: last_words,
    })
}

/// Whether the process has ended, or ends within this time.
async fn ends(identity: &Identity, within: Duration) -> Result<bool, Error> {
    Ok(match process::open(identity)? {
        ProcessState::Ended(_) => true,
        ProcessState::Alive(process) => tokio::time::timeout(within, process.ended()).await.is_ok(),
    })
}

/// The state of the guest, if the desired state depends on it.
async fn guest(desired: &Desired, running: &Running) -> Result<Option<GuestState>, Error> {
    match (desired.guest, &desired.launch) {
        (DesiredGuest::Any, _) | (_, None) => return Ok(None),
        (DesiredGuest::Running | DesiredGuest::Paused, Some(_)) => {}
    }
    let pid = running.process.resource().pid;
    match Control::in_dir(&desired.dir) {
        // It is still starting.
        None => Ok(None),
        Some(control) => control.state(&desired.dir, pid).await.map(Some),
    }
}

/// The files of this daemon next to the run directory. The record of a stop is removed with the process record, and is listed only if there
/// is no process record.
fn files_next_to_run_dir(desired: &Desired) -> Result<Vec<String>, Error> {
    let mut beside = Vec::new();
    if Note::exists(desired) {
        beside.push(NOTE.to_owned());
    }
    for (name, path) in [
        (INPUT, desired.input()),
        (BACK_END_RECORD, desired.back_end_record()),
    ] {
        if path.exists() {
            beside.push(name.to_owned());
        }
    }
    for (name, path) in [(RECORD, desired.record()), (STOPPING, desired.stopping())] {
        if fs::read_text(&path)?.is_some() {
            beside.push(name.to_owned());
            break;
        }
    }
    Ok(beside)
}

fn observe_dir(desired: &Desired) -> Result<RunDir, Error> {
    let beside = files_next_to_run_dir(desired)?;
    Ok(match fs::read_dir(&desired.dir)? {
        fs::Dir::Absent if beside.is_empty() => RunDir::Absent,
        fs::Dir::Absent => RunDir::Present {
            ours: beside,
            others: Vec::new(),
        },
        fs::Dir::NotADirectory => RunDir::Foreign,
        fs::Dir::Present(names) => {
            let (mut ours, mut others): (Vec<_>, Vec<_>) =
                names.into_iter().partition(|name| is_managed(name));
            // In a directory that belongs to a VMM's user all files are removed together, and their names are not shown.
            if !others.is_empty() && confine::owner(&desired.dir)?.is_some_and(|user| user != 0) {
                others.clear();
                ours.push(OTHER_FILES.to_owned());
            }
            ours.extend(beside);
            ours.sort_unstable();
            ours.dedup();
            RunDir::Present { ours, others }
        }
    })
}

/// Whether it is a name in [`MANAGED_FILES`], or a draft of such a file that a crash has left.
fn is_managed(name: &str) -> bool {
    let draft = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(".new"));
    MANAGED_FILES.contains(&draft.unwrap_or(name))
}

async fn await_record(desired: &Desired) -> Result<Record, Error> {
    let path = desired.record();
    let (mut waited, mut step) = (Duration::ZERO, FIRST_STEP);
    while waited < START_DEADLINE {
        match process::read_record(&path) {
            Err(error) if error.kind == Kind::Busy => tokio::time::sleep(step).await,
            other => return other,
        }
        waited += step;
        step = LAST_STEP.min(step * 2);
    }
    process::read_record(&path)
}

/// Whether a record can be relied on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RecordState {
    /// It names a process, running or not, or a failed start.
    Reliable,
    /// There is no record.
    Missing,
}

struct RecordedProcess {
    running: Option<Running>,
    ended: Option<Exit>,
    /// The identity of the process that has ended, if it ran in this boot.
    ended_as: Option<Identity>,
    trail: RecordState,
}

/// The state of the recorded process.
async fn recorded_process(desired: &Desired, record: Record) -> Result<RecordedProcess, Error> {
    let none = |trail| RecordedProcess {
        running: None,
        ended: None,
        ended_as: None,
        trail,
    };
    let identity = match record {
        Record::None => return Ok(none(RecordState::Missing)),
        Record::Unborn => return Ok(none(RecordState::Reliable)),
        Record::Of(identity) => identity,
    };
    match process::open(&identity)? {
        ProcessState::Ended(exit) => {
            let now = identity.boot == fs::boot_id()?;
            Ok(RecordedProcess {
                ended: Some(exit),
                ended_as: now.then_some(identity),
                ..none(RecordState::Reliable)
            })
        }
        // Root wrote the record, and a process cannot change its start time: it belongs to the VM, whatever it has executed since.
        ProcessState::Alive(process) => {
            let argv = argv(identity.pid).await?;
            // A process that exits has no arguments any more: it is not another one that must be stopped.
            if argv.is_empty() && ends(&identity, EXITING).await? {
                return Box::pin(recorded_process(desired, Record::Of(identity))).await;
            }
            let running = describe(desired, identity, argv, Recorded::Yes).await?;
            // `process` is held until here, so that the pid is not reused meanwhile.
            drop(process);
            Ok(RecordedProcess {
                running,
                ..none(RecordState::Reliable)
            })
        }
    }
}

/// The processes of the VM when there is no record. Their children are not listed: they are killed together with their parents.
async fn find_unrecorded(desired: &Desired, mut users: Users) -> Result<Vec<Running>, Error> {
    let noted = Note::read(desired)?.and_then(|noted| noted.user);
    let user = desired.confined.as_ref().map(|confined| confined.user);
    for user in user.into_iter().chain(noted) {
        users.of.entry(user).or_insert(desired.uid);
    }
    let is_of_vm = |owner: &Belongs| match owner {
        Belongs::Named(label) => {
            label.instance == desired.label.instance && owner::uid_of(label) == desired.uid
        }
        Belongs::Uid(uid) => *uid == desired.uid,
        Belongs::Unknown => false,
    };
    let mut processes = list_processes(users).await?;
    processes.retain(|(_, owner)| is_of_vm(owner));
    let pids: HashSet<u32> = processes
        .iter()
        .map(|(found, _)| found.identity.pid)
        .collect();
    processes.retain(|(found, _)| !pids.contains(&found.parent));
    let mut running = Vec::new();
    for (found, _) in processes {
        let argv = argv(found.identity.pid).await?;
        running.extend(describe(desired, found.identity, argv, Recorded::No).await?);
    }
    Ok(running)
}

/// Deadline for reading `/proc`: reading the environment of a process takes its mmap lock, which a process that sleeps in the kernel may
/// hold.
const LIST_DEADLINE: Duration = Duration::from_secs(10);

/// Every process that may be a VMM, with its owner.
async fn list_processes(users: Users) -> Result<Vec<(Origin, Belongs)>, Error> {
    let look = move || {
        let is_assignable = |user: u32| users.are_assignable(user);
        let env_label = |pid| process::env_var(pid, LABEL_VAR).ok().flatten();
        let group = |group: &str| cgroup::member(cgroup::own(), group);
        let owner = |origin: Origin| {
            let owner = Evidence::of(&origin, group, env_label).owner(&users);
            (origin, owner)
        };
        let mut found = process::origins(is_assignable)?;
        // The back end of a vsock device ends with its VMM.
        found.retain(|origin| origin.root.label(ROLE_VAR).is_none());
        Ok(found.into_iter().map(owner).collect())
    };
    within(LIST_DEADLINE, "list the processes in", "/proc", look).await
}

/// The label of a VM of which only processes exist, with an unknown name.
fn unnamed_label(instance: &Instance, uid: Uid) -> Option<Label> {
    let name = "unknown".parse().ok()?;
    Some(instance.vm_label(&name, uid))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Recorded {
    Yes,
    No,
}

/// The arguments of a process, as it reports them. They are empty during an exec.
async fn argv(pid: u32) -> Result<Vec<String>, Error> {
    let mut tries = 1;
    loop {
        let argv = process::argv(pid)?;
        if !argv.is_empty() || tries == EXEC_RETRIES {
            return Ok(argv);
        }
        tries += 1;
        tokio::time::sleep(FIRST_STEP).await;
    }
}

async fn describe(
    desired: &Desired,
    identity: Identity,
    argv: Vec<String>,
    recorded: Recorded,
) -> Result<Option<Running>, Error> {
    let pid = identity.pid;
    let label = desired.label.to_string();
    let Some(process) = desired.label.claim(identity, Some(&label)) else {
        return Ok(None);
    };
    Ok(Some(Running {
        power_down_requested_ms: ending::request_age_ms(desired, process.resource())?,
        guest: None,
        process,
        argv: comparable_argv(desired, argv),
        recorded: recorded == Recorded::Yes,
        attachment: attachment(desired, pid).await?,
        has_control_socket: Control::in_dir(&desired.dir).is_some(),
        stale: stale(desired)?,
    }))
}

/// The arguments of a process, as they would be if it were started now from the same spec.
fn comparable_argv(desired: &Desired, argv: Vec<String>) -> Vec<String> {
    let argv = jailer::without_jailer(argv, desired.launch.as_ref());
    match OwnDisk::of(desired).zip(desired.launch.as_ref()) {
        Some((own, launch)) => own.argv_now(launch, argv),
        None => argv,
    }
}

fn stale(desired: &Desired) -> Result<Vec<String>, Error> {
    match &desired.launch {
        Some(launch) if !launch.files.is_empty() => {
            let own = OwnDisk::of(desired);
            Ok(Note::stale(
                Note::read(desired)?.as_ref(),
                launch,
                own.as_ref(),
            ))
        }
        Some(_) | None => Ok(Vec::new()),
    }
}

/// The attachment of a process. Between opening the tun device and attaching it, the TAP briefly appears to be gone.
async fn attachment(desired: &Desired, pid: u32) -> Result<Attachment, Error> {
    let Some(launch) = &desired.launch else {
        return Ok(Attachment::In);
    };
    if !process::shares_netns(pid, launch.netns())? {
        return Ok(Attachment::Elsewhere);
    }
    for _ in 1..EXEC_RETRIES {
        match process::tap_slot(pid)? {
            TapSlot::None | TapSlot::Attached(_) => return Ok(Attachment::In),
            TapSlot::Orphaned => tokio::time::sleep(FIRST_STEP).await,
        }
    }
    Ok(Attachment::TapGone)
}
