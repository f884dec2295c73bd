//! `describe`: prints the details of objects as text.
//! Out of scope: formats for scripts (`get -o json`).

mod spec;

use std::fmt::Display;

use super::age::{age, seconds};
use super::args::DescribeArgs;
use super::failure::Failure;
use super::get::fetch;
use super::paint::{Colors, Severity, one_line};
use super::table::{Field, Table};
use super::target::{self, Target};
use super::{events, print, rows};
use crate::api::event::Event;
use crate::api::network::NetworkSpec;
use crate::api::view::{
    ConditionView, FirewallStatus, GroupView, LeaseView, MetaView, NetworkStatus, Object, VmView,
    VmmState, VmmStatus,
};
use crate::clock;
use crate::wire::Client;

/// `describe KIND/NAME…`.
pub async fn describe(client: &Client, args: DescribeArgs) -> Result<(), Failure> {
    let targets = target::targets(&args.targets)?;
    let (objects, errors) = fetch(client, &targets).await?;
    for (index, object) in objects.iter().enumerate() {
        let target = Target {
            kind: object.kind(),
            name: object.metadata().name.clone(),
        };
        let events = events::of(client, &target, object.metadata().uid).await?;
        let gap = if index == 0 { "" } else { "\n\n" };
        print::out(&format!("{gap}{}", describe_object(object, &events)))?;
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(errors)),
    }
}

fn describe_object(object: &Object, events: &[Event]) -> String {
    let mut description = Description::default();
    match object {
        Object::HostGroup(group) => description.group(group),
        Object::Vm(vm) => description.vm(vm),
        Object::Lease(lease) => description.lease(lease),
    }
    description.events(events);
    description.text
}

/// Lines of `key: value` under headings.
#[derive(Default)]
struct Description {
    text: String,
    indent: usize,
}

impl Description {
    fn line(&mut self, key: &str, value: impl Display) {
        let value = one_line(&value.to_string());
        let line = format!("{:indent$}{key}:", "", indent = self.indent);
        self.text.push_str(format!("{line:<20} {value}").trim_end());
        self.text.push('\n');
    }

    fn maybe(&mut self, key: &str, value: Option<impl Display>) {
        match value {
            Some(value) => self.line(key, value),
            None => self.line(key, "<none>"),
        }
    }

    /// Adds the line only if there is a value.
    fn given(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.line(key, value);
        }
    }

    fn section(&mut self, title: &str, body: impl FnOnce(&mut Self)) {
        self.text.push_str(&format!("{title}:\n"));
        self.indent += 2;
        body(self);
        self.indent -= 2;
    }

    /// A table under a heading, or `<none>` on the line of the heading.
    fn table(&mut self, title: &str, table: Option<String>) {
        match table {
            None => self.line(title, "<none>"),
            Some(drawn) => {
                self.text.push_str(&format!("{title}:\n"));
                for line in drawn.lines() {
                    self.text.push_str(&format!("  {line}\n"));
                }
            }
        }
    }

    fn metadata(&mut self, kind: &str, metadata: &MetaView) {
        self.line("Name", &metadata.name);
        self.line("Kind", kind);
        if let Some(group) = &metadata.group {
            self.line("Group", group);
        }
        if let Some(uid) = metadata.uid {
            self.line("Uid", uid);
        }
        if let Some(generation) = metadata.generation {
            self.line("Generation", generation);
        }
        let age_text = age(metadata.created_at, clock::now());
        self.line(
            "Created",
            format!("{} ({age_text} ago)", seconds(metadata.created_at)),
        );
        if metadata.deleting {
            self.line("Deleting", "yes");
        }
        if !metadata.finalizers.is_empty() {
            self.line("Finalizers", metadata.finalizers.join(", "));
        }
    }

    fn group(&mut self, group: &GroupView) {
        let status = &group.status;
        self.metadata("HostGroup", &group.metadata);
        self.line("Origin", &group.origin);
        self.section("Spec", |description| {
            description.line("Count", group.spec.count);
            description.spec(&group.spec.template);
        });
        self.section("Status", |describe_object| {
            describe_object.maybe("Range", status.range);
            let desired_count = match status.on_demand {
                0 => status.desired.to_string(),
                on_demand => format!("{} ({on_demand} on demand)", status.desired),
            };
            let inactive = rows::inactive(status).map_or(String::new(), |text| format!(", {text}"));
            describe_object.line(
                "VMs",
                format!(
                    "{desired_count} desired, {} current, {} up to date, {} ready{inactive}",
                    status.current, status.updated, status.ready_count
                ),
            );
        });
        self.conditions(&status.conditions);
        self.warnings(&status.conditions, &status.warnings);
    }

    fn vm(&mut self, vm: &VmView) {
        self.metadata("Vm", &vm.metadata);
        if let Some(overrides) = &vm.on_demand {
            self.overrides(overrides);
        }
        self.section("Spec", |description| description.spec(&vm.spec));
        match &vm.status.network {
            None => self.line("Network", "<none>"),
            Some(network) => self.section("Network", |status| status.network(network)),
        }
        self.section("Firewall", |describe_object| match &vm.spec.network {
            NetworkSpec::Isolated(_) => describe_object.firewall(&vm.status.firewall),
            NetworkSpec::Bridge(bridge) => {
                describe_object.line("Antispoof", on_off(bridge.antispoof));
                describe_object.maybe("Digest", vm.status.firewall.digest.as_ref());
            }
            NetworkSpec::Cni(_) => describe_object.line("Rules", "set by the CNI plugins"),
        });
        self.section("Vmm", |describe_object| {
            if !vm.power.is_default() {
                describe_object.line("Desired", vm.power);
            }
            describe_object.vmm(&vm.status.vmm);
        });
        if let Some(disk) = &vm.status.disk {
            let retention = match vm.spec.storage.persistent {
                true => "kept when the VM is deleted",
                false => "deleted with the VM",
            };
            self.line("Disk", format!("{} ({retention})", disk.display()));
        }
        self.conditions(&vm.status.conditions);
        self.warnings(&vm.status.conditions, &vm.status.warnings);
    }

    fn lease(&mut self, lease: &LeaseView) {
        self.metadata("Lease", &lease.metadata);
        self.line("IP", lease.ip);
        if let Some(block) = lease.block {
            self.line("Block", block);
        }
        self.line("Range", lease.range);
    }

    fn network(&mut self, network: &NetworkStatus) {
        self.line("Mode", network.mode);
        self.line("IP", format!("{}/{}", network.ip, network.prefix_len));
        self.given("Additional IPs", some(&network.addresses));
        self.maybe("Gateway", network.gateway);
        for route in &network.routes {
            self.line("Route", route);
        }
        self.line("MAC", network.mac);
        self.line("DNS", list(&network.dns));
        self.maybe("Netns", network.netns.as_ref().map(|path| path.display()));
        self.line("TAP", &network.tap);
        self.maybe("Host link", network.host_link.as_ref());
        self.line("MTU", network.mtu);
    }

    fn firewall(&mut self, firewall: &FirewallStatus) {
        let default = format!("{:?}", firewall.default).to_lowercase();
        self.line("Default", default);
        self.line("Allow", list(&firewall.allow));
        self.line("Drop", list(&firewall.drop));
        self.line("On deny", firewall.on_deny);
        self.maybe("Digest", firewall.digest.as_ref());
    }

    fn vmm(&mut self, vmm: &VmmStatus) {
        self.line("Hypervisor", vmm.hypervisor);
        self.line("State", format!("{:?}", vmm.state).to_lowercase());
        self.maybe("Pid", vmm.pid);
        match (vmm.user, vmm.state) {
            (Some(user), _) => self.line("User", user),
            (None, VmmState::Running) => self.line(
                "User",
                "root: started by an earlier version of sliced, confined after the next start",
            ),
            (
                None,
                VmmState::Starting
                | VmmState::Paused
                | VmmState::Stopping
                | VmmState::Stopped
                | VmmState::Failed
                | VmmState::None,
            ) => {}
        }
        if let Some(method) = &vmm.confined_by {
            self.line("Confined by", method);
        }
        self.maybe("Started", vmm.started_at.map(seconds));
        if vmm.restarts > 0 {
            self.line("Restarts", vmm.restarts);
        }
        if let Some(exit) = &vmm.last_exit {
            let age_text = age(exit.at, clock::now());
            self.line("Last exit", format!("{} ({age_text} ago)", exit.reason));
            for line in &exit.last_output {
                self.line("Output", line);
            }
        }
        self.given("API socket", vmm.api_socket.as_ref().map(|p| p.display()));
        self.given("Log", vmm.log.as_ref().map(|path| path.display()));
    }

    fn conditions(&mut self, conditions: &[ConditionView]) {
        let now = clock::now();
        let rows: Vec<Vec<Field>> = conditions
            .iter()
            .map(|condition| {
                vec![
                    (&condition.kind).into(),
                    Field::with_severity(format!("{:?}", condition.status), condition.status),
                    condition.reason.into(),
                    age(condition.since, now).into(),
                    message(condition, conditions).into(),
                ]
            })
            .collect();
        let header = vec!["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"];
        let table = || {
            Table::new(header, Colors::for_stdout())
                .indented(2)
                .draw(rows.clone())
        };
        let table = (!rows.is_empty()).then(table);
        self.table("Conditions", table);
    }

    /// The warnings that no condition contains.
    fn warnings(&mut self, conditions: &[ConditionView], warnings: &[String]) {
        let is_new = |warning: &&String| !conditions.iter().any(|c| c.message.contains(*warning));
        for warning in warnings.iter().filter(is_new) {
            let warning = Colors::for_stdout().paint(Severity::Warning, &one_line(warning));
            self.text.push_str(&format!("Warning: {warning}\n"));
        }
    }

    fn events(&mut self, recent_events: &[Event]) {
        let last_events = &recent_events[recent_events.len().saturating_sub(20)..];
        let drawn = (!last_events.is_empty()).then(|| events::listing(last_events, 2));
        self.table("Events", drawn);
    }
}

/// The message of a condition. What another condition says already is only referred to.
fn message(condition: &ConditionView, conditions: &[ConditionView]) -> String {
    let text = &condition.message;
    let is_repeated = |other: &&ConditionView| {
        let rest = text.strip_prefix(&other.kind);
        let rest = rest.and_then(|rest| rest.strip_prefix(": "));
        other.kind != condition.kind && rest == Some(&other.message)
    };
    match conditions.iter().find(is_repeated) {
        Some(other) => format!("see {}", other.kind),
        None => text.clone(),
    }
}

fn on_off(flag: bool) -> &'static str {
    match flag {
        true => "on",
        false => "off",
    }
}

fn some(items: &[impl ToString]) -> Option<String> {
    (!items.is_empty()).then(|| list(items))
}

fn list(items: &[impl ToString]) -> String {
    match items {
        [] => "<none>".to_owned(),
        items => {
            let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
            texts.join(", ")
        }
    }
}
