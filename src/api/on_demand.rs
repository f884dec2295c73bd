//! VMs made on demand: what a person asks of one, and what its group has to say to that.
//! Out of scope: making them, giving them names.

use serde::{Deserialize, Serialize};

use super::cni::{CniOptions, MAX_ASKED};
use super::link_name::LONGEST_TAP;
use super::manifest::{entry_objection, list_objection};
use super::meta::Name;
use super::network::NetworkSpec;
use super::policy::Entry;
use super::tag::{MAX_TAGS, Tags};
use super::vm::VmSpec;

const MIB: u64 = 1 << 20;

/// What is asked of one VM. What is not specified is the group's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Virtual processors, at most the group's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// Memory in bytes, a whole number of MiB, at most the group's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram_bytes: Option<u64>,
    /// In place of the group's list; an empty one is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<Entry>>,
    /// In place of the group's list; an empty one is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop: Option<Vec<Entry>>,
    /// Its disk outlives it, even if those of the group do not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub persistent: bool,
    /// To find it again.
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    /// What the VM requests from the plugins of its CNI network: [`CniOptions::of_one`].
    #[serde(default, skip_serializing_if = "CniOptions::is_default")]
    pub cni: CniOptions,
}

/// As long as it stands in its group, there is to be such a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The VM's name.
    pub name: Name,
    /// What it is to be.
    pub ask: Ask,
}

/// What a VM made on demand knows beside its spec: enough to be adopted by a daemon that has lost its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDemand {
    /// What was asked.
    pub ask: Ask,
    /// What its group's VMs were to be when its spec was made of both.
    pub template: VmSpec,
}

/// The body of a request for a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVm {
    /// None: one is made up, `<group>-<five characters>`.
    #[serde(default)]
    pub name: Option<Name>,
    /// See [`Ask::vcpu`].
    #[serde(default)]
    pub vcpu: Option<u32>,
    /// See [`Ask::ram_bytes`].
    #[serde(default)]
    pub ram_bytes: Option<u64>,
    /// See [`Ask::allow`].
    #[serde(default)]
    pub allow: Option<Vec<Entry>>,
    /// See [`Ask::drop`].
    #[serde(default)]
    pub drop: Option<Vec<Entry>>,
    /// See [`Ask::persistent`].
    #[serde(default)]
    pub persistent: bool,
    /// See [`Ask::tags`].
    #[serde(default)]
    pub tags: Tags,
    /// See [`Ask::cni`].
    #[serde(default)]
    pub cni: CniOptions,
}

/// What speaks against an ask: the field of the group it is at odds with, and the rest of a sentence that begins with the VM.
pub type Objection = (&'static str, String);

impl NewVm {
    /// The name, and what is asked.
    pub fn split(self) -> (Option<Name>, Ask) {
        let Self {
            name,
            vcpu,
            ram_bytes,
            allow,
            drop,
            persistent,
            tags,
            cni,
        } = self;
        let ask = Ask {
            vcpu,
            ram_bytes,
            allow,
            drop,
            persistent,
            tags,
            cni,
        };
        (name, ask)
    }
}

impl Ask {
    /// The VM's spec, out of its group's.
    pub fn spec(&self, template: &VmSpec) -> VmSpec {
        let mut spec = template.clone();
        spec.vcpu = self.vcpu.unwrap_or(spec.vcpu);
        spec.ram_bytes = self.ram_bytes.unwrap_or(spec.ram_bytes);
        spec.storage.persistent |= self.persistent;
        match &mut spec.network {
            NetworkSpec::Isolated(isolated) => {
                if let Some(allow) = &self.allow {
                    isolated.policy.allow.clone_from(allow);
                }
                if let Some(drop) = &self.drop {
                    isolated.policy.drop.clone_from(drop);
                }
            }
            NetworkSpec::Cni(cni) => cni.cni = cni.cni.of_one(&self.cni),
            NetworkSpec::Bridge(_) => {}
        }
        spec
    }

    /// `allow` entries of its own that may name the host itself.
    pub fn host_openings(&self) -> impl Iterator<Item = Entry> + '_ {
        let own = self.allow.iter().flatten().copied();
        own.filter(Entry::may_open_the_host)
    }

    /// All that speaks against such a VM in a group with this template. Nothing: [`Ask::spec`] is one that a manifest could
    /// have written.
    pub fn objections(&self, template: &VmSpec) -> Vec<Objection> {
        let mut found = Vec::new();
        match self.vcpu {
            Some(0) => found.push(("vcpu", "asks for 0 vcpu, expected 1 at least".to_owned())),
            Some(vcpu) if vcpu > template.vcpu => {
                let most = template.vcpu;
                let message = format!("asks for {vcpu} vcpu, and the group allows {most} at most");
                found.push(("vcpu", message));
            }
            Some(_) | None => {}
        }
        found.extend(self.ram_objection(template.ram_bytes));
        self.object_to_lists(&template.network, &mut found);
        self.object_to_options(&template.network, &mut found);
        if self.persistent && template.storage.image.is_none() {
            let message = "is to keep its disk, and the group has no `image` to make one from";
            found.push(("persistent", message.to_owned()));
        }
        if self.tags.len() > MAX_TAGS {
            let message = format!("has {} tags, expected at most {MAX_TAGS}", self.tags.len());
            found.push(("name", message));
        }
        found
    }

    fn ram_objection(&self, most: u64) -> Option<Objection> {
        let ram = self.ram_bytes?;
        let message = if ram == 0 || !ram.is_multiple_of(MIB) {
            format!("asks for {ram} bytes of memory, expected a whole number of MiB")
        } else if ram > most {
            let (ram, most) = (ram / MIB, most / MIB);
            format!("asks for {ram} MiB of memory, and the group allows {most} MiB at most")
        } else {
            return None;
        };
        Some(("ram_mb", message))
    }

    fn object_to_options(&self, network: &NetworkSpec, found: &mut Vec<Objection>) {
        if self.cni.is_default() {
            return;
        }
        if !matches!(network, NetworkSpec::Cni(_)) {
            let mode = network.mode();
            let message = format!(
                "sets CNI options, which apply in CNI mode only: the group is in mode {mode}"
            );
            found.push(("network.mode", message));
            return;
        }
        if let NetworkSpec::Cni(spec) = network {
            let own = &self.cni.port_mappings;
            let mut of_group = spec.cni.port_mappings.iter();
            let taken = of_group.find(|port| own.iter().any(|own| own.is_the_port_of(port)));
            found.extend(taken.map(|port| {
                let message = format!("has a port mapping that conflicts with {port} of its group");
                ("cni", message)
            }));
        }
        let ips = self.cni.ips.len();
        if ips > MAX_ASKED {
            let message = format!("cannot have {ips} addresses, {MAX_ASKED} is the most");
            found.push(("cni", message));
        }
        for (field, why) in self.cni.objections() {
            found.push(("cni", format!("cannot have cni.{field}: {why}")));
        }
    }

    fn object_to_lists(&self, network: &NetworkSpec, found: &mut Vec<Objection>) {
        let lists = [("allow", &self.allow), ("drop", &self.drop)];
        let lists = lists.map(|(key, list)| list.as_ref().map(|list| (key, list)));
        for (key, list) in lists.into_iter().flatten() {
            let Some(policy) = network.policy() else {
                let mode = network.mode();
                let message = format!(
                    "has {key} of its own, and only isolated mode has lists of destinations: the group is in mode {mode}"
                );
                found.push(("network.mode", message));
                continue;
            };
            if let Some(why) = list_objection(list.len()) {
                found.push(("network", format!("has too long a list, {key}: {why}")));
            }
            if key == "allow" {
                for (at, entry) in list.iter().enumerate() {
                    if let Some(why) = entry_objection(entry, policy.allow_metadata) {
                        found.push(("network", format!("cannot have allow[{at}]: {why}")));
                    }
                }
            }
        }
    }
}

impl Order {
    /// All that speaks against this VM, in this place of a group with this template.
    pub fn objections(&self, index: u32, template: &VmSpec) -> Vec<Objection> {
        let mut found = self.ask.objections(template);
        if let NetworkSpec::Bridge(bridge) = &template.network {
            let tap = bridge.tap(index);
            if tap.len() > LONGEST_TAP {
                let message = format!(
                    "would have the TAP \"{tap}\", {} characters; a TAP's name has at most {LONGEST_TAP}: a shorter `tap_prefix` helps",
                    tap.len()
                );
                found.push(("network.tap_prefix", message));
            }
        }
        found
    }
}
