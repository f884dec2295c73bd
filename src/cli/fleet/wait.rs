//! `wait --fleet`, and `--wait` of other verbs with `--fleet`: reads the objects until they reach the goal.
//! Out of scope: objects of this host, which are watched.

use std::time::Duration;

use super::super::args::{Goal, WaitArgs};
use super::super::failure::Failure;
use super::super::print;
use super::object::{FleetObject, list, states};
use super::target::{self, FleetKind, FleetTarget};
use crate::api::meta::{Name, Uid};
use crate::api::view::{FleetList, FleetNodeState, FleetVm, FleetVmState};
use crate::clock;
use crate::wire::Client;
use crate::wire::client::ClientError;

/// The interval of the reads: each reads all objects of the fleet from etcd.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// How many VMs of a group are named in a message.
const SHOWN: usize = 3;

/// What is waited for.
#[derive(Clone, Debug)]
pub struct Awaited {
    /// The object.
    pub target: FleetTarget,
    /// Its uid, if that is known: another object of the same name is not this one.
    pub uid: Option<Uid>,
}

impl From<FleetTarget> for Awaited {
    fn from(target: FleetTarget) -> Self {
        Self { target, uid: None }
    }
}

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
    let awaited: Vec<Awaited> = targets.into_iter().map(Into::into).collect();
    until(client, &awaited, args.goal, args.timeout).await?;
    if args.quiet {
        return Ok(());
    }
    let lines = awaited.iter().map(|it| format!("{} {text}\n", it.target));
    print::out(&lines.collect::<String>())
}

/// Returns when all objects reach the goal; fails after `limit` with the reason for each that does not. A read that fails is repeated, as
/// long as it may succeed.
pub async fn until(
    client: &Client,
    awaited: &[Awaited],
    goal: Goal,
    limit: Duration,
) -> Result<(), Failure> {
    let begin = clock::monotonic();
    loop {
        let read = Lists::read(client, awaited).await;
        let rest = limit.saturating_sub(begin.elapsed());
        let lists = match read {
            Ok(lists) => lists,
            Err(error) if error.is_temporary() && !rest.is_zero() => {
                tokio::time::sleep(INTERVAL.min(rest)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut missing = Vec::new();
        for it in awaited {
            let reason = lists.missing(it, goal)?;
            missing.extend(reason.map(|reason| (it, reason)));
        }
        if missing.is_empty() {
            return Ok(());
        }
        if rest.is_zero() {
            return Err(timeout(client, &missing, goal, limit).await);
        }
        tokio::time::sleep(INTERVAL.min(rest)).await;
    }
}

/// What has not reached the goal, with the VMs of groups that are the reason.
async fn timeout(
    client: &Client,
    missing: &[(&Awaited, String)],
    goal: Goal,
    limit: Duration,
) -> Failure {
    let has_group = missing
        .iter()
        .any(|(it, _)| it.target.kind == FleetKind::HostGroup);
    // Without them, the message is shorter.
    let vms = match has_group {
        true => client.fleet_vms(None).await.ok(),
        false => None,
    };
    let vms = vms.map(|list| list.items).unwrap_or_default();
    let time = humantime::format_duration(limit);
    let lines = missing.iter().map(|(it, reason)| {
        let target = &it.target;
        let of_group = match target.kind {
            FleetKind::HostGroup => vm_reasons(&vms, &target.name, goal),
            FleetKind::Vm | FleetKind::Node => String::new(),
        };
        format!("timeout after {time}: {target} {reason}{of_group}")
    });
    Failure::Failed(lines.collect())
}

/// The objects of one read: all of a kind for several objects of it, since each read is one of all objects of the fleet.
struct Lists(Vec<(FleetKind, FleetList<FleetObject>)>);

impl Lists {
    async fn read(client: &Client, awaited: &[Awaited]) -> Result<Self, ClientError> {
        let mut lists = Vec::new();
        for kind in [FleetKind::HostGroup, FleetKind::Vm, FleetKind::Node] {
            let mut names = awaited.iter().map(|it| &it.target);
            let mut names = names.by_ref().filter(|it| it.kind == kind);
            let name = match (names.next(), names.next()) {
                (None, _) => continue,
                // There may be many others.
                (Some(one), None) if kind == FleetKind::Vm => Some(&one.name),
                (Some(_), _) => None,
            };
            let found = match list(client, kind, name).await {
                Err(error) if error.is_not_found() => FleetList {
                    items: Vec::new(),
                    unreadable: Vec::new(),
                },
                found => found?,
            };
            lists.push((kind, found));
        }
        Ok(Self(lists))
    }

    /// Why an object has not reached the goal; `None` if it has.
    ///
    /// # Errors
    /// It cannot be known, because a value cannot be read.
    fn missing(&self, it: &Awaited, goal: Goal) -> Result<Option<String>, Failure> {
        let Awaited { target, uid } = it;
        let list = self.0.iter().find(|(kind, _)| *kind == target.kind);
        let Some((_, list)) = list else {
            return Ok(Some("was not read".to_owned()));
        };
        let mut found = list.items.iter();
        let found = found.find(|object| {
            let is_same = uid.is_none() || object.uid() == *uid;
            *object.name() == target.name && is_same
        });
        Ok(match (goal, found) {
            (Goal::Deleted, None) => {
                // It may be this object, or a VM of this group.
                let mut values = list.unreadable.iter();
                if let Some(value) = values.find(|value| value.is_vm() || value.is_group()) {
                    return Err(Failure::one(format!(
                        "whether {target} is deleted is not known: {value}"
                    )));
                }
                None
            }
            (Goal::Deleted, Some(object)) => Some(format!("still exists: {}", state(object))),
            (_, None) => {
                let mut values = list.unreadable.iter();
                let value = values.find(|value| value.is_vm() || value.is_group());
                Some(match value {
                    Some(value) => format!("is not found, and {value}"),
                    None => "does not exist".to_owned(),
                })
            }
            (_, Some(object)) if is_ready(object) => None,
            (_, Some(object)) => Some(format!("is not ready: {}", state(object))),
        })
    }
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

/// The first VMs of a group that are not Ready, or that are not deleted, with their reasons.
fn vm_reasons(vms: &[FleetVm], group: &Name, goal: Goal) -> String {
    let of_group = vms
        .iter()
        .filter(|vm| vm.metadata.group.as_ref() == Some(group));
    let waiting: Vec<String> = of_group
        .filter(|vm| goal == Goal::Deleted || vm.state != FleetVmState::Ready)
        .map(|vm| {
            let node = vm.node.as_ref().filter(|_| goal == Goal::Deleted);
            let node = node.map_or_else(String::new, |node| format!(" on node {node}"));
            match &vm.message {
                None => format!("; vm/{}{node} {}", vm.metadata.name, vm.state),
                Some(message) => {
                    format!("; vm/{}{node} {}: {message}", vm.metadata.name, vm.state)
                }
            }
        })
        .collect();
    let more = waiting.len().saturating_sub(SHOWN);
    let mut text: String = waiting.into_iter().take(SHOWN).collect();
    if more > 0 {
        text += &format!("; and {more} more");
    }
    text
}

#[cfg(test)]
mod tests;
