//! The arguments of `vm` and their help.
//! Out of scope: the implementation of the commands (`vm`).

use clap::{Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;

use super::complete;
use super::guest::args as guest_args;
use super::guest::background_args::BackgroundCommand;
use super::print::Format;
use super::progress_args::ProgressArgs;
use super::provision_args::ProvisionArgs;
use crate::api::cni::{Bandwidth, PortMapping, RequestedIp};
use crate::api::meta::Name;
use crate::api::network::Mac;
use crate::api::policy::Entry;
use crate::api::tag::{self, TagKey, TagValue};

/// The commands for single VMs.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Create a VM on demand, in addition to the `count` of its group
    Add(Box<AddArgs>),
    /// Delete a VM that was created on demand
    Delete(DeleteArgs),
    /// Pause VMs
    Pause(PowerArgs),
    /// Resume paused VMs
    Resume(PowerArgs),
    /// Stop VMs and start them again
    Restart(PowerArgs),
    /// Stop VMs; they keep their index, address and disk
    Stop(PowerArgs),
    /// Start VMs that are stopped, failed or paused
    Start(PowerArgs),
    /// Show VMM metrics
    Metrics(MetricsArgs),
    /// Run a command in a guest
    Exec(guest_args::ExecArgs),
    /// Copy files into a guest and out of it
    Cp(super::cp::CpArgs),
    /// Open a shell in a guest (Ctrl-] leaves)
    Shell(guest_args::ShellArgs),
    /// Forward ports and Unix sockets of this host to a guest
    #[command(alias = "forward")]
    PortForward(guest_args::ForwardArgs),
    /// Run and control commands in the background of a guest
    #[command(subcommand, name = "bg", alias = "background")]
    Background(BackgroundCommand),
    /// Show the resources that VMs use
    Top(guest_args::TopArgs),
}

/// Arguments of `vm metrics`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Counters have the names that the VMM uses. Firecracker resets its counters every minute and whenever they are read; QEMU and Cloud \
Hypervisor count from their start. The table omits counters that are 0.

Examples:
  slicectl vm metrics sandbox-1
  slicectl vm metrics sandbox-1 -o json | jq .counters")]
pub struct MetricsArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::target::vm, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Name,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `vm pause`, `resume`, `restart`, `stop` and `start`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The state is kept across restarts of sliced and of the host, until another command changes it. \
When a VM is stopped, its guest is requested to power down first, with `graceful_shutdown` as the timeout.

Examples:
  slicectl vm stop sandbox-1 --wait
  slicectl vm pause vm/sandbox-1 vm/sandbox-2
  slicectl vm restart sandbox-1 --wait --timeout 2m")]
pub struct PowerArgs {
    /// The VMs
    #[arg(value_name = "VM", value_parser = super::target::vm, add = ArgValueCompleter::new(complete::vms), required = true)]
    pub vms: Vec<Name>,
    /// Waiting and output.
    #[command(flatten)]
    pub progress: ProgressArgs,
}

/// Output formats of `vm add`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum AddOutput {
    /// vm/NAME and the result
    #[default]
    Table,
    /// The object, as `get -o json` shows it
    Json,
    /// vm/NAME
    Name,
}

/// Arguments of `vm add`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Options that are omitted have the values of the group; its vcpu and memory are also the maximum. The VM is not included in the `count` \
of the group, but is updated and deleted with the group. Repeating the command with the same --name changes nothing.

Examples:
  slicectl vm add web
  slicectl vm add web --name ci --vcpu 1 --ram 256 --tag job=42 --wait
  slicectl vm add web --wait=agent
  slicectl vm add web --userdata-file up.sh --secret token --wait=userdata
  slicectl vm add web --tag job=42 --allow 192.168.222.1:3128 --drop ''
  vm=$(slicectl vm add web -o name) && slicectl wait $vm --for ready")]
pub struct AddArgs {
    /// The group of the VM
    #[arg(value_name = "GROUP", value_parser = super::target::group, add = ArgValueCompleter::new(complete::groups))]
    pub group: Name,
    /// Name of the VM; generated if omitted. Names that end in a number are reserved for the `count` of groups
    #[arg(long)]
    pub name: Option<Name>,
    /// Virtual CPUs; at most the value of the group
    #[arg(long, value_name = "N")]
    pub vcpu: Option<u32>,
    /// Memory in MiB; at most the value of the group
    #[arg(long, value_name = "MB")]
    pub ram: Option<u64>,
    /// Tag for selecting the VM (`get vms -l`); may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag::parse)]
    pub tags: Vec<(TagKey, TagValue)>,
    /// Replaces the group's list: IP or CIDR, then :PORT or :FROM-TO, then /tcp or /udp; may be repeated; '' is an empty list
    #[arg(long, value_name = "ENTRY", value_delimiter = ',', value_parser = entry)]
    pub allow: Option<Vec<Option<Entry>>>,
    /// Replaces the group's list; same syntax as --allow
    #[arg(long, value_name = "ENTRY", value_delimiter = ',', value_parser = entry)]
    pub drop: Option<Vec<Option<Entry>>>,
    /// Keep the disk when the VM is deleted
    #[arg(long)]
    pub persistent: bool,
    /// Delete the VM when its guest powers off or reboots
    #[arg(long = "rm")]
    pub delete_on_exit: bool,
    #[allow(
        rustdoc::broken_intra_doc_links,
        reason = "the brackets of an optional part, for a terminal"
    )]
    /// CNI: forward a host port to the VM, [HOST_IP:]HOST_PORT:GUEST_PORT[/PROTOCOL]; may be repeated
    #[arg(long = "port-mapping", value_name = "MAPPING")]
    pub port_mappings: Vec<PortMapping>,
    /// CNI: limit traffic to the VM (ingress) and from it (egress), in bits: ingress_rate=10M,ingress_burst=1M, same for egress
    #[arg(long, value_name = "LIMITS")]
    pub bandwidth: Option<Bandwidth>,
    /// CNI: an additional name for the VM's address; may be repeated
    #[arg(long = "alias", value_name = "NAME")]
    pub aliases: Vec<Name>,
    /// CNI: an argument for the plugins (CNI_ARGS); may be repeated
    #[arg(long = "cni-arg", value_name = "KEY=VALUE", value_parser = parse_cni_arg)]
    pub cni_args: Vec<(String, String)>,
    /// CNI: request an address, A.B.C.D or A.B.C.D/LEN; may be repeated
    #[arg(long = "ip", value_name = "IP")]
    pub ips: Vec<RequestedIp>,
    /// CNI: request a MAC
    #[arg(long, value_name = "MAC", value_parser = mac)]
    pub mac: Option<Mac>,
    /// What the guest gets.
    #[command(flatten)]
    pub provision: ProvisionArgs,
    /// Waiting and output.
    #[command(flatten)]
    pub progress: ProgressArgs<300>,
    /// The state to wait for; requires --wait, and --wait=GOAL is both
    #[arg(
        long = "for",
        value_name = "GOAL",
        value_enum,
        default_value_t,
        ignore_case = true,
        requires = "wait"
    )]
    pub goal: AddGoal,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: AddOutput,
}

/// What `vm add` waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AddGoal {
    /// Ready
    #[default]
    Ready,
    /// The agent of the guest answers
    Agent,
    /// The userdata has exited with status 0; fails at once if it fails
    Userdata,
}

/// Arguments of `vm delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A VM that the `count` of its group includes is refused: lower `count`, or recreate the VM with `slicectl delete vm/NAME`.

Examples:
  slicectl vm delete ci --wait
  slicectl get vms -l job=42 -o name | xargs slicectl vm delete")]
pub struct DeleteArgs {
    /// The VMs
    #[arg(value_name = "VM", value_parser = super::target::vm, add = ArgValueCompleter::new(complete::vms), required = true)]
    pub vms: Vec<Name>,
    /// Waiting and output.
    #[command(flatten)]
    pub progress: ProgressArgs,
}

/// Parses an entry; an empty text is no entry, so that `--allow ''` is a list that is present and empty.
fn entry(text: &str) -> Result<Option<Entry>, String> {
    match text.is_empty() {
        true => Ok(None),
        false => text.parse().map(Some).map_err(|error| format!("{error}")),
    }
}

fn parse_cni_arg(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) =
        pair.ok_or_else(|| format!("invalid argument `{text}`: expected KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn mac(text: &str) -> Result<Mac, String> {
    Mac::try_from(text.to_owned())
}
