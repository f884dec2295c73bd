//! The settings of a VM that a request creates.
//! Out of scope: secrets that the request does not name; limits of the group, which the daemon checks when it stores the VM.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::errors::{Rejection, invalid};
use crate::api::json_object;
use crate::api::meta::Name;
use crate::api::network::NetworkSpec;
use crate::api::on_demand::NewVm;
use crate::api::policy::Entry;
use crate::api::tag::TagSet;
use crate::api::vm::{Hypervisor, VmSpec};

/// The settings of a new VM, all optional. Unknown fields are ignored: clients of several versions send them.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub(super) struct CreateBody {
    /// CPUs, at most those of the group; 0 is the default.
    cpus: Option<u32>,
    /// Memory in bytes, at most that of the group; 0 is the default.
    ram_bytes: Option<u64>,
    /// GPUs: there are none.
    gpu_count: Option<u32>,
    /// Keep the disk when the VM is deleted, and the VM when its guest powers off.
    persistent: Option<bool>,
    /// A script that runs once as root at the first boot.
    userdata: Option<String>,
    /// Public keys of the guest's users.
    ssh_keys: Option<Vec<String>>,
    /// Not supported.
    import_user: Option<String>,
    /// Not supported.
    github_user: Option<String>,
    /// Tags; `name=LABEL` is a name that no other VM has.
    tags: Option<Vec<String>>,
    /// The secrets that the guest may have; absent: those of the group, or all if it names none; `[]`: none.
    secrets: Option<Vec<String>>,
    /// Lists that replace those of the group; isolated groups only.
    #[serde(deserialize_with = "json_object::optional")]
    network: Option<NetworkBody>,
    /// A fixed address; groups in CNI mode only.
    ip: Option<String>,
    /// The name of the VM; absent: one is generated.
    hostname: Option<String>,
    /// Not supported.
    disk_image: Option<String>,
    /// Not supported.
    pci_devices: Option<Vec<String>>,
}

/// Lists of a VM: an absent one is inherited, an empty one is empty.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub(super) struct NetworkBody {
    /// What the guest may reach.
    allow: Option<Vec<String>>,
    /// What it may not reach.
    drop: Option<Vec<String>>,
}

impl CreateBody {
    /// The request to the daemon.
    pub(super) fn request(self, template: &VmSpec) -> Result<NewVm, Rejection> {
        self.check_unsupported()?;
        let set = TagSet::of(&self.tags.unwrap_or_default());
        let set = set.map_err(|error| invalid(format!("invalid tags: {error}")))?;
        let hostname = self.hostname.filter(|text| !text.is_empty());
        let hostname = hostname.map(|text| parsed::<Name>("hostname", &text));
        let network = self.network.unwrap_or_default();
        let script = self.userdata.filter(|script| !script.is_empty());
        let persistent = self.persistent == Some(true);
        let is_kept = persistent || template.storage.persistent;
        let mut request = NewVm {
            name: hostname.transpose()?,
            vcpu: self.cpus.filter(|count| *count > 0),
            ram_bytes: self.ram_bytes.filter(|bytes| *bytes > 0),
            allow: entries("network.allow", network.allow)?,
            drop: entries("network.drop", network.drop)?,
            // Without a disk there is nothing to keep: clients send it by default.
            persistent: persistent && template.storage.image.is_some(),
            delete_on_exit: !is_kept && template.hypervisor != Hypervisor::None,
            tags: set.tags,
            plain_tags: set.plain,
            unique_name: true,
            userdata: script
                .map(|script| parsed("userdata", &script))
                .transpose()?,
            ssh_keys: list("ssh_keys", self.ssh_keys.unwrap_or_default())?,
            secrets: self
                .secrets
                .map(|names| list("secrets", names))
                .transpose()?,
            ..NewVm::default()
        };
        if let Some(ip) = self.ip.filter(|ip| !ip.is_empty()) {
            if !matches!(template.network, NetworkSpec::Cni(_)) {
                let mode = template.network.mode();
                return Err(invalid(format!(
                    "cannot choose ip: the group assigns addresses in mode {mode}"
                )));
            }
            request.cni.ips.push(parsed("ip", &ip)?);
        }
        Ok(request)
    }

    fn check_unsupported(&self) -> Result<(), Rejection> {
        let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let has_devices = self
            .pci_devices
            .as_ref()
            .is_some_and(|list| !list.is_empty());
        let unsupported = [
            (
                "gpu_count",
                self.gpu_count.unwrap_or_default() > 0,
                "VMs have no GPUs",
            ),
            (
                "pci_devices",
                has_devices,
                "VMs have no PCI devices of the host",
            ),
            ("import_user", is_set(&self.import_user), "send ssh_keys"),
            ("github_user", is_set(&self.github_user), "send ssh_keys"),
            (
                "disk_image",
                is_set(&self.disk_image),
                "the group has an image",
            ),
        ];
        match unsupported.iter().find(|(_, is_set, _)| *is_set) {
            Some((field, _, why)) => Err(invalid(format!("{field} is not supported: {why}"))),
            None => Ok(()),
        }
    }
}

fn entries(field: &str, texts: Option<Vec<String>>) -> Result<Option<Vec<Entry>>, Rejection> {
    texts.map(|texts| list(field, texts)).transpose()
}

fn list<T>(field: &str, texts: Vec<String>) -> Result<Vec<T>, Rejection>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    texts.iter().map(|text| parsed(field, text)).collect()
}

fn parsed<T>(field: &str, text: &str) -> Result<T, Rejection>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|error: T::Err| {
        let text = format!("invalid {field}: {error}");
        invalid(crate::api::plain_text::line(&text, 300).into_owned())
    })
}
