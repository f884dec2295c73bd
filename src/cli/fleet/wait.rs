//! `wait --fleet`, and `--wait` of other verbs with `--fleet`: reads the objects until they reach the goal.
//! Out of scope: objects of this host, which are watched.

use std::time::Duration;

use super::super::args::{Goal, WaitArgs};
use super::super::failure::Failure;
use super::super::print;
use super::object::{FleetObject, list, states};
use super::target::{self, FleetKind, FleetTarget};
use crate::api::view::{FleetNodeState, FleetVmState};
use crate::clock;
use crate::wire::Client;

/// The interval of the reads: each reads all objects of the fleet from etcd.
const INTERVAL: Duration = Duration::from_secs(1);

/// `wait KIND/NAME… --fleet --for ready|deleted`.
pub async fn wait(client: &Client, args: WaitArgs) -> Result<(), Failure> {
    let targets = target::targets(&args.targets)?;
    let text = match args.goal {
        Goal::Ready => "ready",
        Goal::Deleted => "deleted",
        Goal::Stopped | Goal::Paused | Goal::Agent | Goal::Userdata => {
            let usage = "with --fleet, --for is ready or deleted; other states are those of the VM on its node";
            return Err(Failure::Usage(usage.to_owned()));
        }
    };
    until(client, &targets, args.goal, args.timeout).await?;
    if args.quiet {
        return Ok(());
    }
    let lines: String = targets.iter().map(|t| format!("{t} {text}\n")).collect();
    print::out(&lines)
}

/// Returns when all of `targets` reach the goal; fails after `limit` with the reason for each target that does not.
pub async fn until(
    client: &Client,
    targets: &[FleetTarget],
    goal: Goal,
    limit: Duration,
) -> Result<(), Failure> {
    let begin = clock::monotonic();
    loop {
        let mut missing = Vec::new();
        for target in targets {
            if let Some(reason) = missing_of(client, target, goal).await? {
                missing.push(format!("{target} {reason}"));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let rest = limit.saturating_sub(begin.elapsed());
        if rest.is_zero() {
            let time = humantime::format_duration(limit);
            let lines = missing.into_iter();
            let lines = lines.map(|line| format!("timeout after {time}: {line}"));
            return Err(Failure::Failed(lines.collect()));
        }
        tokio::time::sleep(INTERVAL.min(rest)).await;
    }
}

/// Why a target has not reached the goal; `None` if it has.
async fn missing_of(
    client: &Client,
    target: &FleetTarget,
    goal: Goal,
) -> Result<Option<String>, Failure> {
    let found = match list(client, target.kind, Some(&target.name)).await {
        Ok(list) => list.items.into_iter().next(),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error.into()),
    };
    Ok(match (goal, found) {
        (Goal::Deleted, None) => None,
        (Goal::Deleted, Some(object)) => Some(format!("still exists: {}", state(&object))),
        (_, None) => Some("does not exist".to_owned()),
        (_, Some(object)) if is_ready(&object) => None,
        (_, Some(object)) => Some(format!(
            "is not ready: {}{}",
            state(&object),
            vm_reasons(client, target).await?
        )),
    })
}

fn is_ready(object: &FleetObject) -> bool {
    match object {
        FleetObject::HostGroup(group) => group.is_ready(),
        FleetObject::Vm(vm) => vm.state == FleetVmState::Ready,
        FleetObject::Node(node) => node.states.contains(&FleetNodeState::Ready),
    }
}

fn state(object: &FleetObject) -> String {
    match object {
        FleetObject::HostGroup(group) => {
            let status = &group.status;
            let count = group.spec.count;
            format!(
                "{} of {count} VMs are ready, {} up to date, {} pending",
                status.ready, status.up_to_date, status.pending
            )
        }
        FleetObject::Vm(vm) => match &vm.message {
            None => vm.state.to_string(),
            Some(message) => format!("{}: {message}", vm.state),
        },
        FleetObject::Node(node) => states(node),
    }
}

/// The VMs of a group that are not Ready, the first ones.
async fn vm_reasons(client: &Client, target: &FleetTarget) -> Result<String, Failure> {
    const SHOWN: usize = 3;
    if target.kind != FleetKind::HostGroup {
        return Ok(String::new());
    }
    let vms = client.fleet_vms(None).await?.items.into_iter();
    let vms = vms.filter(|vm| vm.metadata.group.as_ref() == Some(&target.name));
    let waiting: Vec<String> = vms
        .filter(|vm| vm.state != FleetVmState::Ready)
        .map(|vm| match &vm.message {
            None => format!("; vm/{} {}", vm.metadata.name, vm.state),
            Some(message) => format!("; vm/{} {}: {message}", vm.metadata.name, vm.state),
        })
        .collect();
    let more = waiting.len().saturating_sub(SHOWN);
    let mut text: String = waiting.into_iter().take(SHOWN).collect();
    if more > 0 {
        text += &format!("; and {more} more");
    }
    Ok(text)
}
