//! `node cordon|uncordon|drain|gone|remove`.
//! Out of scope: moving VMs, which the scheduler does.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::failure::{self, Failure};
use super::super::{confirm, print};
use super::args::{DrainArgs, GoneArgs, NodeCommand};
use super::wait::INTERVAL;
use crate::api::meta::Name;
use crate::api::view::{Applied, FleetNodeState, NodeAction, NodeVm};
use crate::clock;
use crate::wire::Client;
use crate::wire::client::ClientError;

/// After this time in which all VMs stay for the same reasons, the drain is given up.
const STUCK: Duration = Duration::from_secs(10);

/// `node …`.
pub async fn node(client: &Client, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::Cordon(args) => {
            each(client, &args.nodes, NodeAction::Cordon, "cordoned").await
        }
        NodeCommand::Uncordon(args) => {
            each(client, &args.nodes, NodeAction::Uncordon, "uncordoned").await
        }
        NodeCommand::Drain(args) => drain(client, args).await,
        NodeCommand::Gone(args) => gone(client, args).await,
        NodeCommand::Remove(args) => each(client, &args.nodes, NodeAction::Remove, "removed").await,
    }
}

/// Continues after a failure, and fails at the end.
async fn each(
    client: &Client,
    nodes: &[Name],
    action: NodeAction,
    done: &str,
) -> Result<(), Failure> {
    let mut errors = Vec::new();
    for node in nodes {
        match client.fleet_node_action(node, action).await {
            Ok(applied) => print::out(&line(node, applied, done))?,
            Err(error) => errors.extend(error.causes()),
        }
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(errors)),
    }
}

fn line(node: &Name, applied: Applied, done: &str) -> String {
    match applied {
        Applied::Unchanged => format!("node/{node} unchanged\n"),
        Applied::Created | Applied::Configured | Applied::Deleted => {
            format!("node/{node} {done}\n")
        }
    }
}

async fn gone(client: &Client, args: GoneArgs) -> Result<(), Failure> {
    let node = &args.node;
    if !args.yes {
        if !confirm::can_ask() {
            let usage = "expected --yes: the question whether the node is powered off cannot be asked without a terminal";
            return Err(Failure::Usage(usage.to_owned()));
        }
        confirm::ask(&format!(
            "Is {node} powered off? All its VMs are started on other nodes, those with persistent disks with new ones."
        ))?;
    }
    let action = NodeAction::Gone { force: args.force };
    let applied = client.fleet_node_action(node, action).await?;
    print::out(&line(node, applied, "gone"))
}

async fn drain(client: &Client, args: DrainArgs) -> Result<(), Failure> {
    let (node, begin) = (&args.node, clock::monotonic());
    let action = NodeAction::Drain {
        delete_local: args.delete_local,
    };
    request(client, node, action, args.timeout).await?;
    if args.timeout.is_zero() {
        return print::out(&format!("node/{node} drain requested\n"));
    }
    let mut progress = Progress {
        quiet: args.quiet,
        ..Progress::default()
    };
    loop {
        let rest = args.timeout.saturating_sub(begin.elapsed());
        let (is_draining, vms) = match read(client, node).await {
            Ok(read) => read,
            // etcd elects a leader, or the daemon is restarted.
            Err(error) if error.is_temporary() && !rest.is_zero() => {
                tokio::time::sleep(INTERVAL.min(rest)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        progress.report(node, &vms)?;
        if !is_draining {
            return Err(ended(node, &vms));
        }
        if vms.is_empty() {
            let seconds = begin.elapsed().as_secs_f64();
            return print::out(&format!("node/{node} drained (in {seconds:.1}s)\n"));
        }
        if rest.is_zero() {
            let time = humantime::format_duration(args.timeout);
            return Err(not_drained(node, &format!("timeout after {time}"), &vms));
        }
        if progress.is_stuck(&vms) {
            return Err(not_drained(node, "no VM can be moved", &vms));
        }
        tokio::time::sleep(INTERVAL.min(rest)).await;
    }
}

/// Requests a drain, again if that fails for the time being: the same request twice changes nothing.
async fn request(
    client: &Client,
    node: &Name,
    action: NodeAction,
    timeout: Duration,
) -> Result<(), ClientError> {
    let begin = clock::monotonic();
    loop {
        let error = match client.fleet_node_action(node, action).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let rest = timeout.saturating_sub(begin.elapsed());
        if !error.is_temporary() || rest.is_zero() {
            return Err(error);
        }
        tokio::time::sleep(INTERVAL.min(rest)).await;
    }
}

/// Whether a node is being drained, and its VMs.
async fn read(client: &Client, node: &Name) -> Result<(bool, Vec<NodeVm>), ClientError> {
    let vms = client.fleet_node_vms(node).await?;
    // After the VMs: with an end of the drain in between, VMs may be bound to the node again.
    let found = client.fleet_nodes(Some(node)).await?;
    let mut states = found.items.iter().flat_map(|node| &node.states);
    Ok((states.any(|it| *it == FleetNodeState::Draining), vms))
}

/// Another command has ended the drain.
fn ended(node: &Name, vms: &[NodeVm]) -> Failure {
    Failure::one(format!(
        "node/{node} is not drained: another command has ended the drain (`slicectl node uncordon {node}`); it has {}",
        vms_of(vms.len())
    ))
}

fn vms_of(count: usize) -> String {
    match count {
        1 => "1 VM".to_owned(),
        _ => format!("{count} VMs"),
    }
}

/// What was last shown of a drain.
#[derive(Default)]
struct Progress {
    quiet: bool,
    before: Option<BTreeSet<Name>>,
    reasons: Vec<NodeVm>,
    /// Since when all VMs stay for the same reasons.
    since: Option<std::time::Instant>,
}

impl Progress {
    /// Prints which VMs have left since the last time.
    fn report(&mut self, node: &Name, vms: &[NodeVm]) -> Result<(), Failure> {
        let now: BTreeSet<Name> = vms.iter().map(|vm| vm.name.clone()).collect();
        if !self.quiet {
            match &self.before {
                None if !now.is_empty() => {
                    print::out(&format!("node/{node} has {}\n", vms_of(now.len())))?;
                }
                None => {}
                Some(before) => {
                    for name in before.difference(&now) {
                        print::out(&format!("vm/{name} has left, {} remain\n", now.len()))?;
                    }
                }
            }
        }
        self.before = Some(now);
        Ok(())
    }

    fn is_stuck(&mut self, vms: &[NodeVm]) -> bool {
        let now = clock::monotonic();
        let all_stay = vms.iter().all(|vm| vm.stays.is_some());
        if !all_stay || vms != self.reasons {
            self.since = all_stay.then_some(now);
            self.reasons = vms.to_vec();
        }
        self.since.is_some_and(|since| now - since >= STUCK)
    }
}

fn not_drained(node: &Name, why: &str, vms: &[NodeVm]) -> Failure {
    for vm in vms {
        let reason = vm.stays.as_deref().unwrap_or("it is being moved");
        failure::note(&format!("vm/{} stays: {reason}", vm.name));
    }
    let vms = match vms.len() {
        1 => "1 VM stays".to_owned(),
        vms => format!("{vms} VMs stay"),
    };
    Failure::one(format!(
        "node/{node} is not drained: {why}; {vms}; the drain goes on until `slicectl node uncordon {node}`"
    ))
}
