//! `describe --fleet` and `describe node/NAME`: the details of objects of the fleet as text.
//! Out of scope: formats for scripts (`get -o json`); events, which are those of each node.

use std::fmt::Display;

use super::super::age::{age, seconds};
use super::super::args::DescribeArgs;
use super::super::failure::Failure;
use super::super::paint::one_line;
use super::super::print;
use super::object::{FleetObject, fetch, rounded, states};
use super::target;
use crate::api::meta::Timestamp;
use crate::api::view::{FleetGroup, FleetNode, FleetVm, MetaView, NodeResources, NodeVm};
use crate::clock;
use crate::wire::Client;

/// `describe KIND/NAME… --fleet`.
pub async fn describe(client: &Client, args: DescribeArgs) -> Result<(), Failure> {
    let targets = target::targets(&args.targets)?;
    let (objects, mut errors) = fetch(client, &targets).await?;
    let now = clock::now();
    for (index, object) in objects.iter().enumerate() {
        let mut lines = Lines::default();
        match object {
            FleetObject::HostGroup(group) => lines.group(group, now),
            FleetObject::Vm(vm) => lines.vm(vm, now),
            FleetObject::Node(node) => {
                let vms = match client.fleet_node_vms(&node.name).await {
                    Ok(vms) => Some(vms),
                    Err(error) => {
                        errors.extend(error.causes());
                        None
                    }
                };
                lines.node(node, vms.as_deref());
            }
        }
        let gap = if index == 0 { "" } else { "\n\n" };
        print::out(&format!("{gap}{}", lines.0))?;
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(errors)),
    }
}

/// Lines of `key: value`.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, key: &str, value: impl Display) {
        let value = one_line(&value.to_string());
        let key = format!("{key}:");
        self.0.push_str(format!("{key:<20} {value}").trim_end());
        self.0.push('\n');
    }

    fn maybe(&mut self, key: &str, value: Option<impl Display>) {
        match value {
            Some(value) => self.line(key, value),
            None => self.line(key, "<none>"),
        }
    }

    fn metadata(&mut self, kind: &str, metadata: &MetaView, now: Timestamp) {
        self.line("Name", &metadata.name);
        self.line("Kind", kind);
        if let Some(group) = &metadata.group {
            self.line("Group", group);
        }
        self.maybe("Uid", metadata.uid);
        self.maybe("Generation", metadata.generation);
        let created = metadata.created_at;
        let text = format!("{} ({})", seconds(created), age(created, now));
        self.line("Created", text);
        if metadata.deleting {
            self.line("Deleting", "true");
        }
    }

    fn group(&mut self, group: &FleetGroup, now: Timestamp) {
        self.metadata("HostGroup", &group.metadata, now);
        let (status, placement) = (&group.status, &group.placement);
        self.line(
            "VMs",
            format!(
                "{} desired, {} exist, {} ready, {} up to date, {} pending",
                group.spec.count, status.vms, status.ready, status.up_to_date, status.pending
            ),
        );
        let strategy = format!("{:?}", placement.strategy).to_lowercase();
        self.line("Strategy", strategy);
        self.maybe("Node selector", labels(&placement.node_selector));
        self.maybe("Architecture", placement.architecture.as_ref());
        self.line("Max unavailable", placement.max_unavailable);
        let subnets = placement.subnets;
        self.maybe(
            "Subnets",
            subnets.map(|subnets| format!("/{} of {}", subnets.prefix_len, subnets.pool)),
        );
        let replacement = group.replacement.map(|replacement| {
            format!(
                "after {}, stopped after {}",
                humantime::format_duration(replacement.replace_after),
                humantime::format_duration(replacement.stop_after)
            )
        });
        let never = "never".to_owned();
        self.line("Replacement", replacement.unwrap_or(never));
        self.line("Mode", group.spec.template.network.mode());
        self.line("Hypervisor", group.spec.template.hypervisor);
        self.line("VCPU", group.spec.template.vcpu);
        self.line("RAM", rounded(group.spec.template.ram_bytes));
    }

    fn vm(&mut self, vm: &FleetVm, now: Timestamp) {
        self.metadata("Vm", &vm.metadata, now);
        self.maybe("Node", vm.node.as_ref());
        self.line("State", vm.state);
        if let Some(message) = &vm.message {
            self.line("Message", message);
        }
        self.maybe("IP", vm.address);
        self.line("Epoch", vm.epoch);
        self.line("Group generation", vm.group_generation);
        if let Some(node) = &vm.moving_from {
            self.line("Moving from", node);
        }
        for node in &vm.previous {
            self.line("Previous copy", format!("on node {node}, without contact"));
        }
        for refusal in &vm.refusals {
            let until = seconds(refusal.until);
            let text = format!("by node {} until {until}: {}", refusal.node, refusal.reason);
            self.line("Refused", text);
        }
    }

    fn node(&mut self, node: &FleetNode, vms: Option<&[NodeVm]>) {
        self.line("Name", &node.name);
        self.line("Kind", "Node");
        self.line("Status", states(node));
        if let Some(at) = node.gone_at {
            self.line("Gone", seconds(at));
        }
        if node.delete_local {
            self.line("Drain", "deletes persistent disks");
        }
        self.maybe("Labels", labels(&node.labels));
        if let Some(status) = &node.status {
            self.line("Architecture", &status.architecture);
            let hypervisors = status.hypervisors.iter().map(ToString::to_string);
            self.line("Hypervisors", hypervisors.collect::<Vec<_>>().join(", "));
            self.line("Version", &status.version);
            self.maybe("API", status.api.as_ref());
            self.line("Boot id", &status.boot_id);
            self.line("Capacity", amounts(&status.capacity));
            self.line("Allocatable", amounts(&status.allocatable));
        }
        self.line("Used", amounts(&node.used));
        let Some(vms) = vms else {
            return self.line("VMs", "<unknown>");
        };
        self.line("VMs", vms.len());
        for vm in vms {
            match &vm.stays {
                None => self.line("  vm", &vm.name),
                Some(reason) => self.line("  vm", format!("{} stays: {reason}", vm.name)),
            }
        }
    }
}

fn labels(labels: &crate::api::placement::Labels) -> Option<String> {
    let pairs = labels.iter().map(|(key, value)| format!("{key}={value}"));
    let pairs: Vec<String> = pairs.collect();
    (!pairs.is_empty()).then(|| pairs.join(", "))
}

fn amounts(resources: &NodeResources) -> String {
    format!(
        "{} vcpus, {} memory, {} disk, {} isolated, {} bridge ports",
        resources.vcpus,
        rounded(resources.ram_bytes),
        rounded(resources.disk_bytes),
        resources.isolated,
        resources.bridge_ports
    )
}
