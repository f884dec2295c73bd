//! The Vmm stage: the process that runs a VM.
//! Out of scope: command lines and control sockets ([`crate::vmm`]); the network of the VM; how often a VMM that has ended is restarted.
//!
//! | file | content |
//! |---|---|
//! | `jailing` | what Firecracker's jailer is started with |
//! | `identity` | pure: the owner of a process |
//! | `back_end` | the process beside a QEMU that handles its vsock device |
//! | `confine` | the host resources of a VMM |
//! | `opened` | all host files that a VMM is started with, opened once |
//! | `owners` | owners of users' files that an earlier version has changed |
//! | `watch` | waits for the end of a VMM; meanwhile rotates its log |
//! | `ending` | how a VMM ended; the record of a stop |
//! | `paths` | where the files of a VMM are |
//!
//! # The run directory, `<run>/vm/<uid>/vmm/`
//! It belongs to the VMM's user, which can write there and nowhere else: its contents are untrusted.
//! Next to it, inaccessible to the VMM, are `process`: the process that was started, see [`crate::host::process::read_record`];
//! `launch.json`: how it was started (`note`); `console.in`: a pipe to its serial input; `stopping`: the process that is being stopped,
//! and since when (`ending`); and `vsock-process`: the process that handles its vsock device, in the format of `process` (`back_end`).
//!
//! | name | content |
//! |---|---|
//! | `console.log`, `console.log.1` | output of the guest and the VMM, and what was before the last rotation; each at most [`LOG_LIMIT`] |
//! | `vm.json` | Firecracker's configuration |
//! | `metrics` | the pipe that Firecracker writes its metrics into; read on request |
//! | `qmp.sock`, `firecracker.sock`, `cloud-hypervisor.sock` | the VMM's control socket |
//! | `vsock.sock` | the host's side of the guest's vsock, of the VMM, or of the back end of QEMU's device |
//! | `vhost-vsock.sock` | between QEMU and that back end |
//! | `agent.sock` | the host's side of a virtio-serial port, of a QEMU that an earlier version has started |
//!
//! For a VMM with a user of its own the directory is a small file system in memory that holds at most [`RUN_DIR_BYTES`]; everything in it
//! belongs to the VMM and is removed with it. Otherwise files with other names are foreign and are not removed.

mod act;
mod back_end;
mod confine;
mod ending;
mod identity;
mod jailing;
mod moved;
mod note;
mod observe;
mod opened;
mod owners;
mod paths;
mod permission;
mod plan;
mod watch;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::{Conflict, OnHost, Reconcile, Wait};
use crate::api::life::GracePeriod;
use crate::api::meta::Uid;
use crate::host;
use crate::host::process::{Exit, Identity};
use crate::owner::{Label, Owned};
use crate::vmm::{
    AGENT, CONFIG, CONTROL_LOCK, Control, Disk, FileAccess, GuestState, Launch, METRICS,
    VHOST_VSOCK, VSOCK,
};

pub use back_end::BackEndState;
pub use ending::{Ended, ended, last_lines};
pub use moved::uses_another_disk;
pub use note::{confined_by, running, started_as};
pub use owners::recover as recover_owners;
pub use paths::VmmPaths;
pub use permission::{Need, StartPermission};
pub use watch::{rotate, watch};

/// The process record, which the child writes before its exec.
pub const RECORD: &str = "process";
/// How the VMM was started; next to the run directory, too.
pub const NOTE: &str = "launch.json";
/// A pipe to the guest's serial input; next to the run directory, too.
pub const INPUT: &str = "console.in";
/// The process that is being stopped, and since when.
pub const STOPPING: &str = "stopping";
/// The record of the process that handles the vsock device; next to the run directory, too.
pub const BACK_END_RECORD: &str = "vsock-process";
/// Serial output of the guest and messages of the VMM.
pub const CONSOLE: &str = "console.log";
/// The console before the last rotation.
pub const CONSOLE_OLD: &str = "console.log.1";
/// Every name in a run directory that this daemon may remove.
pub const MANAGED_FILES: [&str; 16] = [
    AGENT,
    Control::CloudHypervisor.socket(),
    CONTROL_LOCK,
    INPUT,
    CONSOLE,
    CONSOLE_OLD,
    Control::Firecracker.socket(),
    NOTE,
    METRICS,
    RECORD,
    Control::Qmp.socket(),
    STOPPING,
    VHOST_VSOCK,
    CONFIG,
    BACK_END_RECORD,
    VSOCK,
];

/// Maximum size of a log in bytes, enforced by the kernel; with the rotated one a VM has at most twice as much, 4 MiB.
pub const LOG_LIMIT: u64 = 2 << 20;

/// A placeholder for all other files that a VMM with a user of its own has created in its run directory.
const OTHER_FILES: &str = "other files of the VMM";

/// Size of a confined VMM's run directory in bytes: two logs, one of which may exceed its limit, configuration and sockets.
pub const RUN_DIR_BYTES: u64 = 8 << 20;

/// The variable in a VMM's environment that holds its label.
pub const LABEL_VAR: &str = "SLICE_LABEL";
/// The variable that the back end of a vsock device has besides: a process with it is not a VMM.
const ROLE_VAR: &str = "SLICE_ROLE";
/// The variable in a VMM's environment that holds its run directory.
pub const RUN_DIR_VAR: &str = "SLICE_RUN_DIR";

/// The reconciler of the stage.
#[derive(Debug, Default)]
pub struct Vmm {
    /// VMs with a process in the last observation: if its record is lost, `/proc` is searched for it.
    seen: Mutex<HashSet<Uid>>,
    /// Set once all of `/proc` has been searched: every process from before the start of the daemon is known.
    scanned: OnceCell<()>,
    /// Which files of the host a VMM may be started with.
    places: FileAccess,
    /// The assignments of users to VMs.
    users: Mutex<identity::Users>,
    /// Asked before each start of a VMM.
    pub permission: StartPermission,
}

impl Vmm {
    /// Creates a reconciler that has observed nothing yet.
    pub fn new(places: FileAccess) -> Self {
        Self {
            places,
            ..Self::default()
        }
    }

    /// Sets which files of the host a VMM may be started with.
    pub fn with_files(self, places: FileAccess) -> Self {
        Self { places, ..self }
    }
}

/// The desired state of one VM's VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// The label of the VM.
    pub label: Label,
    /// The UID of the VM.
    pub uid: Uid,
    /// The run directory.
    pub dir: PathBuf,
    /// How the VMM is started; `None`: none may run.
    pub launch: Option<Launch>,
    /// Disks that it locks while it runs, so that no other program writes to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// How it is confined; `None`: it runs with the privileges of the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confined: Option<Confined>,
    /// How long a guest has time to power down.
    #[serde(default, skip_serializing_if = "GracePeriod::is_default")]
    pub grace: GracePeriod,
    /// A process that must stop is killed at once, without a power-down request to its guest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// What is kept when no VMM may run.
    #[serde(default, skip_serializing_if = "Retain::is_default")]
    pub left: Retain,
    /// The desired state of the guest.
    #[serde(default, skip_serializing_if = "DesiredGuest::is_default")]
    pub guest: DesiredGuest,
    /// After which exits the VMM may be started again.
    #[serde(default, skip_serializing_if = "EvaluatedExits::is_default")]
    pub evaluated_exits: EvaluatedExits,
}

/// What is kept of a VMM that may not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retain {
    /// Nothing: the VM is deleted.
    #[default]
    Nothing,
    /// Its log and its process record: the VM is only stopped.
    Log,
}

impl Retain {
    /// Nothing is kept.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The desired state of a guest while its VMM runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DesiredGuest {
    /// Any; its state is not queried.
    #[default]
    Any,
    /// Running: a paused guest is resumed.
    Running,
    /// Paused.
    Paused,
}

impl DesiredGuest {
    /// Any state is accepted.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// After which exits the VMM may be started again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvaluatedExits {
    /// Every exit.
    #[default]
    All,
    /// Only the exit of this process: any other must be stored and evaluated before its record is removed.
    Of(Option<Identity>),
}

impl EvaluatedExits {
    /// After every exit.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The host resources of a VMM. Not compared with a running VMM: one that was started with fewer restrictions keeps running until it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confined {
    /// Its user and group.
    pub user: u32,
    /// Number of processors of the VM.
    pub vcpu: u32,
    /// Memory of the VM in bytes.
    pub ram_bytes: u64,
    /// Files and block devices that it opens outside its run directory.
    pub files: Vec<Disk>,
    /// Its initrd with `slice-agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub injected: Option<Injected>,
}

/// An initrd with `slice-agent`, which is built when the VMM is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    /// The path by which the VMM opens it; it exists only there.
    pub path: PathBuf,
    /// The initrd of the user that it contains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
}

impl Desired {
    /// Nothing of the VMM is kept: the VM is being deleted.
    fn is_removal(&self) -> bool {
        self.launch.is_none() && self.left == Retain::Nothing
    }
}

/// The observed state of one VM's VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The run directory.
    pub dir: RunDir,
    /// The processes that belong to the VM; at most one is kept.
    #[serde(default)]
    pub running: Vec<Running>,
    /// How the recorded process ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Exit>,
    /// The identity of the recorded process, if it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_as: Option<Identity>,
    /// The last line of the console, for users. Empty while a VMM runs.
    #[serde(default)]
    pub last_output: String,
}

/// The run directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunDir {
    /// It does not exist.
    Absent,
    /// It exists.
    Present {
        /// Names in [`MANAGED_FILES`], sorted; and a placeholder for all other files that a VMM with a user of its own has created.
        ours: Vec<String>,
        /// Other names.
        others: Vec<String>,
    },
    /// The path is not a directory.
    Foreign,
}

/// A process of the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its identity, verified to belong to the VM.
    pub process: Owned<Identity>,
    /// The arguments it was started with.
    pub argv: Vec<String>,
    /// Whether the record names it.
    pub recorded: bool,
    /// Its attachment to the VM's network.
    pub attachment: Attachment,
    /// Whether it has a control socket.
    pub has_control_socket: bool,
    /// Configuration files that differ from what it has read: it was started with another spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale: Vec<String>,
    /// Milliseconds since its guest was requested to power down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_down_requested_ms: Option<u64>,
    /// The state of its guest, if it was queried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestState>,
}

/// The attachment of a process to the VM's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attachment {
    /// It is in the VM's namespace and attached to the TAP, or is still starting.
    In,
    /// The TAP it was attached to is gone. It is not attached to a new one with the same name.
    TapGone,
    /// It is not in the VM's current namespace.
    Elsewhere,
}

/// An action of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Creates the run directory.
    CreateRunDir,
    /// Writes the lost record of a running process.
    Record(Owned<Identity>),
    /// Requests the guest to power down.
    RequestPowerDown(Owned<Identity>),
    /// Waits until the process has ended or the time is over. Not executed as an action, see [`Reconcile::waits_for`].
    PoweredDown {
        /// The process that is waited for.
        process: Owned<Identity>,
        /// The remaining time in milliseconds.
        left_ms: u64,
    },
    /// Pauses the guest.
    Pause(Owned<Identity>),
    /// Resumes the guest.
    Resume(Owned<Identity>),
    /// The exit of the process is stored and evaluated, by another component.
    RecordExit,
    /// Sends SIGTERM and waits 2 s at most.
    Terminate(Owned<Identity>),
    /// Sends SIGKILL and waits.
    Kill(Owned<Identity>),
    /// Starts the VMM.
    Launch {
        /// How the previous one ended, if there was one.
        after: Option<Exit>,
    },
    /// Removes these files from the run directory.
    RemoveFiles(Vec<String>),
    /// Removes the run directory, unless it contains foreign files.
    RemoveRunDir,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CreateRunDir => f.write_str("create the run directory"),
            Self::Record(process) => {
                write!(f, "record the running VMM, pid {}", process.resource().pid)
            }
            Self::RequestPowerDown(process) => write!(
                f,
                "request the guest to power down, pid {}",
                process.resource().pid
            ),
            Self::PoweredDown { process, left_ms } => {
                let remaining = humantime::format_duration(Duration::from_millis(*left_ms));
                let pid = process.resource().pid;
                write!(
                    f,
                    "wait up to {remaining} for the guest to power down, pid {pid}"
                )
            }
            Self::Pause(process) => write!(f, "pause the guest, pid {}", process.resource().pid),
            Self::Resume(process) => write!(f, "resume the guest, pid {}", process.resource().pid),
            Self::RecordExit => f.write_str("record how the VMM ended"),
            Self::Terminate(process) => {
                write!(f, "terminate the VMM, pid {}", process.resource().pid)
            }
            Self::Kill(process) => write!(
                f,
                "kill the VMM if it still runs, pid {}",
                process.resource().pid
            ),
            Self::Launch { after: None } => f.write_str("start the VMM"),
            Self::Launch { after: Some(exit) } => write!(f, "start the VMM again: it {exit}"),
            Self::RemoveFiles(names) => write!(f, "remove {}", names.join(", ")),
            Self::RemoveRunDir => f.write_str("remove the run directory"),
        }
    }
}

impl Observed {
    /// The process, if exactly one runs.
    pub fn process(&self) -> Option<&Identity> {
        match self.running.as_slice() {
            [one] => Some(one.process.resource()),
            _ => None,
        }
    }
}

impl Reconcile for Vmm {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        plan::plan(desired, observed)
    }

    fn waits_for(action: &Action) -> Option<Wait> {
        match action {
            Action::PoweredDown { process, left_ms } => {
                let remaining = Duration::from_millis(*left_ms);
                Some(Wait::Exit(process.resource().clone(), remaining))
            }
            Action::RecordExit => Some(Wait::Evaluation),
            Action::CreateRunDir
            | Action::Record(_)
            | Action::RequestPowerDown(_)
            | Action::Pause(_)
            | Action::Resume(_)
            | Action::Terminate(_)
            | Action::Kill(_)
            | Action::Launch { .. }
            | Action::RemoveFiles(_)
            | Action::RemoveRunDir => None,
        }
    }
}

impl OnHost for Vmm {
    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        observe::observe(self, desired).await
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        let range = self.user_range();
        if matches!(action, Action::Launch { .. }) {
            let permission = self.permission.check(desired.uid);
            permission.map_err(|why| host::Error::other("start", "the VMM", why))?;
        }
        act::act(&self.places, desired, action, |user| range.contains(user)).await
    }
}
