//! Whether a node takes a VM that is bound to it.
//! Out of scope: how much VMs that are not of the fleet use (the caller subtracts it).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Input, LocalVm, Run};
use crate::api::allowed::files_of;
use crate::api::guest_access::Agent;
use crate::api::host_group::HostGroup;
use crate::api::manifest::Draft;
use crate::api::meta::Name;
use crate::api::network::{CniSpec, NetworkSpec};
use crate::api::placement::{addresses_in, most_on_a_node};
use crate::api::secret::SecretName;
use crate::api::storage::Bytes;
use crate::api::validate;
use crate::api::vm::{Hypervisor, VmSpec};
use crate::fleet::contact::LOST_AFTER;
use crate::fleet::object::{Group, Resources, Vm};

/// What a node has for VMs of the fleet.
#[derive(Clone, Debug, Default)]
pub struct Available {
    /// What is not used by any VM.
    pub free: Resources,
    /// The VMMs that the node can start.
    pub hypervisors: Vec<Hypervisor>,
    /// The files that were looked for, with their size in bytes, which is 0 for a block device, or with the reason why this node does not
    /// use them, a sentence. A group that is new may name others.
    pub files: BTreeMap<PathBuf, Result<u64, String>>,
    /// The names of local groups that are not of the fleet.
    pub groups: BTreeSet<Name>,
    /// The groups on this node, those of the fleet included.
    pub host_groups: Vec<HostGroup>,
    /// The conflicts of groups of the fleet with them, as far as they were looked for.
    pub conflicts: BTreeMap<Name, Option<String>>,
    /// The number of VMs that were admitted, by group.
    pub admitted: BTreeMap<Name, u64>,
    /// The names of local VMs that are not of the fleet.
    pub vms: BTreeSet<Name>,
    /// The secrets that the node has.
    pub secrets: BTreeSet<SecretName>,
    /// The CNI networks that are configured, with all of their plugins.
    pub networks: BTreeSet<String>,
    /// Why it cannot start VMs with `agent: inject`, a sentence.
    pub no_agent: Option<String>,
    /// The programs, files and amounts were read once since the daemon was started. Before, nothing is refused for their absence.
    pub is_known: bool,
}

/// The decision.
pub(super) enum Admission {
    /// It is added.
    Admitted,
    /// It is added later: something is being deleted.
    Waits(String),
    /// It is refused, with a sentence.
    Refused(String),
}

impl Available {
    /// Whether the VM is taken; if so, what it uses is no longer free.
    pub(super) fn admit(&mut self, input: &Input<'_>, vm: &Vm, group: &Group) -> Admission {
        if let Some(decision) = self.name_conflict(input, vm) {
            return decision;
        }
        if !self.is_known {
            let message = "this node has not read yet what it has for VMs";
            return Admission::Waits(message.to_owned());
        }
        let spec = &group.spec.template;
        let mut files = files_of(spec).map(|(_, path)| path);
        if let Some(file) = files.find(|file| !self.files.contains_key(file)) {
            let message = format!("this node has not looked for {} yet", file.display());
            return Admission::Waits(message);
        }
        let needs = self.needs(spec);
        let problem = self
            .stop_problem(input, group)
            .or_else(|| self.program_problem(spec))
            .or_else(|| self.file_problem(spec))
            .or_else(|| self.secret_problem(spec))
            .or_else(|| self.agent_problem(spec))
            .or_else(|| self.network_problem(spec))
            .or_else(|| self.conflict(input, group))
            .or_else(|| self.address_shortage(input, group))
            .or_else(|| self.shortage(&needs));
        if let Some(reason) = problem {
            return Admission::Refused(reason);
        }
        self.take(&needs);
        *self.admitted.entry(group.meta.name.clone()).or_default() += 1;
        Admission::Admitted
    }

    fn name_conflict(&self, input: &Input<'_>, vm: &Vm) -> Option<Admission> {
        let (name, group) = (&vm.meta.name, &vm.group);
        if self.groups.contains(group) {
            let reason = format!("group {group} exists on this node and is not of the fleet");
            return Some(Admission::Refused(reason));
        }
        if self.vms.contains(name) {
            let reason = format!("VM {name} exists on this node and is not of the fleet");
            return Some(Admission::Refused(reason));
        }
        let conflicts = |local: &&LocalVm| {
            local.name == *name || local.group == *group && local.group_uid != vm.group_uid
        };
        let other = input.local.values().find(conflicts)?;
        let text = format!("VM {} with the uid {}", other.name, other.uid);
        let is_leaving = other.run == Run::Deleting || will_be_removed(input, other);
        Some(match is_leaving {
            true => Admission::Waits(format!("it waits for the deletion of {text}")),
            false => Admission::Refused(format!("{text} exists on this node with the same name")),
        })
    }

    /// The network of the group conflicts with that of another group on this node. The check is that of a manifest on one host.
    fn conflict(&mut self, input: &Input<'_>, group: &Group) -> Option<String> {
        let name = &group.meta.name;
        if let Some(known) = self.conflicts.get(name) {
            return known.clone();
        }
        let draft = Draft::without_source(name.clone(), super::groups::copy(input, group));
        let found = validate::copy_conflict(&self.host_groups, &draft);
        let found = found.map(|found| format!("group {name} cannot be on this node: {found}"));
        self.conflicts.insert(name.clone(), found.clone());
        found
    }

    fn needs(&self, spec: &VmSpec) -> Resources {
        Resources::of(spec, |image| image_size(&self.files, image))
    }

    fn program_problem(&self, spec: &VmSpec) -> Option<String> {
        let vmm = spec.hypervisor;
        let is_named = spec.lifecycle.program.is_some();
        let is_missing = vmm != Hypervisor::None && !is_named && !self.hypervisors.contains(&vmm);
        is_missing.then(|| format!("this node cannot start {vmm}"))
    }

    fn file_problem(&self, spec: &VmSpec) -> Option<String> {
        let mut found = files_of(spec).filter_map(|(_, path)| self.files.get(&path));
        found.find_map(|found| found.clone().err())
    }

    /// Secrets are not in etcd: each node has its own.
    fn secret_problem(&self, spec: &VmSpec) -> Option<String> {
        let mut named = spec.guest_access.provision.secrets.iter();
        let missing = named.find(|name| !self.secrets.contains(*name))?;
        Some(format!(
            "this node has no secret {missing}: `slicectl secret create` on this node"
        ))
    }

    fn network_problem(&self, spec: &VmSpec) -> Option<String> {
        let NetworkSpec::Cni(CniSpec { network_name, .. }) = &spec.network else {
            return None;
        };
        let is_missing = !self.networks.contains(network_name);
        is_missing
            .then(|| format!("this node has no CNI network {network_name} with all of its plugins"))
    }

    fn agent_problem(&self, spec: &VmSpec) -> Option<String> {
        match spec.guest_access.agent {
            Agent::Inject => self.no_agent.clone(),
            Agent::Baked | Agent::None => None,
        }
    }

    /// The network of the group on this node has an address for each of its VMs.
    fn address_shortage(&self, input: &Input<'_>, group: &Group) -> Option<String> {
        let (name, network) = (&group.meta.name, &group.spec.template.network);
        let subnet = super::groups::subnet(input, group);
        let most = match subnet {
            Some(subnet) => addresses_in(subnet.subnet.prefix()),
            None => most_on_a_node(network, &group.placement)?,
        };
        let local = input.local.values().filter(|local| local.group == *name);
        let used = local.count() as u64 + self.admitted.get(name).unwrap_or(&0);
        (used >= most).then(|| {
            format!("the network of group {name} on this node has addresses for {most} VMs")
        })
    }

    fn shortage(&self, needs: &Resources) -> Option<String> {
        let free = &self.free;
        let amounts = [
            ("vCPUs", needs.vcpus, free.vcpus),
            ("networks in isolated mode", needs.isolated, free.isolated),
            ("bridge ports", needs.bridge_ports, free.bridge_ports),
        ];
        let bytes = [
            ("memory", needs.ram_bytes, free.ram_bytes),
            ("disk space", needs.disk_bytes, free.disk_bytes),
        ];
        let mut sentences = amounts
            .into_iter()
            .filter(|(_, needed, free)| needed > free)
            .map(|(what, needed, free)| format!("it needs {needed} {what}, and {free} are free"))
            .chain(
                bytes
                    .into_iter()
                    .filter(|(_, needed, free)| needed > free)
                    .map(|(what, needed, free)| {
                        format!(
                            "it needs {} of {what}, and {} are free",
                            Bytes(needed),
                            Bytes(free)
                        )
                    }),
            );
        sentences.next()
    }

    /// A VM that may be replaced must be one that this node stops in time.
    fn stop_problem(&self, input: &Input<'_>, group: &Group) -> Option<String> {
        let after = group.replacement?.stop_after;
        let (after, least) = (after.as_secs(), LOST_AFTER.as_secs());
        if group.spec.template.hypervisor == Hypervisor::None {
            return Some(
                "it may be replaced, and has `hypervisor: none`: this node cannot stop its VMM"
                    .to_owned(),
            );
        }
        if !input.guard.runs {
            return Some(
                "it may be replaced, and no guard runs on this node: start sliced-fence.service"
                    .to_owned(),
            );
        }
        (after < least).then(|| format!("stop_after is {after} s, expected at least {least} s"))
    }

    fn take(&mut self, needs: &Resources) {
        let free = &mut self.free;
        free.vcpus -= needs.vcpus;
        free.ram_bytes -= needs.ram_bytes;
        free.disk_bytes -= needs.disk_bytes;
        free.isolated -= needs.isolated;
        free.bridge_ports -= needs.bridge_ports;
    }
}

/// The size of an image in bytes; 0 if it is unknown.
pub fn image_size(files: &BTreeMap<PathBuf, Result<u64, String>>, image: &Path) -> u64 {
    let found = files.get(image).and_then(|found| found.as_ref().ok());
    found.copied().unwrap_or(0)
}

/// Plans are made in the order of uids: the step may follow later.
fn will_be_removed(input: &Input<'_>, local: &LocalVm) -> bool {
    let object = input.objects.vms.get(&local.uid);
    let object = object.and_then(|object| object.as_ref().ok());
    object.is_some_and(|object| super::decision::is_removed(input, object, local))
}
