//! EXAMINES: whether this host can do what is asked of it, and the remedy where it cannot.
//! Out of scope: changing anything; the state of VMs.
//!
//! Each check is a look and a judgement. Looking may fail, and then that is what is found; judging is a pure function of
//! what was seen. Looks run at the same time and each has a deadline of [`PATIENCE`], so all of them take less than a second.

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

use crate::api::allowed::Allowed;
use crate::api::view::{Check, CheckVerdict};
use crate::api::vmm_ids::IdRange;
use crate::cni::Runtime;
use crate::host::netns::Netns;
use crate::host::{Error, process};
use crate::owner::Instance;
use crate::reconcile::ground::drops::Guarded;
use crate::reconcile::ground::unmanaged::OurLinks;

pub use place::lacking;

/// How long a program that is asked something may take.
const PATIENCE: Duration = Duration::from_millis(800);

/// What is examined.
#[derive(Clone, Debug)]
pub struct Host {
    /// The network namespace that the daemon was started in; `examine` must be called by a thread that is in it.
    pub home: Netns,
    /// Which daemon.
    pub instance: Instance,
    /// Where the daemon keeps what dies with the host's uptime.
    pub run_dir: PathBuf,
    /// Where it reads manifests.
    pub config_dir: PathBuf,
    /// Where it keeps its state.
    pub state_dir: PathBuf,
    /// Why no change can be stored, with the path, if that is so.
    pub read_only: Option<String>,
    /// The users that VMMs run as.
    pub vmm_ids: IdRange,
    /// Where programs and images may lie.
    pub allowed: Allowed,
    /// Where it finds CNI networks and plugins.
    pub cni: Runtime,
    /// The ranges that the host routes for, and the links that their packets come by.
    pub guarded: Vec<Guarded>,
    /// What network managers are to leave alone.
    pub links: OurLinks,
}

/// Looks at everything. Changes nothing: what must be tried is tried in a namespace that ends with the trial.
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
    groups.concat()
}

async fn packet_filter(cx: &Host) -> Vec<Check> {
    let (filter, native) = tokio::join!(filter::look(cx), native::check(cx));
    let mut checks = filter::judge(&filter);
    checks.extend(forward::checks(cx, &filter).await);
    checks.push(native);
    checks
}

/// As it should be.
fn ok(name: &str, found: impl Into<String>) -> Check {
    check(name, CheckVerdict::Ok, found.into(), String::new())
}

/// Works, but not well, or not everything.
fn warn(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    check(name, CheckVerdict::Warn, found.into(), remedy.into())
}

/// Does not work.
fn fail(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    check(name, CheckVerdict::Fail, found.into(), remedy.into())
}

/// Could not be looked at, which says nothing about how it stands.
fn unseen(name: &str, why: &str) -> Check {
    let remedy = "Run sliced as root in the host's own namespaces, then look again.";
    warn(name, format!("could not look: {why}"), remedy)
}

fn check(name: &str, verdict: CheckVerdict, found: String, remedy: String) -> Check {
    Check {
        name: name.to_owned(),
        verdict,
        found,
        remedy,
    }
}

/// What a program writes to standard output until it ends; in the network namespace of the calling thread.
async fn ask(argv: &[&str]) -> Result<String, Error> {
    let outcome = process::run_until(argv, PATIENCE, |_| false).await?;
    Ok(outcome.output)
}

/// An error and its causes, as one line.
fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        source = cause.source();
    }
    words
}
