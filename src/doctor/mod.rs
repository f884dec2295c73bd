//! Checks whether the host meets the requirements, and names a remedy where it does not.
//! Out of scope: changing the host; the state of VMs.
//!
//! Each check observes and evaluates. If the observation fails, the check reports the error; the evaluation is a pure function of
//! the observation. Observations run concurrently and each has a deadline of [`PATIENCE`], so all of them take less than a second.

mod allowed;
mod cni;
mod confine;
mod filter;
mod forward;
mod kernel;
mod limits;
mod managers;
mod native;
mod place;
mod vmm;

use std::path::PathBuf;
use std::time::Duration;

use crate::api::allowed::AllowedDirectories;
use crate::api::view::{Check, CheckStatus};
use crate::api::vmm_ids::IdRange;
use crate::cni::Runtime;
use crate::host::netns::Netns;
use crate::host::{Error, process};
use crate::owner::Instance;
use crate::reconcile::host_network::drops::RoutedRange;
use crate::reconcile::host_network::unmanaged::OurLinks;

pub use place::lacking;

/// Deadline for a program that is run by a check.
const PATIENCE: Duration = Duration::from_millis(800);

/// Who runs the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Examiner {
    /// The daemon.
    Daemon,
    /// slicectl as root, while no daemon runs.
    Root,
    /// slicectl as another user, while no daemon runs.
    User,
}

/// The host and the settings of the daemon, as input of all checks.
#[derive(Clone, Debug)]
pub struct Host {
    /// Who runs the checks.
    pub examiner: Examiner,
    /// The network namespace in which the daemon was started. `examine` must be called by a thread in it.
    pub home: Netns,
    /// Instance id of the daemon.
    pub instance: Instance,
    /// The daemon's run directory (files of the current boot).
    pub run_dir: PathBuf,
    /// The manifest directory.
    pub config_dir: PathBuf,
    /// The state directory.
    pub state_dir: PathBuf,
    /// If no change can be stored: the reason, with the path.
    pub read_only: Option<String>,
    /// Range of user ids for VMMs.
    pub vmm_ids: IdRange,
    /// Directories from which programs and images may be used.
    pub allowed: AllowedDirectories,
    /// The directories of CNI networks and plugins.
    pub cni: Runtime,
    /// Ranges that the host forwards, with the links on which their packets arrive.
    pub guarded: Vec<RoutedRange>,
    /// Links that network managers must not manage.
    pub links: OurLinks,
}

/// Runs all checks. Does not change the host: features that must be tried are tried in a temporary namespace.
pub async fn examine(cx: &Host) -> Vec<Check> {
    let groups = tokio::join!(
        place::checks(cx),
        kernel::checks(cx),
        packet_filter(cx),
        managers::checks(cx),
        limits::checks(cx),
        vmm::checks(cx),
        cni::checks(cx),
    );
    let (place, kernel, filter, managers, limits, vmm, cni) = groups;
    let (confine, allowed) = (confine::checks(cx), allowed::checks(cx));
    let groups = [
        place, kernel, filter, managers, limits, vmm, confine, allowed, cni,
    ];
    let checks = groups.concat().into_iter();
    checks.map(|check| restrict(check, cx.examiner)).collect()
}

/// Checks of the process of the daemon, which another process cannot perform.
const OF_THE_DAEMON: [&str; 4] = [
    place::CAPABILITIES,
    place::VISIBILITY,
    limits::FILES,
    confine::LIMITS,
];

/// Checks that only root can perform, beside those whose observation fails.
const OF_ROOT: [&str; 6] = [
    place::STATE,
    kernel::NAMESPACES,
    kernel::TUN,
    kernel::CONNTRACK,
    vmm::KVM,
    limits::CONNECTIONS,
];

/// Skips what the examiner cannot check.
fn restrict(check: Check, examiner: Examiner) -> Check {
    let name = check.name.as_str();
    match examiner {
        Examiner::Daemon => check,
        _ if OF_THE_DAEMON.contains(&name) => skipped(name, "checked while sliced runs"),
        Examiner::Root => check,
        Examiner::User if check.status == CheckStatus::Ok => check,
        Examiner::User if OF_ROOT.contains(&name) || check.found.starts_with(UNSEEN) => {
            skipped(name, "requires root")
        }
        Examiner::User => check,
    }
}

/// The second listener of the API: its settings are not in effect. `is_open`: it listens with earlier settings.
pub fn api_listener(problem: &str, is_open: bool) -> Check {
    let remedy =
        "correct the setting or the file; `slicectl events host` shows when it is in effect";
    match is_open {
        true => warn("API listener", problem, remedy),
        false => fail("API listener", problem, remedy),
    }
}

/// The node has no contact to its fleet, with the reason.
pub fn fleet(problem: &str) -> Check {
    let remedy = "VMs keep running; `slicectl fleet status` shows the connection, and `slicectl events host` when it was lost";
    fail("fleet", problem, remedy)
}

/// The node has contact to its fleet.
pub fn fleet_contact(node: &str) -> Check {
    ok("fleet", format!("node {node} has contact to etcd"))
}

async fn packet_filter(cx: &Host) -> Vec<Check> {
    let (filter, native) = tokio::join!(filter::observe(cx), native::check(cx));
    let mut checks = filter::evaluate(&filter);
    checks.extend(forward::checks(cx, &filter).await);
    checks.push(native);
    checks
}

/// The requirement is met.
fn ok(name: &str, found: impl Into<String>) -> Check {
    check(name, CheckStatus::Ok, found.into(), String::new())
}

/// Works with limitations.
fn warn(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    check(name, CheckStatus::Warn, found.into(), remedy.into())
}

/// Does not work.
fn fail(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    check(name, CheckStatus::Fail, found.into(), remedy.into())
}

/// The check does not apply.
fn skipped(name: &str, found: &str) -> Check {
    check(name, CheckStatus::Skipped, found.into(), String::new())
}

/// The beginning of what [`unseen`] reports.
const UNSEEN: &str = "cannot check: ";

/// The check could not be performed.
fn unseen(name: &str, reason: &str) -> Check {
    let remedy = "Run sliced as root in the host's own namespaces, then run slicectl doctor again.";
    warn(name, format!("{UNSEEN}{reason}"), remedy)
}

fn check(name: &str, status: CheckStatus, found: String, remedy: String) -> Check {
    Check {
        name: name.to_owned(),
        status,
        found,
        remedy,
    }
}

/// Runs a program in the network namespace of the calling thread and returns its standard output.
async fn run_program(argv: &[&str]) -> Result<String, Error> {
    let outcome = process::run_until(argv, PATIENCE, |_| false).await?;
    Ok(outcome.output)
}
