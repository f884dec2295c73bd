//! VMs made on demand: the request for one, and its validation against the group.
//! Out of scope: creating and naming them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cni::{CniOptions, MAX_REQUESTED};
use super::entry_problem::{entry_problem, list_problem};
use super::fleet::FleetVm;
use super::guest_access::Agent;
use super::json_object;
use super::link_name::MAX_TAP_LEN;
use super::meta::Name;
use super::network::NetworkSpec;
use super::policy::Entry;
use super::provision::{MAX_KEYS, MAX_SECRETS, Provision, Script, Userdata};
use super::secret::SecretName;
use super::spec::{Hypervisor, VmSpec};
use super::ssh_key::SshKey;
use super::tag::{MAX_TAGS, PlainTag, TagSet, Tags};

const MIB: u64 = 1 << 20;

/// The settings of one VM that override those of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmOverrides {
    /// Virtual processors, at most the group's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// Memory in bytes, a whole number of MiB, at most the group's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram_bytes: Option<u64>,
    /// Replaces the group's `allow`; an empty list removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<Entry>>,
    /// Replaces the group's `drop`; an empty list removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop: Option<Vec<Entry>>,
    /// Keep the disk when the VM is deleted, even if the group does not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub persistent: bool,
    /// Delete the VM when its guest ends by itself: [`super::life::ExitPolicy`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_on_exit: bool,
    /// Tags of the VM, for selectors.
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub tags: Tags,
    /// Tags of the REST API that are no `KEY=VALUE`; selectors do not match them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plain_tags: Vec<PlainTag>,
    /// What the VM requests from the plugins of its CNI network: [`CniOptions::with_overrides`].
    #[serde(default, skip_serializing_if = "CniOptions::is_default")]
    pub cni: CniOptions,
    /// Replaces the group's userdata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userdata: Option<Script>,
    /// SSH keys in addition to those of the group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<SshKey>,
    /// Replaces the group's secrets; an empty list removes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<SecretName>>,
}

/// The entry of a group for a VM made on demand. The VM exists as long as its group has the entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDemandEntry {
    /// The VM's name.
    pub name: Name,
    /// The settings of the VM.
    #[serde(rename = "ask")]
    pub overrides: VmOverrides,
    /// Set for a VM that a fleet has bound to this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<Box<FleetVm>>,
}

/// What a VM made on demand stores in addition to its spec, so that a daemon that lost its state can adopt it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDemand {
    /// The settings of the VM.
    #[serde(rename = "ask")]
    pub overrides: VmOverrides,
    /// The template of the group from which, together with the settings, its spec was computed.
    pub template: VmSpec,
    /// Set for a VM that a fleet has bound to this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<Box<FleetVm>>,
}

/// The body of a request for a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVm {
    /// The name; `None` for a generated one, `<group>-<five characters>`.
    #[serde(default)]
    pub name: Option<Name>,
    /// See [`VmOverrides::vcpu`].
    #[serde(default)]
    pub vcpu: Option<u32>,
    /// See [`VmOverrides::ram_bytes`].
    #[serde(default)]
    pub ram_bytes: Option<u64>,
    /// See [`VmOverrides::allow`].
    #[serde(default)]
    pub allow: Option<Vec<Entry>>,
    /// See [`VmOverrides::drop`].
    #[serde(default)]
    pub drop: Option<Vec<Entry>>,
    /// See [`VmOverrides::persistent`].
    #[serde(default)]
    pub persistent: bool,
    /// See [`VmOverrides::delete_on_exit`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_on_exit: bool,
    /// See [`VmOverrides::tags`].
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub tags: Tags,
    /// See [`VmOverrides::plain_tags`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plain_tags: Vec<PlainTag>,
    /// The tag `name` is unique among all VMs, and differs from their names: a request that is sent again adds no second VM.
    #[serde(skip)]
    pub unique_name: bool,
    /// See [`VmOverrides::cni`].
    #[serde(default, deserialize_with = "json_object::object")]
    pub cni: CniOptions,
    /// See [`VmOverrides::userdata`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userdata: Option<Script>,
    /// See [`VmOverrides::ssh_keys`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<SshKey>,
    /// See [`VmOverrides::secrets`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<SecretName>>,
}

/// A problem of a request: the field of the group that it conflicts with, and the predicate of a sentence with the VM as subject.
pub type RequestProblem = (&'static str, String);

impl NewVm {
    /// The name and the settings.
    pub fn split(self) -> (Option<Name>, VmOverrides) {
        let Self {
            name,
            vcpu,
            ram_bytes,
            allow,
            drop,
            persistent,
            delete_on_exit,
            tags,
            plain_tags,
            unique_name: _,
            cni,
            userdata,
            ssh_keys,
            secrets,
        } = self;
        let overrides = VmOverrides {
            vcpu,
            ram_bytes,
            allow,
            drop,
            persistent,
            delete_on_exit,
            tags,
            plain_tags,
            cni,
            userdata,
            ssh_keys,
            secrets,
        };
        (name, overrides)
    }
}

impl VmOverrides {
    /// All tags of the VM.
    pub fn tag_set(&self) -> TagSet {
        TagSet {
            tags: self.tags.clone(),
            plain: self.plain_tags.clone(),
        }
    }

    /// The VM's spec: the template of its group with these settings.
    pub fn spec(&self, template: &VmSpec) -> VmSpec {
        let mut spec = template.clone();
        spec.vcpu = self.vcpu.unwrap_or(spec.vcpu);
        spec.ram_bytes = self.ram_bytes.unwrap_or(spec.ram_bytes);
        spec.storage.persistent |= self.persistent;
        self.provision(&mut spec.guest_access.provision);
        match &mut spec.network {
            NetworkSpec::Isolated(isolated) => {
                if let Some(allow) = &self.allow {
                    isolated.policy.allow.clone_from(allow);
                }
                if let Some(drop) = &self.drop {
                    isolated.policy.drop.clone_from(drop);
                }
            }
            NetworkSpec::Cni(cni) => cni.cni = cni.cni.with_overrides(&self.cni),
            NetworkSpec::Bridge(_) => {}
        }
        spec
    }

    fn provision(&self, provision: &mut Provision) {
        if let Some(script) = &self.userdata {
            provision.userdata = match script.as_str().is_empty() {
                true => None,
                false => Some(Userdata::Script(script.clone())),
            };
        }
        for key in &self.ssh_keys {
            let mut known = provision.ssh_keys.iter();
            if !known.any(|known| known.is_same_key(key)) {
                provision.ssh_keys.push(key.clone());
            }
        }
        if let Some(secrets) = &self.secrets {
            provision.secrets.clone_from(secrets);
        }
    }

    /// The VM's own `allow` entries that may allow access to the host itself.
    pub fn host_access_entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let own = self.allow.iter().flatten().copied();
        own.filter(Entry::may_allow_host_access)
    }

    /// The problems of such a VM in a group with this template. Without problems, [`Self::spec`] is a spec that a manifest can
    /// specify.
    pub fn objections(&self, template: &VmSpec) -> Vec<RequestProblem> {
        let mut found = Vec::new();
        match self.vcpu {
            Some(0) => found.push(("vcpu", "requests 0 vcpu, expected at least 1".to_owned())),
            Some(vcpu) if vcpu > template.vcpu => {
                let most = template.vcpu;
                let message = format!("requests {vcpu} vcpu, and the group allows at most {most}");
                found.push(("vcpu", message));
            }
            Some(_) | None => {}
        }
        found.extend(self.ram_problem(template.ram_bytes));
        self.check_lists(&template.network, &mut found);
        self.check_cni_options(&template.network, &mut found);
        self.check_provision(template, &mut found);
        if self.persistent && template.storage.image.is_none() {
            let message = "requests a persistent disk, and the group has no `image`";
            found.push(("image", message.to_owned()));
        }
        if self.delete_on_exit && template.hypervisor == Hypervisor::None {
            let message = "requests its deletion when its guest ends, which has no effect with `hypervisor: none` of its group";
            found.push(("hypervisor", message.to_owned()));
        }
        let tags = self.tags.len() + self.plain_tags.len();
        if tags > MAX_TAGS {
            let message = format!("has {tags} tags, expected at most {MAX_TAGS}");
            found.push(("name", message));
        }
        found
    }

    fn ram_problem(&self, most: u64) -> Option<RequestProblem> {
        let ram = self.ram_bytes?;
        let message = if ram == 0 || !ram.is_multiple_of(MIB) {
            format!("requests {ram} bytes of memory, expected a whole number of MiB")
        } else if ram > most {
            let (ram, most) = (ram / MIB, most / MIB);
            format!("requests {ram} MiB of memory, and the group allows at most {most} MiB")
        } else {
            return None;
        };
        Some(("ram_mb", message))
    }

    fn check_provision(&self, template: &VmSpec, found: &mut Vec<RequestProblem>) {
        let set = [
            ("userdata", self.userdata.is_some()),
            ("ssh_keys", !self.ssh_keys.is_empty()),
            ("secrets", self.secrets.is_some()),
        ];
        let access = &template.guest_access;
        let missing = match (template.hypervisor, access.vsock, access.agent) {
            (Hypervisor::None, ..) => Some("hypervisor: none"),
            (_, false, _) => Some("vsock: false"),
            (_, _, Agent::None) => Some("agent: none"),
            (_, true, Agent::Baked | Agent::Inject) => None,
        };
        if let (Some(missing), Some((field, _))) = (missing, set.iter().find(|(_, set)| *set)) {
            let message =
                format!("sets {field}, which has no effect with `{missing}` of its group");
            found.push((field, message));
            return;
        }
        let mut provision = access.provision.clone();
        self.provision(&mut provision);
        let lists = [
            ("ssh_keys", provision.ssh_keys.len(), MAX_KEYS),
            ("secrets", provision.secrets.len(), MAX_SECRETS),
        ];
        for (field, count, most) in lists {
            if count > most {
                let message = format!("has {count} {field}, expected at most {most}");
                found.push((field, message));
            }
        }
        let secrets = &provision.secrets;
        let mut names = secrets.iter().enumerate();
        if let Some((_, name)) = names.find(|(at, name)| secrets[..*at].contains(name)) {
            found.push(("secrets", format!("has the secret {name} twice")));
        }
    }

    fn check_cni_options(&self, network: &NetworkSpec, found: &mut Vec<RequestProblem>) {
        if self.cni.is_default() {
            return;
        }
        if !matches!(network, NetworkSpec::Cni(_)) {
            let mode = network.mode();
            let message =
                format!("sets CNI options, which need mode: cni (its group is in mode {mode})");
            found.push(("network.mode", message));
            return;
        }
        if let NetworkSpec::Cni(spec) = network {
            let own = &self.cni.port_mappings;
            let mut group_ports = spec.cni.port_mappings.iter();
            let taken = group_ports.find(|port| own.iter().any(|own| own.conflicts_with(port)));
            found.extend(taken.map(|port| {
                let message = format!("has a port mapping that conflicts with {port} of its group");
                ("cni", message)
            }));
        }
        let ips = self.cni.ips.len();
        if ips > MAX_REQUESTED {
            let message = format!("requests {ips} addresses, expected at most {MAX_REQUESTED}");
            found.push(("cni", message));
        }
        for (field, why) in self.cni.objections() {
            found.push(("cni", format!("cannot have cni.{field}: {why}")));
        }
    }

    fn check_lists(&self, network: &NetworkSpec, found: &mut Vec<RequestProblem>) {
        let lists = [("allow", &self.allow), ("drop", &self.drop)];
        let lists = lists.map(|(key, list)| list.as_ref().map(|list| (key, list)));
        for (key, list) in lists.into_iter().flatten() {
            let Some(policy) = network.policy() else {
                let mode = network.mode();
                let message =
                    format!("sets {key}, which needs mode: isolated (its group is in mode {mode})");
                found.push(("network.mode", message));
                continue;
            };
            if let Some(why) = list_problem(list.len()) {
                found.push(("network", format!("has an invalid list {key}: {why}")));
            }
            if key == "allow" {
                for (at, entry) in list.iter().enumerate() {
                    if let Some(why) = entry_problem(entry, policy.allow_metadata) {
                        found.push(("network", format!("cannot have allow[{at}]: {why}")));
                    }
                }
            }
        }
    }
}

impl OnDemandEntry {
    /// The problems of this VM with this index in a group with this template.
    pub fn objections(&self, index: u32, template: &VmSpec) -> Vec<RequestProblem> {
        let mut found = self.overrides.objections(template);
        if let NetworkSpec::Bridge(bridge) = &template.network {
            let tap = bridge.tap(index);
            if tap.len() > MAX_TAP_LEN {
                let message = format!(
                    "would have the TAP \"{tap}\" with {} characters, expected at most {MAX_TAP_LEN}; use a shorter `tap_prefix`",
                    tap.len()
                );
                found.push(("network.tap_prefix", message));
            }
        }
        found
    }
}
