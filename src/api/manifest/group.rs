//! Reads `config:` and its host groups.
//! Out of scope: the `network:` section, comparing groups with each other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::host_group::{HostGroup, HostGroupSpec, MAX_COUNT, UpdatePolicy};
use super::super::meta::Name;
use super::super::network::{NetworkSpec, TapOwner};
use super::super::validate::MAX_GROUPS;
use super::super::vm::{Hypervisor, VmSpec};
use super::count;
use super::dns;
use super::section::{Field, Reader, Section};
use super::yaml::Value;
use super::{Draft, Location, life, network, storage};

const CONFIG_KEYS: [&str; 16] = [
    "image",
    "storage_size",
    "persistent",
    "kernel_file",
    "initrd_file",
    "cmdline",
    "restart",
    "graceful_shutdown",
    "hypervisor",
    "machine",
    "qemu_bin",
    "firecracker_bin",
    "jailer_bin",
    "cloud_hypervisor_bin",
    "network_name",
    "host_groups",
];

const GROUP_KEYS: [&str; 26] = [
    "name",
    "count",
    "vcpu",
    "ram_mb",
    "ram_gb",
    "ram_bytes",
    "dns_servers",
    "hypervisor",
    "machine",
    "qemu_bin",
    "firecracker_bin",
    "jailer_bin",
    "cloud_hypervisor_bin",
    "kernel_file",
    "initrd_file",
    "cmdline",
    "restart",
    "graceful_shutdown",
    "image",
    "storage_size",
    "persistent",
    "disks",
    "network_name",
    "update",
    "network",
    "cni",
];

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// 16 TiB: more than any supported host has, and small enough to exclude overflows.
const MAX_RAM: u64 = 16 << 40;
const DEFAULT_VCPU: u32 = 2;
const DEFAULT_RAM: u64 = 4 * GIB;
/// The settings that a group may inherit from `config:` or override.
#[derive(Clone, Default)]
struct BootFields {
    hypervisor: Option<Hypervisor>,
    kernel_file: Option<PathBuf>,
    initrd_file: Option<PathBuf>,
    start: life::LifecycleFields,
    root: storage::RootDiskFields,
}

/// The groups of one document. Problems are added to the reader.
pub fn read_document(reader: &mut Reader, root: &Field) -> Vec<Draft> {
    let before = reader.problem_count();
    let Some(document) = reader.section(root, &["config"]) else {
        return Vec::new();
    };
    let Some(config) = document.get("config") else {
        // An unknown key is reported already, and is probably a misspelt `config`.
        if reader.problem_count() == before {
            reader.refuse_at(root.node.at, "config", "is missing");
        }
        return Vec::new();
    };
    let Some(config) = reader.section(config, &CONFIG_KEYS) else {
        return Vec::new();
    };
    let boot = read_boot(reader, &config, BootFields::default());
    let network_name = config
        .get("network_name")
        .map(|field| network::read_network_name(reader, field));
    let Some(groups) = config.get("host_groups") else {
        reader.refuse_at(config.at, "config.host_groups", "is missing");
        return Vec::new();
    };
    let groups = reader.list(groups, "a list of groups ([] for none)");
    if let Some(first) = groups.get(MAX_GROUPS) {
        let found = groups.len();
        let message = format!("found {found} groups, expected at most {MAX_GROUPS} on a host");
        reader.refuse(first, message);
        return Vec::new();
    }
    let inherited = Inherited {
        boot,
        places: places(reader, &config, &PATH_FIELDS),
    };
    groups
        .iter()
        .filter_map(|group| read_group(reader, group, &inherited, network_name.as_deref()))
        .collect()
}

fn read_boot(reader: &mut Reader, section: &Section, default: BootFields) -> BootFields {
    let root = storage::read_root(reader, section, default.root);
    let hypervisor = section
        .get("hypervisor")
        .and_then(|field| read_hypervisor(reader, field));
    let mut path = |key| section.get(key).and_then(|field| reader.path(field));
    BootFields {
        hypervisor: hypervisor.or(default.hypervisor),
        kernel_file: path("kernel_file").or(default.kernel_file),
        initrd_file: path("initrd_file").or(default.initrd_file),
        start: life::read(reader, section, default.start),
        root,
    }
}

fn read_hypervisor(reader: &mut Reader, field: &Field) -> Option<Hypervisor> {
    const CHOICES: [(&str, Hypervisor); 4] = [
        ("qemu", Hypervisor::Qemu),
        ("none", Hypervisor::None),
        ("firecracker", Hypervisor::Firecracker),
        ("cloud-hypervisor", Hypervisor::CloudHypervisor),
    ];
    reader.one_of(field, &CHOICES)
}

fn read_group(
    reader: &mut Reader,
    field: &Field,
    inherited: &Inherited,
    network_name: Option<&str>,
) -> Option<Draft> {
    let before = reader.problem_count();
    let group = reader.section(field, &GROUP_KEYS)?;
    let name = read_name(reader, &group);
    let count = group
        .get("count")
        .and_then(|field| reader.whole(field, 0..=MAX_COUNT.into()))
        .map_or(1, |count| count as u32);
    let vcpu = group
        .get("vcpu")
        .and_then(|field| reader.whole(field, 1..=255))
        .map_or(DEFAULT_VCPU, |vcpu| vcpu as u32);
    let ram_bytes = read_ram(reader, &group);
    let dns_servers = dns::read(reader, &group);
    let boot = read_boot(reader, &group, inherited.boot.clone());
    let update = group.get("update").and_then(|field| {
        let choices = [
            ("rolling", UpdatePolicy::Rolling),
            ("on-delete", UpdatePolicy::OnDelete),
        ];
        reader.one_of(field, &choices)
    });
    let info = network::GroupInfo {
        name: name.as_ref(),
        count,
    };
    let network = network::read(reader, &group, &info, network_name);
    let hypervisor = choose_hypervisor(reader, &group, &boot);
    let lifecycle = life::choose(reader, &group, hypervisor, boot.start);
    let storage = storage::read(reader, &group, boot.root, count);
    let (name, network) = (name?, network?);
    check_count(reader, &group, &name, count, &network.spec);
    check_tap_owner(reader, &group, hypervisor, &network.spec);
    let dns_warnings = dns::check(reader, &group, &dns_servers, &network.spec);
    if reader.problem_count() > before {
        return None;
    }
    let at = |key| group.get(key).map_or(group.at, |field| field.node.at);
    let policy_warnings = network.spec.warnings();
    let warnings = network
        .warnings
        .into_iter()
        .chain(policy_warnings.iter().map(|warning| {
            let at = reader.location(at("network"));
            format!("{at}: {}.network: {warning}", group.path)
        }))
        .chain(dns_warnings);
    Some(Draft {
        at: reader.location(at("name")),
        field: group.path.clone(),
        places: inherited.and(places(reader, &group, &LOCATED_FIELDS)),
        warnings: warnings.collect(),
        name,
        spec: HostGroupSpec {
            count,
            update: update.unwrap_or_default(),
            template: VmSpec {
                hypervisor,
                vcpu,
                ram_bytes,
                kernel_file: boot.kernel_file,
                initrd_file: boot.initrd_file,
                dns_servers: dns_servers
                    .into_iter()
                    .map(|(_, address)| address)
                    .collect(),
                storage,
                lifecycle,
                network: network.spec,
            },
        },
    })
}

fn read_name(reader: &mut Reader, group: &Section) -> Option<Name> {
    let Some(field) = group.get("name") else {
        reader.refuse_at(group.at, &format!("{}.name", group.path), "is missing");
        return None;
    };
    let text = reader.text(field, "a name")?;
    match Name::new(text) {
        Ok(name) => Some(name),
        Err(error) => {
            let reason = error.why();
            let expected = format!("an RFC 1123 label of at most 63 characters: {reason}");
            reader.unexpected(field, &expected);
            None
        }
    }
}

fn read_ram(reader: &mut Reader, group: &Section) -> u64 {
    let given: Vec<(&Field, u64)> = [("ram_mb", MIB), ("ram_gb", GIB), ("ram_bytes", 1)]
        .into_iter()
        .filter_map(|(key, unit)| Some((group.get(key)?, unit)))
        .collect();
    let (field, unit) = match given[..] {
        [] => return DEFAULT_RAM,
        [one] => one,
        [_, (second, _), ..] => {
            reader.refuse(
                second,
                "only one of ram_mb, ram_gb and ram_bytes may be given",
            );
            return DEFAULT_RAM;
        }
    };
    let minimum = MIB.div_ceil(unit).max(1);
    let Some(amount) = reader.whole(field, minimum..=MAX_RAM / unit) else {
        return DEFAULT_RAM;
    };
    let bytes = amount * unit;
    if !bytes.is_multiple_of(MIB) {
        let below = bytes / MIB * MIB;
        let expected = format!("a whole number of MiB, such as {below}");
        reader.unexpected(field, &expected);
    }
    bytes
}

/// The hypervisor of the group. The default is QEMU if there is a kernel, else none: the user starts the VMM.
fn choose_hypervisor(reader: &mut Reader, group: &Section, boot: &BootFields) -> Hypervisor {
    let chosen = boot.hypervisor.unwrap_or(match boot.kernel_file {
        Some(_) => Hypervisor::Qemu,
        None => Hypervisor::None,
    });
    // An invalid kernel_file has been refused already.
    if chosen != Hypervisor::None && boot.kernel_file.is_none() && !group.has("kernel_file") {
        let at = group
            .get("hypervisor")
            .map_or(group.at, |field| field.node.at);
        let path = format!("{}.kernel_file", group.path);
        let message = format!(
            "is missing: hypervisor \"{chosen}\" requires it; set it here or under config, or use hypervisor: none"
        );
        reader.refuse_at(at, &path, message);
    }
    chosen
}

/// Refuses `tap_owner` unless the hypervisor is none: other VMMs run as a dedicated user, which owns the TAP.
fn check_tap_owner(
    reader: &mut Reader,
    group: &Section,
    hypervisor: Hypervisor,
    network: &NetworkSpec,
) {
    if hypervisor != Hypervisor::None && network.tap_owner() != TapOwner::default() {
        let at = group.get("network").map_or(group.at, |field| field.node.at);
        let path = format!("{}.network.tap_owner", group.path);
        let message = "needs hypervisor: none; sliced starts other VMMs as a dedicated user, which owns the TAP";
        reader.refuse_at(at, &path, message);
    }
}

fn check_count(
    reader: &mut Reader,
    group: &Section,
    name: &Name,
    count: u32,
    network: &NetworkSpec,
) {
    let (at, path) = match group.get("count") {
        Some(field) => (field.node.at, field.path.clone()),
        None => (group.at, format!("{}.count", group.path)),
    };
    if let Some(limit) = network::capacity(network).filter(|capacity| count > capacity.vms) {
        let message = count::does_not_fit(count, &limit.why);
        reader.refuse_at(at, &path, message);
    }
    if HostGroup::vm_name(name, count).is_none() {
        let field = group.get("name").map_or(at, |field| field.node.at);
        let message = count::name_too_long(name, count);
        reader.refuse_at(field, &format!("{}.name", group.path), message);
    }
}

/// The settings of `config:` that groups inherit.
struct Inherited {
    boot: BootFields,
    /// The locations of its file paths.
    places: BTreeMap<String, Location>,
}

impl Inherited {
    /// Adds the locations of the group, which take precedence.
    fn and(&self, own: BTreeMap<String, Location>) -> BTreeMap<String, Location> {
        let mut locations = self.places.clone();
        locations.extend(own);
        locations
    }
}

/// Fields that name a file on the host.
const PATH_FIELDS: [&str; 7] = [
    "kernel_file",
    "initrd_file",
    "image",
    "qemu_bin",
    "firecracker_bin",
    "cloud_hypervisor_bin",
    "jailer_bin",
];

/// Fields that may conflict with other groups, with VMs made on demand, or with the daemon's settings.
const LOCATED_FIELDS: [&str; 12] = [
    "count",
    "vcpu",
    "ram_mb",
    "disks",
    "cni",
    PATH_FIELDS[0],
    PATH_FIELDS[1],
    PATH_FIELDS[2],
    PATH_FIELDS[3],
    PATH_FIELDS[4],
    PATH_FIELDS[5],
    PATH_FIELDS[6],
];

/// The locations of the fields `keys`, the paths of disks and the fields of the network.
fn places(reader: &Reader, group: &Section, keys: &[&str]) -> BTreeMap<String, Location> {
    let network = match group.get("network").map(|field| &field.node.value) {
        Some(Value::Map(members)) => members.as_slice(),
        _ => &[],
    };
    let network = network
        .iter()
        .map(|member| (format!("network.{}", member.key), member.value.at));
    let disks = match group.get("disks").map(|field| &field.node.value) {
        Some(Value::List(items)) => items.as_slice(),
        _ => &[],
    };
    let disks = disks.iter().enumerate().filter_map(|(at, disk)| {
        let Value::Map(members) = &disk.value else {
            return None;
        };
        let path = members.iter().find(|member| member.key == "path")?;
        Some((format!("disks[{at}].path"), path.value.at))
    });
    let own = keys
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), group.get(key)?.node.at)));
    let all = network.chain(disks).chain(own);
    all.map(|(key, at)| (key, reader.location(at))).collect()
}
