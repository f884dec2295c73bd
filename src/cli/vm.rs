//! `vm`: commands for single VMs.
//! Out of scope: their implementation in the daemon.

use std::collections::BTreeMap;

use super::args::Goal;
use super::delete::disk_loss;
use super::effects::ready_lines;
use super::failure::{Failure, warn};
use super::guest::requester::Agent;
use super::paint::Colors;
use super::table::{Field, Table};
use super::target::Target;
use super::vm_args::{AddArgs, AddGoal, AddOutput, DeleteArgs, PowerArgs, VmCommand};
use super::{cp, get, guest, print, resolve, wait};
use crate::api::cni::CniOptions;
use crate::api::metrics::{CountingSince, Metrics};
use crate::api::on_demand::NewVm;
use crate::api::policy::Entry;
use crate::api::tag::{self};
use crate::api::view::{Applied, Kind};
use crate::api::vm::{Hypervisor, PowerCommand};
use crate::clock;
use crate::wire::Client;

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
        VmCommand::Exec(args) => guest::exec::exec(client, args).await,
        VmCommand::Shell(args) => guest::shell::shell(client, args).await,
        VmCommand::PortForward(args) => guest::forward::forward(client, args).await,
        VmCommand::Background(command) => guest::background::background(client, command).await,
        VmCommand::Top(args) => guest::top::top(client, args).await,
        VmCommand::Cp(args) => cp::cp(|vm| Agent::new(client, vm), args).await,
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

/// Changes nothing if a VM does not exist; continues after another failure, and fails at the end. What is requested is reported as done
/// only after it was waited for.
async fn power(client: &Client, args: PowerArgs, action: PowerCommand) -> Result<(), Failure> {
    let (done, goal) = match action {
        PowerCommand::Pause => ("paused", Goal::Paused),
        PowerCommand::Resume => ("resumed", Goal::Ready),
        PowerCommand::Restart => ("restarted", Goal::Ready),
        PowerCommand::Stop => ("stopped", Goal::Stopped),
        PowerCommand::Start => ("started", Goal::Ready),
    };
    resolve::vms(client, &args.vms, &args.progress).await?;
    let (mut errors, mut targets, mut changed) = (Vec::new(), Vec::new(), String::new());
    for name in args.vms {
        match client.power(&name, action).await {
            Ok(applied) => {
                let target = Target {
                    kind: Kind::Vm,
                    name,
                };
                match (applied, args.progress.wait) {
                    (Applied::Unchanged, _) => {
                        args.progress.print(&format!("{target} unchanged\n"))?
                    }
                    (_, false) => args
                        .progress
                        .print(&format!("{target} {action} requested\n"))?,
                    (_, true) => changed.push_str(&format!("{target} {done}\n")),
                }
                targets.push(target);
            }
            Err(error) => errors.extend(error.causes()),
        }
    }
    if let Some(timeout) = args.progress.timeout() {
        wait::until(client, &targets, goal, timeout).await?;
        args.progress.print(&changed)?;
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(errors)),
    }
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
    let provision = &args.provision;
    let request = NewVm {
        userdata: provision.userdata()?,
        ssh_keys: provision.ssh_keys()?,
        secrets: provision.secrets(),
        name: args.name,
        vcpu: args.vcpu,
        ram_bytes: args.ram.map(|mib| mib.saturating_mul(1 << 20)),
        allow: args.allow.map(entries),
        drop: args.drop.map(entries),
        persistent: args.persistent,
        delete_on_exit: args.delete_on_exit,
        tags,
        plain_tags: Vec::new(),
        unique_name: false,
        cni: CniOptions {
            port_mappings: args.port_mappings,
            bandwidth: args.bandwidth,
            aliases: args.aliases,
            args: cni_args,
            ips: args.ips,
            mac: args.mac,
        },
    };
    let begin = clock::monotonic();
    let result = client.add_vm(&args.group, &request).await?;
    result.warnings.iter().for_each(|text| warn(text));
    let target = Target {
        kind: Kind::Vm,
        name: result.name,
    };
    match args.output {
        AddOutput::Table => {
            let line = format!("{target} {}\n", result_text(result.applied));
            args.progress.print(&line)?;
        }
        AddOutput::Name => print::out(&format!("{target}\n"))?,
        AddOutput::Json => {}
    }
    let targets = [target];
    if let Some(timeout) = args.progress.timeout() {
        let goal = match args.goal {
            AddGoal::Ready => Goal::Ready,
            AddGoal::Agent => Goal::Agent,
            AddGoal::Userdata => Goal::Userdata,
        };
        let reached = wait::until(client, &targets, goal, timeout).await?;
        if args.output == AddOutput::Table {
            args.progress
                .print(&ready_lines(&reached, begin.elapsed()))?;
        }
    }
    match args.output {
        AddOutput::Table | AddOutput::Name => Ok(()),
        AddOutput::Json => match get::fetch(client, &targets).await? {
            (items, problems) if problems.is_empty() => items.iter().try_for_each(print::json),
            (_, problems) => Err(Failure::Failed(problems)),
        },
    }
}

/// Changes nothing if a VM does not exist; continues after another failure, and fails at the end.
async fn delete(client: &Client, args: DeleteArgs) -> Result<(), Failure> {
    resolve::vms(client, &args.vms, &args.progress).await?;
    let begin = clock::monotonic();
    let mut errors = Vec::new();
    let mut deleting = Vec::new();
    for name in args.vms {
        let kind = Kind::Vm;
        let target = Target { kind, name };
        let lost = disk_loss(client, &target).await;
        match client.remove_vm(&target.name).await {
            Ok(()) => {
                lost.iter().for_each(|text| warn(text));
                args.progress
                    .print(&format!("{target} deletion requested\n"))?;
                deleting.push(target);
            }
            Err(error) => errors.extend(error.causes()),
        }
    }
    if let Some(timeout) = args.progress.timeout() {
        let reached = wait::until(client, &deleting, Goal::Deleted, timeout).await?;
        let lines = wait::deleted_lines(&reached, begin.elapsed());
        args.progress.print(&lines)?;
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

fn entries(entries: Vec<Option<Entry>>) -> Vec<Entry> {
    entries.into_iter().flatten().collect()
}
