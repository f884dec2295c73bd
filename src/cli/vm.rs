//! `vm`: verbs for single VMs.
//! Out of scope: the daemon's part in them.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use super::args::Goal;
use super::failure::{Failure, warn};
use super::paint::Colours;
use super::print::Format;
use super::table::{Field, Table};
use super::target::Target;
use super::{get, print, wait};
use crate::api::meta::Name;
use crate::api::metrics::{Metrics, Since};
use crate::api::on_demand::NewVm;
use crate::api::policy::Entry;
use crate::api::tag::{self, TagKey, TagValue};
use crate::api::view::{Applied, Kind};
use crate::api::vm::{Hypervisor, PowerVerb};
use crate::wire::Client;

/// The verbs for single VMs.
#[derive(Debug, Subcommand)]
pub enum VmVerb {
    /// Make a VM on demand, beside those that its group counts
    Add(Box<AddArgs>),
    /// Remove a VM that was made on demand
    Delete(RemoveArgs),
    /// Hold VMs where they are
    Pause(PowerArgs),
    /// Let held VMs go on
    Resume(PowerArgs),
    /// Stop VMs and start them again
    Restart(PowerArgs),
    /// Take VMs down; they keep their place, their address and their disk until they are started
    Stop(PowerArgs),
    /// Start VMs, whatever has kept them down
    Start(PowerArgs),
    /// What a VM's VMM has counted
    Metrics(MetricsArgs),
}

/// Arguments of `vm metrics`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Counters have the names that the VMM gives them. Firecracker counts anew every minute, and whenever it is asked; QEMU and Cloud
Hypervisor count from their start. The table leaves out what is 0.

Examples:
  slicectl vm metrics sandbox-1
  slicectl vm metrics sandbox-1 -o json | jq '.counters.\"net_eth0.rx_bytes_count\"'")]
pub struct MetricsArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::target::vm)]
    pub vm: Name,
    /// The format of the answer
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `vm pause`, `resume`, `restart`, `stop` and `start`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What is said stays so, through restarts of sliced and of the host, until something else is said.
A guest that is stopped is asked to power down first, and has its `graceful_shutdown` to do so.

Examples:
  slicectl vm stop sandbox-1 --wait
  slicectl vm pause vm/sandbox-1 vm/sandbox-2
  slicectl vm restart sandbox-1 --wait=2m")]
pub struct PowerArgs {
    /// The VMs
    #[arg(value_name = "VM", value_parser = super::target::vm, required = true)]
    pub vms: Vec<Name>,
    /// Wait until it is so, 60s when no time is given
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "60s", value_parser = humantime::parse_duration)]
    pub wait: Option<Duration>,
}

/// How `vm add` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum Answer {
    /// vm/NAME and what became of it
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
What is not said is the group's; its vcpu and its memory are the most that may be asked. Such a VM stands beside those of `count`,
is updated with its group and goes with it. The same command with the same --name again changes nothing.

Examples:
  slicectl vm add web
  slicectl vm add web --name ci --vcpu 1 --ram 256 --tag job=42 --wait
  slicectl vm add web --tag job=42 --tag team=blue --allow 192.168.222.1:3128 --drop ''
  vm=$(slicectl vm add web -o name) && slicectl wait $vm --for ready")]
pub struct AddArgs {
    /// Its group
    #[arg(value_name = "GROUP", value_parser = super::target::group)]
    pub group: Name,
    /// Its name; made up when it is not said. One that ends in a number is a VM's that a group counts
    #[arg(long)]
    pub name: Option<Name>,
    /// Virtual processors, at most the group's
    #[arg(long, value_name = "N")]
    pub vcpu: Option<u32>,
    /// Memory in MiB, at most the group's
    #[arg(long, value_name = "MB")]
    pub ram: Option<u64>,
    /// To find it again (`get vms -l`); may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag::parse)]
    pub tags: Vec<(TagKey, TagValue)>,
    /// In place of the group's list: IP or CIDR, then :PORT or :FROM-TO, then /tcp or /udp; may be repeated; '' is an empty list
    #[arg(long, value_name = "ENTRY", value_delimiter = ',', value_parser = entry)]
    pub allow: Option<Vec<Option<Entry>>>,
    /// In place of the group's list, written as --allow
    #[arg(long, value_name = "ENTRY", value_delimiter = ',', value_parser = entry)]
    pub drop: Option<Vec<Option<Entry>>>,
    /// Its disk stays when it goes
    #[arg(long)]
    pub persistent: bool,
    /// Wait until it is ready, 5m when no time is given
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "5m", value_parser = humantime::parse_duration)]
    pub wait: Option<Duration>,
    /// The format of the answer
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Answer,
}

/// Arguments of `vm delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A VM that its group counts is refused: lower `count`, or let `slicectl delete vm/NAME` make it anew.

Examples:
  slicectl vm delete ci --wait
  slicectl get vms -l job=42 -o name | xargs slicectl vm delete")]
pub struct RemoveArgs {
    /// The VMs
    #[arg(value_name = "VM", value_parser = super::target::vm, required = true)]
    pub vms: Vec<Name>,
    /// Wait until they are gone, 60s when no time is given
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "60s", value_parser = humantime::parse_duration)]
    pub wait: Option<Duration>,
}

/// `vm …`.
pub async fn vm(client: &Client, verb: VmVerb) -> Result<(), Failure> {
    match verb {
        VmVerb::Add(args) => add(client, *args).await,
        VmVerb::Delete(args) => delete(client, args).await,
        VmVerb::Pause(args) => power(client, args, PowerVerb::Pause).await,
        VmVerb::Resume(args) => power(client, args, PowerVerb::Resume).await,
        VmVerb::Restart(args) => power(client, args, PowerVerb::Restart).await,
        VmVerb::Stop(args) => power(client, args, PowerVerb::Stop).await,
        VmVerb::Start(args) => power(client, args, PowerVerb::Start).await,
        VmVerb::Metrics(args) => {
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
        Since::Start => "its start",
        Since::LastAsked => "it was asked last, at most a minute ago",
    };
    let hypervisor = metrics.hypervisor;
    let counted_by = match (&metrics.vmm_error, hypervisor) {
        (Some(why), _) => format!("Counted by the kernel alone: {why}."),
        (None, Hypervisor::None) => "Counted by the kernel: there is no VMM.".to_owned(),
        (None, _) => format!("Counted by {hypervisor} since {since}."),
    };
    match rows.is_empty() {
        true => format!("{hypervisor} has counted nothing since {since}.\n"),
        false => {
            let mut table = Table::new(vec!["COUNTER", "COUNT"], Colours::of_stdout());
            format!("{}\n{counted_by}\n", table.draw(rows))
        }
    }
}

/// Goes on after a failure, and fails at the end.
async fn power(client: &Client, args: PowerArgs, verb: PowerVerb) -> Result<(), Failure> {
    let (done, goal) = match verb {
        PowerVerb::Pause => ("paused", Goal::Paused),
        PowerVerb::Resume => ("resumed", Goal::Ready),
        PowerVerb::Restart => ("restarted", Goal::Ready),
        PowerVerb::Stop => ("stopped", Goal::Stopped),
        PowerVerb::Start => ("started", Goal::Ready),
    };
    let mut problems = Vec::new();
    let mut told = Vec::new();
    for name in args.vms {
        match client.power(&name, verb).await {
            Ok(applied) => {
                let word = match applied {
                    Applied::Unchanged => "unchanged",
                    Applied::Created | Applied::Configured | Applied::Deleted => done,
                };
                let target = Target {
                    kind: Kind::Vm,
                    name,
                };
                print::out(&format!("{target} {word}\n"))?;
                told.push(target);
            }
            Err(error) => problems.extend(error.causes()),
        }
    }
    if let Some(limit) = args.wait {
        wait::until(client, &told, goal, limit).await?;
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(problems)),
    }
}

async fn add(client: &Client, args: AddArgs) -> Result<(), Failure> {
    let mut tags = tag::Tags::new();
    for (key, value) in args.tags {
        if let Some(before) = tags.insert(key.clone(), value) {
            let usage = format!("--tag {key} is here twice, first with \"{before}\"");
            return Err(Failure::Usage(usage));
        }
    }
    let wanted = NewVm {
        name: args.name,
        vcpu: args.vcpu,
        ram_bytes: args.ram.map(|mib| mib.saturating_mul(1 << 20)),
        allow: args.allow.map(entries),
        drop: args.drop.map(entries),
        persistent: args.persistent,
        tags,
    };
    let result = client.add_vm(&args.group, &wanted).await?;
    result.warnings.iter().for_each(|text| warn(text));
    let target = Target {
        kind: Kind::Vm,
        name: result.name,
    };
    match args.output {
        Answer::Table => print::out(&format!("{target} {}\n", word(result.applied)))?,
        Answer::Name => print::out(&format!("{target}\n"))?,
        Answer::Json => {}
    }
    let targets = [target];
    if let Some(limit) = args.wait {
        wait::until(client, &targets, Goal::Ready, limit).await?;
    }
    match args.output {
        Answer::Table | Answer::Name => Ok(()),
        Answer::Json => match get::fetch(client, &targets).await? {
            (items, problems) if problems.is_empty() => items.iter().try_for_each(print::json),
            (_, problems) => Err(Failure::Failed(problems)),
        },
    }
}

/// Goes on after a failure, and fails at the end.
async fn delete(client: &Client, args: RemoveArgs) -> Result<(), Failure> {
    let mut problems = Vec::new();
    let mut going = Vec::new();
    for name in args.vms {
        let kind = Kind::Vm;
        match client.remove_vm(&name).await {
            Ok(()) => {
                let target = Target { kind, name };
                print::out(&format!("{target} deleted\n"))?;
                going.push(target);
            }
            Err(error) => problems.extend(error.causes()),
        }
    }
    if let Some(limit) = args.wait {
        wait::until(client, &going, Goal::Deleted, limit).await?;
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(problems)),
    }
}

fn word(applied: Applied) -> &'static str {
    match applied {
        Applied::Created => "created",
        Applied::Configured => "configured",
        Applied::Unchanged => "unchanged",
        Applied::Deleted => "deleted",
    }
}

/// Nothing stands for no entry: it makes a list that is there and empty.
fn entry(text: &str) -> Result<Option<Entry>, String> {
    match text.is_empty() {
        true => Ok(None),
        false => text.parse().map(Some).map_err(|error| format!("{error}")),
    }
}

fn entries(written: Vec<Option<Entry>>) -> Vec<Entry> {
    written.into_iter().flatten().collect()
}
