//! Reads `config:` and its host groups.
//! Out of scope: the `network:` section, comparing groups with each other.

use std::path::PathBuf;

use super::super::host_group::{HostGroup, HostGroupSpec, MAX_COUNT};
use super::super::meta::Name;
use super::super::network::{NetworkSpec, TapOwner};
use super::super::validate::MAX_GROUPS;
use super::super::vm::{Hypervisor, VmSpec};
use super::count;
use super::dns;
use super::keys::limits::{
    API_VERSION, DEFAULT_RAM, DEFAULT_VCPU, HYPERVISORS, KIND, MIB, RAM_UNITS, UPDATES, VCPU,
    ram_range,
};
use super::keys::{Mapping, is_kubernetes_object};
use super::locations::{self, Locations};
use super::network::Capacity;
use super::section::{Field, Reader, Scope, Section};
use super::yaml::Value;
use super::{Draft, guest_access, life, network, placement, storage};

/// The settings that a group may inherit from `config:` or override.
#[derive(Clone, Default)]
struct BootFields {
    hypervisor: Option<Hypervisor>,
    kernel_file: Option<PathBuf>,
    /// Whether `kernel_file` is set, even to an invalid value.
    is_kernel_set: bool,
    initrd_file: Option<PathBuf>,
    start: life::LifecycleFields,
    guest_access: guest_access::GuestAccessFields,
    root: storage::RootDiskFields,
}

/// The groups of one document. Problems are added to the reader.
pub fn read_document(reader: &mut Reader, root: &Field) -> Vec<Draft> {
    let before = reader.problem_count();
    if refuse_other_object(reader, root) {
        return Vec::new();
    }
    let Some(document) = reader.section(root, Mapping::Document) else {
        return Vec::new();
    };
    read_header(reader, &document);
    let Some(config) = document.get("config") else {
        // An unknown key is reported already, and is probably a misspelt `config`.
        if reader.problem_count() == before {
            reader.refuse_at(root.node.at, "config", "is missing");
        }
        return Vec::new();
    };
    let Some(config) = reader.section(config, Mapping::Config) else {
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
        locations: locations::inherited(reader, &config),
    };
    groups
        .iter()
        .filter_map(|group| read_group(reader, group, &inherited, network_name.as_deref()))
        .collect()
}

/// Refuses an object of Kubernetes as a whole: its keys would be a problem each.
fn refuse_other_object(reader: &mut Reader, root: &Field) -> bool {
    let Value::Map(members) = &root.node.value else {
        return false;
    };
    let keys: Vec<&str> = members.iter().map(|member| member.key.as_str()).collect();
    let is_other = is_kubernetes_object(&keys);
    if is_other {
        let (at, found) = match members
            .iter()
            .find(|m| m.key == "apiVersion" || m.key == "kind")
        {
            Some(member) => (
                member.value.at,
                format!("found {} {}", member.key, member.value.value),
            ),
            None => (
                root.node.at,
                "found an object without the key config".to_owned(),
            ),
        };
        let message = format!(
            "{found}: this is a Kubernetes object; a manifest of sliced has `apiVersion: {API_VERSION}`, `kind: {KIND}` and `config:`, see `slicectl new`"
        );
        reader.refuse_at(at, "", message);
    }
    is_other
}

/// Checks `apiVersion` and `kind`, which are optional.
fn read_header(reader: &mut Reader, document: &Section) {
    for (key, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        if let Some(field) = document.get(key) {
            reader.one_of(field, &[(expected, ())]);
        }
    }
}

fn read_boot(reader: &mut Reader, section: &Section, default: BootFields) -> BootFields {
    let root = storage::read_root(reader, section, default.root);
    let hypervisor = section
        .get("hypervisor")
        .and_then(|field| reader.one_of(field, &HYPERVISORS));
    let mut path = |key| section.get(key).and_then(|field| reader.path(field));
    BootFields {
        hypervisor: hypervisor.or(default.hypervisor),
        kernel_file: path("kernel_file").or(default.kernel_file),
        is_kernel_set: default.is_kernel_set || section.has("kernel_file"),
        initrd_file: path("initrd_file").or(default.initrd_file),
        start: life::read(reader, section, default.start),
        guest_access: guest_access::read(reader, section, default.guest_access),
        root,
    }
}

fn read_group(
    reader: &mut Reader,
    field: &Field,
    inherited: &Inherited,
    network_name: Option<&str>,
) -> Option<Draft> {
    let before = reader.problem_count();
    let group = reader.section(field, Mapping::HostGroup)?;
    let name = read_name(reader, &group);
    let count = group
        .get("count")
        .and_then(|field| reader.whole(field, 0..=MAX_COUNT.into()))
        .map_or(1, |count| count as u32);
    let vcpu = group
        .get("vcpu")
        .and_then(|field| reader.whole(field, VCPU))
        .map_or(DEFAULT_VCPU, |vcpu| vcpu as u32);
    let ram_bytes = read_ram(reader, &group);
    let dns_servers = dns::read(reader, &group);
    let boot = read_boot(reader, &group, inherited.boot.clone());
    let update = group
        .get("update")
        .and_then(|field| reader.one_of(field, &UPDATES));
    let info = network::GroupInfo {
        name: name.as_ref(),
        count,
    };
    let network = network::read(reader, &group, &info, network_name);
    let hypervisor = choose_hypervisor(reader, &group, &boot);
    let lifecycle = life::choose(reader, &group, hypervisor, boot.start);
    let guest_access = guest_access::choose(reader, &group, hypervisor, boot.guest_access);
    let storage = storage::read(reader, &group, boot.root, count);
    let fleet = placement::read(reader, &group);
    let (name, network) = (name?, network?);
    let placement = match reader.scope {
        Scope::Host => None,
        Scope::Fleet => Some(
            fleet
                .as_ref()
                .map_or_else(Default::default, |it| it.placement.clone()),
        ),
    };
    let limit = count::limit(&network.spec, placement.as_ref());
    check_count(reader, &group, &name, count, limit);
    check_tap_owner(reader, &group, hypervisor, &network.spec);
    let dns_warnings = dns::check(reader, &group, &dns_servers, &network.spec);
    let template = VmSpec {
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
        guest_access,
        network: network.spec,
    };
    placement::check(reader, &group, &template, fleet.as_deref());
    if reader.problem_count() > before {
        return None;
    }
    let network_at = group.get("network").map_or(group.at, |field| field.node.at);
    let policy_warnings = template.network.warnings();
    let warnings = network
        .warnings
        .into_iter()
        .chain(policy_warnings.iter().map(|warning| {
            let at = reader.location(network_at);
            format!("{at}: {}.network: {warning}", group.path)
        }))
        .chain(dns_warnings);
    let locations = Locations::new(reader, &group, &inherited.locations);
    Some(Draft {
        at: locations.of_name().clone(),
        locations,
        warnings: warnings.collect(),
        name,
        spec: HostGroupSpec {
            count,
            update: update.unwrap_or_default(),
            template,
        },
        fleet,
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
            reader.invalid_name(field, error.why());
            None
        }
    }
}

fn read_ram(reader: &mut Reader, group: &Section) -> u64 {
    let given: Vec<(&Field, u64)> = RAM_UNITS
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
    let Some(amount) = reader.whole(field, ram_range(unit)) else {
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
    let chosen = boot.hypervisor.unwrap_or(match boot.is_kernel_set {
        true => Hypervisor::Qemu,
        false => Hypervisor::None,
    });
    if chosen != Hypervisor::None && !boot.is_kernel_set {
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
    limit: Option<Capacity>,
) {
    let (at, path) = match group.get("count") {
        Some(field) => (field.node.at, field.path.clone()),
        None => (group.at, format!("{}.count", group.path)),
    };
    if let Some(limit) = limit.filter(|limit| count > limit.vms) {
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
    locations: locations::Inherited,
}
