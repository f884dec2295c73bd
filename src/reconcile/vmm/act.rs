//! Runs one action of a plan.
//! Out of scope: which actions are run, and when.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use super::back_end;
use super::ending::PowerDownRequest;
use super::jailing::JailerLaunch;
use super::note::Note;
use super::opened::OpenFiles;
use super::{
    Action, CONSOLE, CONSOLE_OLD, Desired, LABEL_VAR, LOG_LIMIT, NOTE, OTHER_FILES, RUN_DIR_VAR,
    Retain, confine, ending, owners, watch,
};
use crate::host::blocking::within;
use crate::host::image::{self, Use};
use crate::host::process::{
    self, Confine, Identity, Process, ProcessState, Record, Spawn, StderrReader, StopSignal,
};
use crate::host::{Error, Kind, fs, ramdir};
use crate::runtime::controller::release_worker;
use crate::vmm::program::installed_dirs;
use crate::vmm::{Access, Control, Disk, FileAccess, Launch, SOCKETS};

/// Deadline for a VMM to end after SIGTERM.
const TERM_DEADLINE: Duration = Duration::from_secs(2);
/// Deadline for the kernel to end a process after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Deadline for executing a program, which may be on a file system with a server that does not respond.
const SPAWN_DEADLINE: Duration = Duration::from_secs(30);
/// Deadline for the process to end after its control group is killed.
const CGROUP_DEADLINE: Duration = Duration::from_secs(1);
/// Deadline for a new VMM to respond on its control socket, or to fail.
const START_DEADLINE: Duration = Duration::from_secs(3);
/// Number of lines of a VMM's output that are reported after a failed start.
const LAST_LINES: usize = 3;
/// Number of attempts to lock a disk, and the delay between two. A child that is being spawned concurrently has inherited the locks that
/// this process holds for another VM, until its exec.
const LOCK_TRIES: u32 = 4;
const LOCK_RETRY_DELAY: Duration = Duration::from_millis(15);
/// First and longest interval between checks for the control socket; each interval is twice the previous one.
const FIRST_STEP: Duration = Duration::from_millis(1);
const LAST_STEP: Duration = Duration::from_millis(8);

pub(super) async fn act(
    places: &FileAccess,
    desired: &Desired,
    action: &Action,
    is_assigned: impl Fn(u32) -> bool,
) -> Result<(), Error> {
    match action {
        Action::CreateRunDir => fs::make_dir(&desired.dir, 0o700),
        Action::Record(process) => process::write_record(&desired.record(), process.resource()),
        Action::RequestPowerDown(process) => request_power_down(desired, process.resource()).await,
        Action::Pause(process) => {
            let (control, pid) = control(desired, process.resource())?;
            control.pause(&desired.dir, pid).await
        }
        Action::Resume(process) => {
            let (control, pid) = control(desired, process.resource())?;
            control.resume(&desired.dir, pid).await
        }
        Action::Terminate(process) => terminate(desired, process.resource(), is_assigned).await,
        Action::Kill(process) => kill(desired, process.resource(), is_assigned).await,
        // These need no action here: see `waits`.
        Action::PoweredDown { .. } | Action::RecordExit => Ok(()),
        Action::Launch { .. } => match &desired.launch {
            Some(launch) => start(places, desired, launch).await,
            None => Ok(()),
        },
        Action::RemoveFiles(names) => remove(places, desired, names).await,
        Action::RemoveRunDir => remove_dir(desired),
    }
}

/// Requests a power-down. A guest that ignores the request still gets its grace period; a guest of a VMM that does not respond gets none.
async fn request_power_down(desired: &Desired, identity: &Identity) -> Result<(), Error> {
    let ProcessState::Alive(_held) = process::open(identity)? else {
        return Ok(());
    };
    ending::record_stop(desired, identity, PowerDownRequest::Asking)?;
    let asked = match Control::in_dir(&desired.dir) {
        None => PowerDownRequest::Not,
        Some(control) => match control.power_down(&desired.dir, identity.pid).await {
            Ok(()) => PowerDownRequest::AtMs(ending::now_ms()?),
            Err(error) => {
                tracing::debug!(pid = identity.pid, %error, "a VMM does not accept a power-down request");
                PowerDownRequest::Not
            }
        },
    };
    ending::record_stop(desired, identity, asked)
}

fn control(desired: &Desired, identity: &Identity) -> Result<(Control, u32), Error> {
    let no_control = || Error::other("connect to", "the VMM", "it has no control socket");
    let control = Control::in_dir(&desired.dir).ok_or_else(no_control)?;
    Ok((control, identity.pid))
}

async fn terminate(
    desired: &Desired,
    identity: &Identity,
    is_assigned: impl Fn(u32) -> bool,
) -> Result<(), Error> {
    ending::record_stop_once(desired, identity)?;
    let user = assigned_user(desired, identity, is_assigned)?;
    match signal(identity, StopSignal::Terminate, TERM_DEADLINE).await? {
        true => kill_user_processes(desired, user).await,
        false => Ok(()),
    }
}

/// The user of the process, if it is one that is assigned to VMs. Processes of any other user must not be killed by user.
fn assigned_user(
    desired: &Desired,
    identity: &Identity,
    is_assigned: impl Fn(u32) -> bool,
) -> Result<Option<u32>, Error> {
    let own = desired.confined.as_ref().map(|confined| confined.user);
    let user = process::origin(identity)?.map(|origin| origin.user);
    Ok(user.filter(|user| own == Some(*user) || is_assigned(*user)))
}

/// Sends the signal and waits. Returns whether the process has ended before the deadline.
async fn signal(identity: &Identity, stop: StopSignal, deadline: Duration) -> Result<bool, Error> {
    let ProcessState::Alive(process) = process::open(identity)? else {
        return Ok(true);
    };
    process.stop(stop)?;
    wait(&process, deadline).await
}

/// Kills the process by its pid, then its control group.
async fn kill(
    desired: &Desired,
    identity: &Identity,
    is_assigned: impl Fn(u32) -> bool,
) -> Result<(), Error> {
    // In a forced deletion no stop was recorded before. The exit of such a VM is not evaluated, so a full disk does not prevent it.
    if let Err(error) = ending::record_stop_once(desired, identity) {
        tracing::warn!(pid = identity.pid, %error, "cannot record that a VMM is stopped");
    }
    let user = assigned_user(desired, identity, is_assigned)?;
    if !signal(identity, StopSignal::Kill, KILL_DEADLINE).await? {
        confine::kill_cgroup(desired);
        if !signal(identity, StopSignal::Kill, CGROUP_DEADLINE).await? {
            let deadline = humantime::format_duration(KILL_DEADLINE + CGROUP_DEADLINE);
            let reason = format!("it still runs {deadline} after SIGKILL");
            return Err(Error::other(
                "stop",
                format!("process {}", identity.pid),
                reason,
            ));
        }
    }
    kill_user_processes(desired, user).await?;
    match process::read_record(&desired.record()) {
        // Its exit status is read later; it is reaped when its files are removed.
        Ok(Record::Of(recorded)) if recorded == *identity => Ok(()),
        _ => process::reap(identity),
    }
}

/// Waits for the process. Returns whether it has ended before the deadline.
async fn wait(process: &Process, deadline: Duration) -> Result<bool, Error> {
    match tokio::time::timeout(deadline, process.ended()).await {
        Ok(ended) => ended.map(|()| true),
        Err(_) => Ok(false),
    }
}

async fn start(places: &FileAccess, desired: &Desired, launch: &Launch) -> Result<(), Error> {
    if launch.only_kept {
        let reason = "an earlier version started it without a user of its own: a user must be assigned first";
        return Err(Error::other("start", "the VMM again", reason));
    }
    clean_up_previous(desired).await?;
    fs::remove(&desired.stopping())?;
    confine::prepare_run_dir(desired)?;
    if let Err(error) = watch::rotate(&desired.dir) {
        // The obstacle was created by the previous VMM.
        tracing::debug!(%error, "a VMM's log cannot be rotated");
    }
    for file in &launch.files {
        let (path, text) = (desired.dir.join(&file.name), file.text.as_bytes());
        fs::write(&path, text, 0o600, fs::Durability::Process)?;
    }
    for pipe in &launch.pipes {
        let path = desired.dir.join(pipe);
        let created = fs::create_fifo(&path).map(drop);
        created.map_err(|error| Error::io("make", path.display().to_string(), error))?;
    }
    let (identity, stderr) = spawn(places.clone(), desired.clone(), launch.clone()).await?;
    tracing::debug!(pid = identity.pid, "started a VMM");
    let ProcessState::Alive(process) = process::open(&identity)? else {
        ending::append_output(&desired.dir, stderr.as_ref());
        return Err(failed_at_startup(desired, &identity)?);
    };
    let up = wait_until_up(desired, identity.pid);
    let up = release_worker(tokio::time::timeout(START_DEADLINE, up));
    tokio::select! {
        ended = process.ended() => {
            ended?;
            ending::append_output(&desired.dir, stderr.as_ref());
            Err(failed_at_startup(desired, &identity)?)
        }
        // After the deadline it is slow, not dead: the next observation finds out whether it runs.
        _ = up => Ok(()),
    }
}

/// The name of the socket that appears identifies the kind of VMM.
async fn wait_until_up(desired: &Desired, pid: u32) {
    let mut delay = FIRST_STEP;
    loop {
        if let Some(control) = Control::in_dir(&desired.dir) {
            return control.wait_until_up(&desired.dir, pid).await;
        }
        tokio::time::sleep(delay).await;
        delay = LAST_STEP.min(delay * 2);
    }
}

/// The child holds the locks of the disks from before its exec until it ends; this process holds them only during the start.
/// Where a jailer starts the VMM, its standard error is returned instead of being written to its log.
async fn spawn(
    places: FileAccess,
    desired: Desired,
    launch: Launch,
) -> Result<(Identity, Option<StderrReader>), Error> {
    let start = move || {
        if let Some(note) = Note::read(&desired)? {
            confine::restore_owners(&note);
        }
        owners::restore_all(&places.disk_dir, &desired.uid.to_string())?;
        // From here on only these descriptors are used; no path is resolved again.
        let opened = match &desired.confined {
            Some(confined) => Some(OpenFiles::of(&places, confined, &launch)?),
            None => None,
        };
        let locked = lock_disks(&desired.disks, opened.as_ref())?;
        let (label, dir) = (desired.label.to_string(), desired.dir.display().to_string());
        let user = desired.confined.as_ref().map(|confined| confined.user);
        Note::of(&launch, user).write(&desired)?;
        confine::chown_run_dir(&desired)?;
        if let (Some(opened), Some(user)) = (&opened, user) {
            opened.grant_access(&places, desired.uid, user)?;
        }
        let cgroup = confine::cgroup(&desired);
        let fds: Vec<_> = locked.iter().map(|(_, file)| file.as_fd()).collect();
        let final_limit = file_limit(&locked)?;
        // Until the file in memory that it shares has its full size; then its back end sets the final limit.
        let shared = launch.back_end.map_or(0, |it| it.shared_bytes);
        let file_limit = final_limit.max(shared);
        let jailing = JailerLaunch::of(&desired, &launch, opened.as_ref(), &fds, file_limit)?;
        let program = jailing.as_ref().map(JailerLaunch::jailer);
        let program = program.or(opened.as_ref().map(|opened| &opened.program));
        let installed = program.map_or(Vec::new(), |named| installed_dirs(named.real()));
        let reach = opened
            .as_ref()
            .map(|opened| opened.visible_files(&installed));
        let confine = desired.confined.as_ref().map(|confined| Confine {
            user: confined.user,
            home: &desired.dir,
            reach: reach.as_deref().unwrap_or_default(),
            kvm: confine::needs_kvm(&launch),
            cgroup: cgroup.as_deref(),
            jail: jailing.as_ref().map(JailerLaunch::jail),
        });
        if launch.back_end.is_some() {
            let (sliced, cgroup) = (&places.sliced, cgroup.as_deref());
            back_end::start(sliced, &desired, &launch, cgroup, final_limit)?;
        }
        let spawned = process::spawn(&Spawn {
            argv: jailing
                .as_ref()
                .map_or(&launch.argv[..], JailerLaunch::argv),
            env: &[(LABEL_VAR, &label), (RUN_DIR_VAR, &dir)],
            cwd: &desired.dir,
            netns: launch.netns(),
            needs_link: &launch.tap,
            input: Some(&desired.input()),
            log: &desired.dir.join(CONSOLE),
            file_limit: jailing
                .as_ref()
                .map_or(file_limit, JailerLaunch::file_limit),
            inherits: match jailing {
                None => &fds,
                Some(_) => &[],
            },
            record: &desired.record(),
            program,
            confine,
        });
        let stderr = jailing.map(JailerLaunch::release);
        if spawned.is_err() {
            ending::append_output(&desired.dir, stderr.as_ref());
            back_end::stop(&desired)?;
        }
        Ok((spawned?, stderr))
    };
    within(SPAWN_DEADLINE, "start", "the VMM", start).await
}

fn lock_disks(disks: &[Disk], opened: Option<&OpenFiles>) -> Result<Vec<(Access, File)>, Error> {
    let lock = |disk: &Disk| {
        let usage = match disk.access {
            Access::ReadOnly => Use::Read,
            Access::ReadWrite => Use::Write,
        };
        let mut tries = 1;
        loop {
            let locked = match opened {
                Some(opened) => opened.lock(disk, usage),
                None => image::hold(&disk.path, usage),
            };
            match locked {
                Err(error) if error.kind == Kind::Busy && tries < LOCK_TRIES => tries += 1,
                other => return Ok((disk.access, other?)),
            }
            std::thread::sleep(LOCK_RETRY_DELAY);
        }
    };
    disks.iter().map(lock).collect()
}

/// The kernel has one limit for all files of a process: it must cover its log and every disk that it writes to.
fn file_limit(disks: &[(Access, File)]) -> Result<u64, Error> {
    let mut limit = LOG_LIMIT;
    for (access, file) in disks {
        match access {
            Access::ReadOnly => {}
            Access::ReadWrite => limit = limit.max(image::length(file)?),
        }
    }
    Ok(limit)
}

/// The error for a VMM that ended during its start, with its last output as the reason.
fn failed_at_startup(desired: &Desired, identity: &Identity) -> Result<Error, Error> {
    let outcome = match process::open(identity)? {
        ProcessState::Ended(exit) => exit.to_string(),
        ProcessState::Alive(_) => "failed".to_owned(),
    };
    // Several lines: the first may contain the cause, the following its effects.
    let output = match ending::last_lines(&desired.dir, LAST_LINES) {
        none if none.is_empty() => "none".to_owned(),
        last => last.join("; "),
    };
    Ok(Error::other(
        "start",
        "the VMM",
        format!("it {outcome}; last output: {output}"),
    ))
}

async fn remove(places: &FileAccess, desired: &Desired, names: &[String]) -> Result<(), Error> {
    clean_up_previous(desired).await?;
    fs::remove(&desired.stopping())?;
    fs::remove(&desired.input())?;
    fs::remove(&desired.back_end_record())?;
    // Their location in versions before the run directory belonged to the VMM.
    for name in [CONSOLE, CONSOLE_OLD, Control::Qmp.socket()] {
        fs::remove(&desired.dir.with_file_name(name))?;
    }
    match desired.left {
        Retain::Nothing => remove_all(places, desired, names),
        Retain::Log => remove_except_logs(desired, names),
    }
}

/// The note is removed last: after a crash it contains what is still to be cleaned up.
fn remove_all(places: &FileAccess, desired: &Desired, names: &[String]) -> Result<(), Error> {
    if let Some(note) = Note::read(desired)? {
        confine::restore_owners(&note);
    }
    owners::restore_all(&places.disk_dir, &desired.uid.to_string())?;
    confine::clear_run_dir(desired)?;
    remove_inside(desired, names)?;
    fs::remove_temp(&desired.record())?;
    fs::remove(&desired.record())?;
    Note::remove(desired)
}

/// A VM that is stopped and may start again keeps its user, its disks and the record of how it was started.
fn remove_except_logs(desired: &Desired, names: &[String]) -> Result<(), Error> {
    if names.iter().any(|name| name == OTHER_FILES) {
        confine::clear_except_logs(desired)?;
    }
    remove_inside(desired, names)
}

fn remove_inside(desired: &Desired, names: &[String]) -> Result<(), Error> {
    let mut inside = names
        .iter()
        .filter(|name| ![NOTE, OTHER_FILES].contains(&name.as_str()));
    inside.try_for_each(|name| confine::remove_untrusted(&desired.dir.join(name)))
}

fn remove_dir(desired: &Desired) -> Result<(), Error> {
    // Files that a crash during a start has left.
    fs::remove_temp(&desired.record())?;
    Note::remove(desired)?;
    ramdir::unmount(&desired.dir)?;
    fs::remove_empty_dir(&desired.dir)
}

/// Reaps the recorded process if it was a child of this process and has ended; kills the processes that it started; removes its sockets.
async fn clean_up_previous(desired: &Desired) -> Result<(), Error> {
    if let Record::Of(identity) = process::read_record(&desired.record())? {
        process::reap(&identity)?;
    }
    stop_back_end(desired).await?;
    let user = Note::read(desired)?.and_then(|noted| noted.user);
    kill_user_processes(desired, user).await?;
    confine::remove_cgroup(desired);
    let mut paths = SOCKETS.iter().map(|name| desired.dir.join(name));
    paths.try_for_each(|path| confine::remove_untrusted(&path))
}

/// Ends the back end of the vsock device, if it runs, and reaps it.
async fn stop_back_end(desired: &Desired) -> Result<(), Error> {
    if !desired.back_end_record().exists() {
        return Ok(());
    }
    let desired = desired.clone();
    let stop = move || back_end::stop(&desired);
    within(KILL_DEADLINE, "stop", "the back end of vsock", stop).await
}

/// Kills all processes of this user. Does nothing without a user or for root: processes of root do not belong to a VM.
async fn kill_user_processes(desired: &Desired, user: Option<u32>) -> Result<(), Error> {
    let Some(user) = user.filter(|user| *user != 0 && process::user_lives(*user)) else {
        return Ok(());
    };
    let desired = desired.clone();
    let kill = move || confine::kill_processes(&desired, user);
    within(KILL_DEADLINE, "stop", "the processes of a VMM", kill).await
}
