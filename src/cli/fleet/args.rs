//! The arguments of `node` and `fleet`.
//! Out of scope: `--fleet` of other commands.

use std::time::Duration;

use clap::Subcommand;
use clap_complete::engine::ArgValueCompleter;

use super::super::complete;
use super::super::print::Format;
use crate::api::meta::Name;

/// The commands for nodes of the fleet.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Bind no more VMs to nodes
    Cordon(CordonArgs),
    /// End a cordon, a drain, and the statement that a node is gone
    Uncordon(CordonArgs),
    /// Move all VMs of a node to other nodes
    Drain(DrainArgs),
    /// State that a node is powered off, so that all its VMs may be started on other nodes
    Gone(GoneArgs),
    /// Remove nodes that do not belong to the fleet any more
    Remove(RemoveArgs),
}

/// Arguments of `node cordon` and `node uncordon`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
VMs on the node keep running.

Examples:
  slicectl node cordon node-a
  slicectl node uncordon node-a node-b")]
pub struct CordonArgs {
    /// The nodes
    #[arg(value_name = "NODE", required = true, value_parser = super::target::node, add = ArgValueCompleter::new(complete::nodes))]
    pub nodes: Vec<Name>,
}

/// Arguments of `node remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The node has no VMs, and `fleet:` is removed from its settings or it is powered off. A node that connects again is added again.

Examples:
  slicectl node drain node-a
  slicectl node remove node-a")]
pub struct RemoveArgs {
    /// The nodes
    #[arg(value_name = "NODE", required = true, value_parser = super::target::node, add = ArgValueCompleter::new(complete::nodes))]
    pub nodes: Vec<Name>,
}

/// Arguments of `node drain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
No VM is bound to the node from now on. Its VMs are moved, at most `max_unavailable` of a group at a time: each is stopped and deleted on \
the node, then started on another one. A VM with a persistent disk, or that writes to a disk of the node, stays; so does a VM for which no \
other node has the resources. If the command ends before the drain, the drain goes on; `slicectl node uncordon` ends it.

Examples:
  slicectl node drain node-a
  slicectl node drain node-a --delete-local --timeout 30m")]
pub struct DrainArgs {
    /// The node
    #[arg(value_name = "NODE", value_parser = super::target::node, add = ArgValueCompleter::new(complete::nodes))]
    pub node: Name,
    /// Delete VMs with persistent disks, with their disks
    #[arg(long)]
    pub delete_local: bool,
    /// Give up waiting after this time; 0s does not wait
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Do not print which VMs have left
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `node gone`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The statement must be true: if a VM of the node still runs, two VMs have the same name, address and data. Power the node off first. \
The VMs are started on other nodes, those with persistent disks with new disks. The statement ends when the node boots again.

Examples:
  slicectl node gone node-a")]
pub struct GoneArgs {
    /// The node
    #[arg(value_name = "NODE", value_parser = super::target::node, add = ArgValueCompleter::new(complete::nodes))]
    pub node: Name,
    /// Do not ask
    #[arg(short = 'y', long)]
    pub yes: bool,
    /// Also if the node still renews its lease
    #[arg(long)]
    pub force: bool,
}

/// The commands for the fleet.
#[derive(Debug, Subcommand)]
pub enum FleetCommand {
    /// Show the connection of this host to the fleet, and which node schedules
    Status(StatusArgs),
    /// Accept the etcd cluster after it was restored or replaced
    Accept(AcceptArgs),
    /// Print the routes that other machines need to reach bridge groups
    Subnets(StatusArgs),
}

/// Arguments of `fleet status` and `fleet subnets`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `fleet accept`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
This host changes no VM of the fleet while etcd has another cluster id, or an earlier revision, than before. After `accept`, it makes its \
VMs what this etcd specifies: check with `slicectl get vms --fleet` that it is the right one. Repeat it on each node.

Examples:
  slicectl fleet status
  slicectl fleet accept")]
pub struct AcceptArgs {
    /// Do not ask
    #[arg(short = 'y', long)]
    pub yes: bool,
}
