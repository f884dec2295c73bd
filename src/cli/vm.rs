//! `vm`: commands for single VMs.
//! Out of scope: their implementation in the daemon.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use super::args::Goal;
use super::failure::{Failure, warn};
use super::paint::Colors;
use super::print::Format;
use super::table::{Field, Table};
use super::target::Target;
use super::{get, print, wait};
use crate::api::cni::{Bandwidth, CniOptions, PortMapping, RequestedIp};
use crate::api::meta::Name;
use crate::api::metrics::{CountingSince, Metrics};
use crate::api::network::Mac;
use crate::api::on_demand::NewVm;
use crate::api::policy::Entry;
use crate::api::tag::{self, TagKey, TagValue};
use crate::api::view::{Applied, Kind};
use crate::api::vm::{Hypervisor, PowerCommand};
use crate::wire::Client;

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
}

/// Arguments of `vm metrics`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Counters have the names that the VMM uses. Firecracker resets its counters every minute and whenever they are read; QEMU and Cloud
Hypervisor count from their start. The table omits counters that are 0.

Examples:
  slicectl vm metrics sandbox-1
  slicectl vm metrics sandbox-1 -o json | jq '.counters.\"net_eth0.rx_bytes_count\"'")]
pub struct MetricsArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::target::vm)]
    pub vm: Name,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `vm pause`, `resume`, `restart`, `stop` and `start`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The state is kept across restarts of sliced and of the host, until another command changes it.
When a VM is stopped, its guest is requested to power down first, with `graceful_shutdown` as the timeout.

Examples:
  slicectl vm stop sandbox-1 --wait
  slicectl vm pause vm/sandbox-1 vm/sandbox-2
  slicectl vm restart sandbox-1 --wait=2m")]
pub struct PowerArgs {
    /// The VMs
    #[arg(value_name = "VM", value_parser = super::target::vm, required = true)]
    pub vms: Vec<Name>,
    /// Wait until the VMs are in the requested state, for at most TIME (60s if omitted)
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "60s", value_parser = humantime::parse_duration)]
    pub wait: Option<Duration>,
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
Options that are omitted have the values of the group; its vcpu and memory are also the maximum. The VM is not included in the `count`
of the group, but is updated and deleted with the group. Repeating the command with the same --name changes nothing.

Examples:
  slicectl vm add web
  slicectl vm add web --name ci --vcpu 1 --ram 256 --tag job=42 --wait
  slicectl vm add web --tag job=42 --tag team=blue --allow 192.168.222.1:3128 --drop ''
  vm=$(slicectl vm add web -o name) && slicectl wait $vm --for ready")]
pub struct AddArgs {
    /// The group of the VM
    #[arg(value_name = "GROUP", value_parser = super::target::group)]
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
    /// Wait until the VM is ready, for at most TIME (5m if omitted)
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "5m", value_parser = humantime::parse_duration)]
    pub wait: Option<Duration>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: AddOutput,
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
    #[arg(value_name = "VM", value_parser = super::target::vm, required = true)]
    pub vms: Vec<Name>,
    /// Wait until the VMs are deleted, for at most TIME (60s if omitted)
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "60s", value_parser = humantime::parse_duration)]
    pub wait: Option<Duration>,
}

/// `vm …`.
pub async fn vm(client: &Client, command: VmCommand) -> Result<(), Failure> {
    match command {
        VmCommand::Add(args) => add(client, *args).await,
        VmCommand::Delete(args) => delete(client, args).await,
        VmCommand::Pause(args) => power(client, args, PowerCommand::Pause).await,
        VmCommand::Resume(args) => power(client, args, PowerCommand::Resume).await,
        VmCommand::Restart(args) => power(client, args, PowerCommand::Restart).await,
        VmCommand::Stop(args) => power(client, args, PowerCommand::Stop).await,
        VmCommand::Start(args) => power(client, args, PowerCommand::Start).await,
        VmCommand::Metrics(args) => {
            let metrics = client.metrics(&args.vm).await?;
            print::answer(args.output, &metrics, counted)
        }
    }
}

fn counted(metrics: &Metrics) -> String {
    let counters = metrics.counters.iter();
    let rows: Vec<Vec<Field>> = counters
        .filter(|(_, count)| count.as_f64() != Some(0.0))
        .map(|(name, count)| vec![Field::from(name), Field::from(count)])
        .collect();
    let since = match metrics.since {
        CountingSince::Start => "its start",
        CountingSince::LastQuery => "the counters were last read, at most a minute ago",
    };
    let hypervisor = metrics.hypervisor;
    let source = match (&metrics.vmm_error, hypervisor) {
        (Some(why), _) => format!("Counted by the kernel only: {why}."),
        (None, Hypervisor::None) => "Counted by the kernel: the VM has no VMM.".to_owned(),
        (None, _) => format!("Counted by {hypervisor} since {since}."),
    };
    match rows.is_empty() {
        true => format!("All counters of {hypervisor} are 0 since {since}.\n"),
        false => {
            let mut table = Table::new(vec!["COUNTER", "COUNT"], Colors::for_stdout());
            format!("{}\n{source}\n", table.draw(rows))
        }
    }
}

/// Continues after a failure, and fails at the end.
async fn power(client: &Client, args: PowerArgs, action: PowerCommand) -> Result<(), Failure> {
    let (result, goal) = match action {
        PowerCommand::Pause => ("paused", Goal::Paused),
        PowerCommand::Resume => ("resumed", Goal::Ready),
        PowerCommand::Restart => ("restarted", Goal::Ready),
        PowerCommand::Stop => ("stopped", Goal::Stopped),
        PowerCommand::Start => ("started", Goal::Ready),
    };
    let mut errors = Vec::new();
    let mut targets = Vec::new();
    for name in args.vms {
        match client.power(&name, action).await {
            Ok(applied) => {
                let text = match applied {
                    Applied::Unchanged => "unchanged",
                    Applied::Created | Applied::Configured | Applied::Deleted => result,
                };
                let target = Target {
                    kind: Kind::Vm,
                    name,
                };
                print::out(&format!("{target} {text}\n"))?;
                targets.push(target);
            }
            Err(error) => errors.extend(error.causes()),
        }
    }
    if let Some(timeout) = args.wait {
        wait::until(client, &targets, goal, timeout).await?;
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(errors)),
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

async fn add(client: &Client, args: AddArgs) -> Result<(), Failure> {
    let mut tags = tag::Tags::new();
    for (key, value) in args.tags {
        if let Some(previous) = tags.insert(key.clone(), value) {
            let usage = format!("duplicate --tag {key}, first with \"{previous}\"");
            return Err(Failure::Usage(usage));
        }
    }
    let mut cni_args = BTreeMap::new();
    for (key, value) in args.cni_args {
        if cni_args.contains_key(&key) {
            return Err(Failure::Usage(format!("duplicate --cni-arg {key}")));
        }
        cni_args.insert(key, value);
    }
    let request = NewVm {
        name: args.name,
        vcpu: args.vcpu,
        ram_bytes: args.ram.map(|mib| mib.saturating_mul(1 << 20)),
        allow: args.allow.map(entries),
        drop: args.drop.map(entries),
        persistent: args.persistent,
        tags,
        cni: CniOptions {
            port_mappings: args.port_mappings,
            bandwidth: args.bandwidth,
            aliases: args.aliases,
            args: cni_args,
            ips: args.ips,
            mac: args.mac,
        },
    };
    let result = client.add_vm(&args.group, &request).await?;
    result.warnings.iter().for_each(|text| warn(text));
    let target = Target {
        kind: Kind::Vm,
        name: result.name,
    };
    match args.output {
        AddOutput::Table => print::out(&format!("{target} {}\n", result_text(result.applied)))?,
        AddOutput::Name => print::out(&format!("{target}\n"))?,
        AddOutput::Json => {}
    }
    let targets = [target];
    if let Some(timeout) = args.wait {
        wait::until(client, &targets, Goal::Ready, timeout).await?;
    }
    match args.output {
        AddOutput::Table | AddOutput::Name => Ok(()),
        AddOutput::Json => match get::fetch(client, &targets).await? {
            (items, problems) if problems.is_empty() => items.iter().try_for_each(print::json),
            (_, problems) => Err(Failure::Failed(problems)),
        },
    }
}

/// Continues after a failure, and fails at the end.
async fn delete(client: &Client, args: DeleteArgs) -> Result<(), Failure> {
    let mut errors = Vec::new();
    let mut deleting = Vec::new();
    for name in args.vms {
        let kind = Kind::Vm;
        match client.remove_vm(&name).await {
            Ok(()) => {
                let target = Target { kind, name };
                print::out(&format!("{target} deleted\n"))?;
                deleting.push(target);
            }
            Err(error) => errors.extend(error.causes()),
        }
    }
    if let Some(timeout) = args.wait {
        wait::until(client, &deleting, Goal::Deleted, timeout).await?;
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(errors)),
    }
}

fn result_text(applied: Applied) -> &'static str {
    match applied {
        Applied::Created => "created",
        Applied::Configured => "configured",
        Applied::Unchanged => "unchanged",
        Applied::Deleted => "deleted",
    }
}

/// Parses an entry; an empty text is no entry, so that `--allow ''` is a list that is present and empty.
fn entry(text: &str) -> Result<Option<Entry>, String> {
    match text.is_empty() {
        true => Ok(None),
        false => text.parse().map(Some).map_err(|error| format!("{error}")),
    }
}

fn entries(entries: Vec<Option<Entry>>) -> Vec<Entry> {
    entries.into_iter().flatten().collect()
}
