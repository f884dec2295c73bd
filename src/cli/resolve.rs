//! Looks up all objects of a command before the first is changed.
//! Out of scope: parsing their names (`target`).
//!
//! # Why
//! A name that does not exist is probably a typing error, or an argument of an option (`--wait 5s`): a command that has changed some of
//! its objects by then has probably changed the wrong ones.

use super::failure::{self, Failure};
use super::get;
use super::progress_args::ProgressArgs;
use super::target::Target;
use crate::api::meta::Name;
use crate::api::view::{Kind, Object};
use crate::wire::Client;

/// The objects, or an error that names each object that does not exist.
pub async fn all<const SECONDS: u64>(
    client: &Client,
    targets: &[Target],
    progress: &ProgressArgs<SECONDS>,
) -> Result<Vec<Object>, Failure> {
    let (objects, absent) = get::fetch(client, targets).await?;
    if absent.is_empty() {
        return Ok(objects);
    }
    let names = targets.iter().map(|target| target.name.as_str());
    let exists = |name: &str| objects.iter().any(|o| o.metadata().name.as_str() == name);
    let is_time = |name: &&str| !exists(name) && humantime::parse_duration(name).is_ok();
    if let Some(time) = names.into_iter().find(is_time)
        && progress.wait
    {
        failure::note(&format!("--wait takes no value: use --timeout {time}"));
    }
    Err(Failure::Failed(absent))
}

/// As [`all`], for VMs.
pub async fn vms<const SECONDS: u64>(
    client: &Client,
    vms: &[Name],
    progress: &ProgressArgs<SECONDS>,
) -> Result<(), Failure> {
    let target = |name: &Name| Target {
        kind: Kind::Vm,
        name: name.clone(),
    };
    let targets: Vec<Target> = vms.iter().map(target).collect();
    all(client, &targets, progress).await.map(drop)
}
