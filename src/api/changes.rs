//! The fields in which two specs of a group differ, named by the keys of the manifest.
//! Out of scope: which VMs a change replaces; the kernel objects that it changes.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cni::CniOptions;
use super::guest_access::GuestAccess;
use super::host_group::{HostGroupSpec, UpdatePolicy};
use super::life::{Lifecycle, MachineType};
use super::network::{Addresses, BridgeSpec, CniSpec, IsolatedSpec, NetworkSpec};
use super::policy::Policy;
use super::provision::{Provision, Userdata};
use super::spec::{Hypervisor, VmSpec};
use super::ssh_key::SshKey;
use super::storage::{AdditionalDisk, Storage};

mod placement;

pub use placement::placement_changes;

const MIB: u64 = 1 << 20;

/// What a change of a field does to running VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// It is applied while they run. (A VM whose address is no longer allowed is replaced nevertheless.)
    Live,
    /// They are replaced.
    Replaces,
}

/// A changed field, or a changed entry of a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct FieldChange {
    /// The key in the manifest; with a prefix for the section `cni`, such as `cni.ips`.
    pub field: String,
    /// The previous value; `None` for an added entry or a value that was not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The new value; `None` for a removed entry or a value that is no longer set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What it does to running VMs.
    pub effect: Effect,
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = &self.field;
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => write!(f, "{field}: {from} -> {to}"),
            (None, Some(to)) => write!(f, "{field}: {to} added"),
            (Some(from), None) => write!(f, "{field}: {from} removed"),
            (None, None) => write!(f, "{field}: changed"),
        }
    }
}

/// The changed fields, in the order of the reference of manifests. Empty only if both specs are equal.
pub fn changes(old: &HostGroupSpec, new: &HostGroupSpec) -> Vec<FieldChange> {
    let HostGroupSpec {
        count,
        update,
        template,
    } = old;
    let mut found = Changes::default();
    found.value(Effect::Live, "count", count, &new.count);
    let update_policy = |update: UpdatePolicy| match update {
        UpdatePolicy::Rolling => "rolling",
        UpdatePolicy::OnDelete => "on-delete",
    };
    let (before, after) = (update_policy(*update), update_policy(new.update));
    found.value(Effect::Live, "update", &before, &after);
    found.vm(template, &new.template);
    found.0
}

/// The changes that were found so far.
#[derive(Default)]
struct Changes(Vec<FieldChange>);

impl Changes {
    fn push(&mut self, effect: Effect, field: &str, from: Option<String>, to: Option<String>) {
        let field = field.to_owned();
        self.0.push(FieldChange {
            field,
            from,
            to,
            effect,
        });
    }

    fn value<T: PartialEq + ToString>(&mut self, effect: Effect, field: &str, old: &T, new: &T) {
        if old != new {
            self.push(effect, field, Some(old.to_string()), Some(new.to_string()));
        }
    }

    fn option<T: PartialEq + ToString>(
        &mut self,
        effect: Effect,
        field: &str,
        old: Option<&T>,
        new: Option<&T>,
    ) {
        if old != new {
            let text = |value: Option<&T>| value.map(ToString::to_string);
            self.push(effect, field, text(old), text(new));
        }
    }

    fn path(&mut self, field: &str, old: Option<&PathBuf>, new: Option<&PathBuf>) {
        let text = |path: Option<&PathBuf>| path.map(|path| path.display().to_string());
        if old != new {
            self.push(Effect::Replaces, field, text(old), text(new));
        }
    }

    /// Removed and added entries; both lists if only the order changed.
    fn list<T: PartialEq + ToString>(&mut self, effect: Effect, field: &str, old: &[T], new: &[T]) {
        if old == new {
            return;
        }
        let (removed, added) = (missing_in(new, old), missing_in(old, new));
        if removed.is_empty() && added.is_empty() {
            return self.push(
                effect,
                field,
                Some(comma_separated(old)),
                Some(comma_separated(new)),
            );
        }
        for entry in removed {
            self.push(effect, field, Some(entry.to_string()), None);
        }
        for entry in added {
            self.push(effect, field, None, Some(entry.to_string()));
        }
    }

    fn vm(&mut self, old: &VmSpec, new: &VmSpec) {
        let VmSpec {
            hypervisor,
            vcpu,
            ram_bytes,
            kernel_file,
            initrd_file,
            dns_servers,
            storage,
            lifecycle,
            guest_access,
            network,
        } = old;
        use Effect::Replaces;
        self.value(Replaces, "vcpu", vcpu, &new.vcpu);
        let (field, unit) = match (ram_bytes | new.ram_bytes) & (MIB - 1) {
            0 => ("ram_mb", MIB),
            _ => ("ram_bytes", 1),
        };
        self.value(
            Replaces,
            field,
            &(ram_bytes / unit),
            &(new.ram_bytes / unit),
        );
        self.list(Replaces, "dns_servers", dns_servers, &new.dns_servers);
        self.value(Replaces, "hypervisor", hypervisor, &new.hypervisor);
        let (kernel, initrd) = (new.kernel_file.as_ref(), new.initrd_file.as_ref());
        self.path("kernel_file", kernel_file.as_ref(), kernel);
        self.path("initrd_file", initrd_file.as_ref(), initrd);
        let programs = (*hypervisor, new.hypervisor);
        self.lifecycle(programs, lifecycle, &new.lifecycle);
        self.storage(storage, &new.storage);
        self.guest_access(guest_access, &new.guest_access);
        self.network(network, &new.network);
    }

    fn lifecycle(
        &mut self,
        hypervisors: (Hypervisor, Hypervisor),
        old: &Lifecycle,
        new: &Lifecycle,
    ) {
        let Lifecycle {
            program,
            jailer,
            cmdline,
            machine,
            restart,
            graceful_shutdown,
        } = old;
        use Effect::{Live, Replaces};
        let (before, after) = (program_key(hypervisors.0), program_key(hypervisors.1));
        match before == after {
            true => self.path(before, program.as_ref(), new.program.as_ref()),
            false => {
                self.path(before, program.as_ref(), None);
                self.path(after, None, new.program.as_ref());
            }
        }
        self.path("jailer_bin", jailer.as_ref(), new.jailer.as_ref());
        let cmdline_after = new.cmdline.as_ref();
        self.option(Replaces, "cmdline", cmdline.as_ref(), cmdline_after);
        let machine_name = |machine| match machine {
            MachineType::Microvm => "microvm",
            MachineType::Q35 => "q35",
        };
        let (before, after) = (machine_name(*machine), machine_name(new.machine));
        self.value(Replaces, "machine", &before, &after);
        self.value(Live, "restart", restart, &new.restart);
        let grace = &new.graceful_shutdown;
        self.value(Live, "graceful_shutdown", graceful_shutdown, grace);
    }

    fn guest_access(&mut self, old: &GuestAccess, new: &GuestAccess) {
        let GuestAccess {
            vsock,
            agent,
            provision,
        } = old;
        use Effect::{Live, Replaces};
        self.value(Replaces, "vsock", vsock, &new.vsock);
        self.value(Replaces, "agent", agent, &new.agent);
        let Provision {
            userdata,
            ssh_keys,
            secrets,
        } = provision;
        let new = &new.provision;
        self.userdata(userdata.as_ref(), new.userdata.as_ref());
        let keys = |keys: &[SshKey]| keys.iter().map(SshKey::short).collect();
        let (before, after): (Vec<String>, Vec<String>) = (keys(ssh_keys), keys(&new.ssh_keys));
        match before == after && *ssh_keys != new.ssh_keys {
            // Keys with the same comments.
            true => self.push(Live, "ssh_keys", None, None),
            false => self.list(Live, "ssh_keys", &before, &after),
        }
        self.list(Live, "secrets", secrets, &new.secrets);
    }

    /// A script is too long for a line.
    fn userdata(&mut self, old: Option<&Userdata>, new: Option<&Userdata>) {
        let script = |userdata: Option<&Userdata>| match userdata {
            Some(Userdata::Script(script)) => Some(script.clone()),
            Some(Userdata::File(_)) | None => None,
        };
        let file = |userdata: Option<&Userdata>| match userdata {
            Some(Userdata::File(path)) => Some(path.clone()),
            Some(Userdata::Script(_)) | None => None,
        };
        if script(old) != script(new) {
            self.push(Effect::Replaces, "userdata", None, None);
        }
        self.path("userdata_file", file(old).as_ref(), file(new).as_ref());
    }

    fn storage(&mut self, old: &Storage, new: &Storage) {
        let Storage {
            image,
            size_bytes,
            persistent,
            disks,
        } = old;
        use Effect::Replaces;
        self.path("image", image.as_ref(), new.image.as_ref());
        let (before, after) = (size_bytes.map(size), new.size_bytes.map(size));
        self.option(Replaces, "storage_size", before.as_ref(), after.as_ref());
        self.value(Replaces, "persistent", persistent, &new.persistent);
        let text = |disks: &[AdditionalDisk]| disks.iter().map(disk).collect::<Vec<_>>();
        self.list(Replaces, "disks", &text(disks), &text(&new.disks));
    }

    fn network(&mut self, old: &NetworkSpec, new: &NetworkSpec) {
        match (old, new) {
            (NetworkSpec::Isolated(old), NetworkSpec::Isolated(new)) => self.isolated(old, new),
            (NetworkSpec::Bridge(old), NetworkSpec::Bridge(new)) => self.bridge(old, new),
            (NetworkSpec::Cni(old), NetworkSpec::Cni(new)) => self.cni(old, new),
            // The fields of different modes have different meanings, even those of the same name.
            (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_) | NetworkSpec::Cni(_), _) => {
                self.value(Effect::Replaces, "mode", &old.mode(), &new.mode());
            }
        }
    }

    fn isolated(&mut self, old: &IsolatedSpec, new: &IsolatedSpec) {
        let IsolatedSpec {
            range,
            max_connections,
            policy,
            tap_owner,
        } = old;
        use Effect::{Live, Replaces};
        self.option(Replaces, "range", range.as_ref(), new.range.as_ref());
        let Policy {
            allow,
            drop,
            on_deny,
            allow_metadata,
        } = policy;
        self.list(Live, "allow", allow, &new.policy.allow);
        self.list(Live, "drop", drop, &new.policy.drop);
        self.value(Live, "on_deny", on_deny, &new.policy.on_deny);
        let metadata = &new.policy.allow_metadata;
        self.value(Live, "allow_metadata", allow_metadata, metadata);
        self.max_connections(*max_connections, new.max_connections);
        self.value(Replaces, "tap_owner", tap_owner, &new.tap_owner);
    }

    fn max_connections(&mut self, old: Option<u32>, new: Option<u32>) {
        let field = "max_connections";
        self.option(Effect::Live, field, old.as_ref(), new.as_ref());
    }

    fn bridge(&mut self, old: &BridgeSpec, new: &BridgeSpec) {
        let BridgeSpec {
            bridge,
            tap_prefix,
            gateway,
            addresses,
            antispoof,
            isolate_ports,
            max_connections,
            tap_owner,
        } = old;
        use Effect::{Live, Replaces};
        self.value(Replaces, "bridge", bridge, &new.bridge);
        self.value(Replaces, "tap_prefix", tap_prefix, &new.tap_prefix);
        self.option(Replaces, "gateway", gateway.as_ref(), new.gateway.as_ref());
        self.addresses(addresses, &new.addresses);
        self.value(Live, "antispoof", antispoof, &new.antispoof);
        self.value(Live, "isolate_ports", isolate_ports, &new.isolate_ports);
        self.max_connections(*max_connections, new.max_connections);
        self.value(Replaces, "tap_owner", tap_owner, &new.tap_owner);
    }

    fn addresses(&mut self, old: &Addresses, new: &Addresses) {
        let range = |addresses: &Addresses| match addresses {
            Addresses::Range(first, last) => Some(format!("{first}-{last}")),
            Addresses::Any | Addresses::Listed(_) => None,
        };
        let listed = |addresses: &Addresses| match addresses {
            Addresses::Listed(listed) => Some(format!("[{}]", comma_separated(listed))),
            Addresses::Any | Addresses::Range(..) => None,
        };
        match (old, new) {
            (Addresses::Listed(old), Addresses::Listed(new)) => {
                self.list(Effect::Live, "addresses", old, new);
            }
            (Addresses::Any | Addresses::Range(..) | Addresses::Listed(_), _) => {
                let (before, after) = (range(old), range(new));
                self.option(Effect::Live, "range", before.as_ref(), after.as_ref());
                let (before, after) = (listed(old), listed(new));
                self.option(Effect::Live, "addresses", before.as_ref(), after.as_ref());
            }
        }
    }

    fn cni(&mut self, old: &CniSpec, new: &CniSpec) {
        let CniSpec {
            network_name,
            tap_owner,
            cni,
        } = old;
        use Effect::{Live, Replaces};
        self.value(Replaces, "network_name", network_name, &new.network_name);
        self.value(Replaces, "tap_owner", tap_owner, &new.tap_owner);
        let CniOptions {
            port_mappings,
            bandwidth,
            aliases,
            args,
            ips,
            mac,
        } = cni;
        let new = &new.cni;
        let field = "cni.port_mappings";
        self.list(Replaces, field, port_mappings, &new.port_mappings);
        let bandwidth_after = new.bandwidth.as_ref();
        self.option(
            Replaces,
            "cni.bandwidth",
            bandwidth.as_ref(),
            bandwidth_after,
        );
        self.list(Replaces, "cni.aliases", aliases, &new.aliases);
        let keys: BTreeSet<&String> = args.keys().chain(new.args.keys()).collect();
        for key in keys {
            let field = format!("cni.args.{key}");
            self.option(Replaces, &field, args.get(key), new.args.get(key));
        }
        self.list(Live, "cni.ips", ips, &new.ips);
        self.option(Replaces, "cni.mac", mac.as_ref(), new.mac.as_ref());
    }
}

/// The entries of `list` that are not in `other`, each as often as it is missing.
fn missing_in<'a, T: PartialEq>(other: &[T], list: &'a [T]) -> Vec<&'a T> {
    let count = |list: &[T], entry: &T| list.iter().filter(|known| *known == entry).count();
    let is_missing =
        |(at, entry): &(usize, &'a T)| count(&list[..*at], entry) >= count(other, entry);
    let entries = list.iter().enumerate();
    entries.filter(is_missing).map(|(_, entry)| entry).collect()
}

fn comma_separated<T: ToString>(list: &[T]) -> String {
    let entries: Vec<String> = list.iter().map(ToString::to_string).collect();
    entries.join(", ")
}

/// The key of the VMM's program.
fn program_key(hypervisor: Hypervisor) -> &'static str {
    match hypervisor {
        Hypervisor::None | Hypervisor::Qemu => "qemu_bin",
        Hypervisor::Firecracker => "firecracker_bin",
        Hypervisor::CloudHypervisor => "cloud_hypervisor_bin",
    }
}

/// A size in the format of the manifest, without rounding.
fn size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M")];
    let exact = |(shift, _): &(u32, &str)| bytes != 0 && bytes.trailing_zeros() >= *shift;
    match units.into_iter().find(exact) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

fn disk(disk: &AdditionalDisk) -> String {
    let path = disk.path.display();
    match disk.read_only {
        true => format!("{path} (read-only)"),
        false => path.to_string(),
    }
}

#[cfg(test)]
mod tests;
