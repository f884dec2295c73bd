//! The Vmm rung: the process that runs a VM.
//! Out of scope: what the VM is connected to; how often a dead one is started again.
//!
//! | file | what it does |
//! |---|---|
//! | `recipe`, `qemu`, `firecracker`, `cloud_hypervisor`, `cmdline`, `version` | pure: a VM's spec to a command line |
//! | `jailer` | pure: from Firecracker's command line to that of its jailer, and back |
//! | `jailing` | what a jailer needs to be started |
//! | `program` | finds the VMMs' programs and their versions |
//! | `machine` | what this host can do: KVM or not, TSC rate |
//! | `kernel` | pure: a kernel of our own, by which KVM is tried |
//! | `plan` | pure |
//! | `observe` | looks at the run directory and at `/proc` |
//! | `identity` | pure: whose a process is |
//! | `act` | starts and stops |
//! | `control` | talks with a VMM |
//! | `confine` | what a VMM may have of the host |
//! | `opened` | everything of the host's that a VMM is started with, opened once |
//! | `owners` | owners of users' files that an earlier version has changed |
//! | `watch` | comes back when a VMM has ended; keeps its log short meanwhile |
//! | `ending` | how one ended; that we asked it to |
//!
//! # The run directory, `<run>/vm/<uid>/vmm/`
//! It belongs to the VMM's own user, who can write there and nowhere else: what is found in it is of a stranger's making.
//! Beside it, out of the VMM's reach, stand `process`: which process was started, see [`crate::host::process::read_record`]; and
//! `launch.json`: what was said to it (`note`); `console.in`: a pipe to its serial input; and `stopping`: which one we stop, and
//! since when (`ending`).
//!
//! | name | what |
//! |---|---|
//! | `console.log` | the guest's serial output and the VMM's own; at most [`LOG_LIMIT`] |
//! | `console.log.1` | what was there before; at most [`LOG_LIMIT`] |
//! | `vm.json` | Firecracker's configuration |
//! | `metrics` | the pipe that Firecracker writes its metrics into; read when somebody asks |
//! | `qmp.sock`, `firecracker.sock`, `cloud-hypervisor.sock` | the VMM's control socket |
//! | `vsock.sock` | the host's side of the guest's vsock (Firecracker, Cloud Hypervisor) |
//! | `agent.sock` | the host's side of the guest's virtio-serial port `org.slicectl.agent.0` (QEMU) |
//!
//! Of a VMM with a user of its own all of it is the VMM's, whatever it is: the directory is a small file system in memory, so that no
//! more than [`HOME_BYTES`] can pile up in it, and goes with everything in it. Else, anything more is not ours.

mod act;
mod cloud_hypervisor;
mod cmdline;
mod confine;
mod control;
mod ending;
mod firecracker;
mod identity;
mod jailer;
mod jailing;
mod kernel;
mod machine;
mod moved;
mod note;
mod observe;
mod opened;
mod owners;
mod plan;
mod program;
mod qemu;
mod recipe;
mod version;
mod watch;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::places::Places;
use super::{Conflict, Reconcile, Wait};
use crate::api::life::Grace;
use crate::api::meta::Uid;
use crate::api::vm::Hypervisor;
use crate::host;
use crate::host::process::{Exit, Identity};
use crate::owner::{Label, Owned};

pub use cmdline::NAME_SERVERS;
pub use control::{Control, GuestState};
pub use ending::{Ended, ended, last_lines};
pub use machine::{Accel, Machine, Machines, boots, tried};
pub use moved::uses_another_disk;
pub use note::{confined_by, running, started_as};
pub use owners::recover as recover_owners;
pub use program::Programs;
pub use qemu::machine_of;
pub use recipe::{Access, ConfinedBy, Disk, Launch, NewFile, Slot, Sys, Unfit, recipe};
pub use version::{Program, Version};
pub use watch::{rotate, watch};

/// Where the newborn notes itself.
pub const RECORD: &str = "process";
/// What was said to the VMM; beside the run directory, too.
pub const NOTE: &str = "launch.json";
/// A pipe to the guest's serial input; beside the run directory, too.
pub const INPUT: &str = "console.in";
/// Which process we stop, and since when.
pub const STOPPING: &str = "stopping";
/// Serial output of the guest and messages of the VMM.
pub const CONSOLE: &str = "console.log";
/// The console before the last rotation.
pub const CONSOLE_OLD: &str = "console.log.1";
/// What Firecracker reads when it starts.
pub const CONFIG: &str = "vm.json";
/// The pipe that Firecracker writes its metrics into.
pub const METRICS: &str = "metrics";
/// The host's side of a guest's vsock.
pub const VSOCK: &str = "vsock.sock";
/// The host's side of a guest's virtio-serial port.
pub const AGENT: &str = "agent.sock";
/// A lock that Cloud Hypervisor holds beside its control socket since 53, and leaves.
const CONTROL_LOCK: &str = "cloud-hypervisor.sock.lock";
/// What a VMM makes while it runs and may leave: of no use to the next one, which fails if it is there.
const SOCKETS: [&str; 6] = [
    Control::Qmp.socket(),
    Control::Firecracker.socket(),
    Control::CloudHypervisor.socket(),
    CONTROL_LOCK,
    VSOCK,
    AGENT,
];
/// Every name in a run directory that is ours to remove.
pub const OURS: [&str; 14] = [
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
    CONFIG,
    VSOCK,
];

/// Bytes. The kernel lets no file of a VMM grow beyond this; with the rotated one a VM has at most twice as much, 4 MiB.
pub const LOG_LIMIT: u64 = 2 << 20;

/// Whatever else a VMM with a user of its own has made in its run directory.
const STRAY: &str = "what else the VMM has made";

/// Bytes of a confined VMM's run directory: two logs, one of them possibly longer than it should be, configuration and sockets.
pub const HOME_BYTES: u64 = 8 << 20;

/// The variable in a VMM's environment that holds its label.
pub const LABEL_VAR: &str = "SLICE_LABEL";
/// The variable in a VMM's environment that holds its run directory.
pub const RUN_DIR_VAR: &str = "SLICE_RUN_DIR";

/// Whether what is typed at the VM's serial port reaches the guest. Cloud Hypervisor reads a terminal only, or a socket before
/// which output is lost.
pub const fn takes_input(hypervisor: Hypervisor) -> bool {
    match hypervisor {
        Hypervisor::Qemu | Hypervisor::Firecracker => true,
        Hypervisor::CloudHypervisor | Hypervisor::None => false,
    }
}

/// The rung.
#[derive(Debug, Default)]
pub struct Vmm {
    /// VMs of which the last look saw a process: should its record be lost, it is worth a look through `/proc`.
    seen: Mutex<HashSet<Uid>>,
    /// Set once all of `/proc` has been looked through: whatever was there before us has been seen.
    surveyed: OnceCell<()>,
    /// Which files of the host a VMM may be started with.
    places: Places,
    /// Whose which user is.
    users: Mutex<identity::Users>,
}

impl Vmm {
    /// One that has seen nothing yet.
    pub fn new(places: Places) -> Self {
        Self {
            places,
            ..Self::default()
        }
    }
}

/// What is to run for one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Whose it is.
    pub label: Label,
    /// The same, shorter.
    pub uid: Uid,
    /// The run directory.
    pub dir: PathBuf,
    /// None: nothing may run.
    pub want: Option<Launch>,
    /// What it holds while it runs, so that nobody else writes to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// How it is confined; none: it runs as we do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confined: Option<Confined>,
    /// How long a guest that was asked to power down is waited for.
    #[serde(default, skip_serializing_if = "Grace::is_default")]
    pub grace: Grace,
    /// A process that is to stop is killed at once; its guest is not asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// What stays where nothing may run.
    #[serde(default, skip_serializing_if = "Left::is_default")]
    pub left: Left,
    /// What the guest is to do.
    #[serde(default, skip_serializing_if = "Guest::is_default")]
    pub guest: Guest,
    /// Which ends may be answered with a start.
    #[serde(default, skip_serializing_if = "Judged::is_default")]
    pub judged: Judged,
}

/// What stays of a VMM that may not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Left {
    /// Nothing: the VM goes.
    #[default]
    Nothing,
    /// Its log, and which process it was: the VM is only down.
    Log,
}

impl Left {
    /// Nothing stays.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a guest is to do while its VMM runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guest {
    /// What it does; its VMM is not asked.
    #[default]
    Any,
    /// To run: one that is held goes on.
    Running,
    /// To be held.
    Paused,
}

impl Guest {
    /// It may do what it does.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Which ends may be answered with a start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judged {
    /// Every one.
    #[default]
    All,
    /// The end of this process alone, if it has ended: another one is to be written down and judged before it is forgotten.
    Of(Option<Identity>),
}

impl Judged {
    /// Every end.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a VMM may have of the host. Not compared with what runs: one that was started with less in its way goes on until it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confined {
    /// Its user and group.
    pub user: u32,
    /// The VM's processors.
    pub vcpu: u32,
    /// The VM's memory.
    pub ram_bytes: u64,
    /// Files and block devices that it opens outside of its run directory.
    pub files: Vec<Disk>,
}

impl Desired {
    /// Where the newborn notes itself: beside the run directory.
    pub fn record(&self) -> PathBuf {
        self.dir.with_file_name(RECORD)
    }

    /// Where what is typed goes in.
    pub(super) fn input(&self) -> PathBuf {
        self.dir.with_file_name(INPUT)
    }

    /// Where is noted that we stop it.
    fn stopping(&self) -> PathBuf {
        self.dir.with_file_name(STOPPING)
    }
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The run directory.
    pub dir: RunDir,
    /// What runs under our label; more than one is one too many.
    #[serde(default)]
    pub running: Vec<Running>,
    /// The VMM that the record names has ended, like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Exit>,
    /// Which that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_as: Option<Identity>,
    /// The last line in the console, for people. Empty while a VMM runs.
    #[serde(default)]
    pub last_words: String,
}

/// The run directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunDir {
    /// Nothing there.
    Absent,
    /// There it is.
    Present {
        /// Names out of [`OURS`], sorted; and a word for whatever else a VMM's own user has made.
        ours: Vec<String>,
        /// Names that are not ours.
        others: Vec<String>,
    },
    /// Something that is no directory.
    Foreign,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Which, and that it is the VM's.
    pub process: Owned<Identity>,
    /// What it was started with.
    pub argv: Vec<String>,
    /// Whether its record names it.
    pub recorded: bool,
    /// Its hold on the VM's network.
    pub plug: Plug,
    /// Whether it has a control socket to ask through.
    pub polite: bool,
    /// Files that it was to read, and that do not say what is wanted: it was started for something else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale: Vec<String>,
    /// How long ago its guest was asked to power down, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_ms: Option<u64>,
    /// What its guest does, where it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestState>,
}

/// A process' hold on the VM's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plug {
    /// In the namespace, and on the TAP (or not yet: it is just starting).
    In,
    /// The TAP it held is gone; a new one of the same name is another.
    TapGone,
    /// Its namespace is not the VM's any more.
    Elsewhere,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Makes the run directory.
    CreateRunDir,
    /// Notes a running process whose record is lost.
    Record(Owned<Identity>),
    /// Asks the guest to power down.
    AskToPowerDown(Owned<Identity>),
    /// The guest has powered down, or has had its time. Nobody takes this step.
    PoweredDown {
        /// Whose.
        process: Owned<Identity>,
        /// What it has left.
        left_ms: u64,
    },
    /// Holds the guest.
    Pause(Owned<Identity>),
    /// Lets it go on.
    Resume(Owned<Identity>),
    /// How the process ended is written down and judged. Taken elsewhere.
    Judge,
    /// SIGTERM, and waits 2 s at most.
    Terminate(Owned<Identity>),
    /// SIGKILL, and waits.
    Kill(Owned<Identity>),
    /// Starts the VMM.
    Launch {
        /// How the one before ended, if there was one.
        after: Option<Exit>,
    },
    /// Removes these files of ours from the run directory.
    RemoveFiles(Vec<String>),
    /// Removes the run directory, unless something foreign is in it.
    RemoveRunDir,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CreateRunDir => f.write_str("create the run directory"),
            Self::Record(process) => write!(f, "note the running VMM, pid {}", process.thing().pid),
            Self::AskToPowerDown(process) => write!(
                f,
                "ask the guest to power down, pid {}",
                process.thing().pid
            ),
            Self::PoweredDown { process, left_ms } => {
                let left = humantime::format_duration(Duration::from_millis(*left_ms));
                let pid = process.thing().pid;
                write!(f, "wait {left} at most until it has, pid {pid}")
            }
            Self::Pause(process) => write!(f, "pause the guest, pid {}", process.thing().pid),
            Self::Resume(process) => write!(f, "resume the guest, pid {}", process.thing().pid),
            Self::Judge => f.write_str("note how the VMM ended"),
            Self::Terminate(process) => write!(f, "terminate the VMM, pid {}", process.thing().pid),
            Self::Kill(process) => write!(
                f,
                "kill the VMM if it still runs, pid {}",
                process.thing().pid
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
            [one] => Some(one.process.thing()),
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

    fn waits(action: &Action) -> Option<Wait> {
        match action {
            Action::PoweredDown { process, left_ms } => {
                let left = Duration::from_millis(*left_ms);
                Some(Wait::End(process.thing().clone(), left))
            }
            Action::Judge => Some(Wait::Judgement),
            Action::CreateRunDir
            | Action::Record(_)
            | Action::AskToPowerDown(_)
            | Action::Pause(_)
            | Action::Resume(_)
            | Action::Terminate(_)
            | Action::Kill(_)
            | Action::Launch { .. }
            | Action::RemoveFiles(_)
            | Action::RemoveRunDir => None,
        }
    }

    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        observe::observe(self, desired).await
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        let range = self.user_range();
        act::act(&self.places, desired, action, |user| range.contains(user)).await
    }
}
