//! Reads `cmdline`, `machine`, `restart`, `graceful_shutdown` and the VMM programs: how a VM's VMM is started and stopped.
//! Out of scope: which VMM; the files that it boots from.

use std::path::PathBuf;

use super::super::life::{
    GracePeriod, InvalidGracePeriod, Lifecycle, MAX_CMDLINE, MachineType, Restart,
};
use super::super::vm::Hypervisor;
use super::keys::limits::{MACHINES, RESTARTS};
use super::section::{Field, Reader, Section};
use super::yaml::Value;

/// The keys that specify a program, with the hypervisor that uses it.
const PROGRAMS: [(&str, Hypervisor); 3] = [
    ("qemu_bin", Hypervisor::Qemu),
    ("firecracker_bin", Hypervisor::Firecracker),
    ("cloud_hypervisor_bin", Hypervisor::CloudHypervisor),
];

/// The key of the jailer, which only Firecracker uses.
const JAILER: &str = "jailer_bin";

/// The settings that a group may inherit from `config:` or override.
#[derive(Clone, Default)]
pub struct LifecycleFields {
    /// In the order of [`PROGRAMS`].
    programs: [Option<PathBuf>; PROGRAMS.len()],
    jailer: Option<PathBuf>,
    cmdline: Option<String>,
    machine: Option<MachineType>,
    restart: Option<Restart>,
    graceful_shutdown: Option<GracePeriod>,
}

/// The settings of this section, with `default` for those that are missing.
pub fn read(reader: &mut Reader, section: &Section, default: LifecycleFields) -> LifecycleFields {
    let mut programs = default.programs;
    for (program, (key, _)) in programs.iter_mut().zip(PROGRAMS) {
        let value = section.get(key).and_then(|field| reader.path(field));
        *program = value.or(program.take());
    }
    let jailer = section.get(JAILER).and_then(|field| reader.path(field));
    let cmdline = section
        .get("cmdline")
        .and_then(|field| read_cmdline(reader, field));
    let board = section
        .get("machine")
        .and_then(|field| reader.one_of(field, &MACHINES));
    let restart = section
        .get("restart")
        .and_then(|field| reader.one_of(field, &RESTARTS));
    let grace = section
        .get("graceful_shutdown")
        .and_then(|field| read_grace(reader, field));
    LifecycleFields {
        programs,
        jailer: jailer.or(default.jailer),
        cmdline: cmdline.or(default.cmdline),
        machine: board.or(default.machine),
        restart: restart.or(default.restart),
        graceful_shutdown: grace.or(default.graceful_shutdown),
    }
}

fn read_grace(reader: &mut Reader, field: &Field) -> Option<GracePeriod> {
    let grace = match &field.node.value {
        Value::Text(text) => text.parse(),
        // A number without a unit is ambiguous: 5 could be seconds or minutes.
        _ => Err(InvalidGracePeriod),
    };
    grace
        .map_err(|error| reader.unexpected(field, &error.to_string()))
        .ok()
}

/// `ip=` is refused because the network drops packets from another source than the address that it assigned to the VM.
/// `root=` is accepted and replaces the generated one, because an image may have partitions.
fn read_cmdline(reader: &mut Reader, field: &Field) -> Option<String> {
    let text = reader.text(field, "kernel parameters")?;
    if text.len() > MAX_CMDLINE {
        let message = format!("found {} bytes, expected at most {MAX_CMDLINE}", text.len());
        reader.refuse(field, message);
        return None;
    }
    if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        reader.unexpected(field, "printable ASCII on one line");
        return None;
    }
    if text.split(' ').any(|word| word.starts_with("ip=")) {
        reader.refuse(
            field,
            "`ip=` is not allowed: the network assigns the address and drops packets with another source address",
        );
        return None;
    }
    Some(text.trim().to_owned())
}

/// Selects the settings for a VM of this group. A setting of the group that its hypervisor does not support is refused; a setting of
/// `config:` applies to the groups that support it.
pub fn choose(
    reader: &mut Reader,
    group: &Section,
    hypervisor: Hypervisor,
    fields: LifecycleFields,
) -> Lifecycle {
    let other_keys = [
        ("machine", Hypervisor::Qemu),
        (JAILER, Hypervisor::Firecracker),
    ];
    for (key, hypervisor_of) in PROGRAMS.into_iter().chain(other_keys) {
        if let Some(field) = group.get(key).filter(|_| hypervisor_of != hypervisor) {
            let message = format!("has no effect with hypervisor \"{hypervisor}\"");
            reader.refuse_and_discard_others(field, message);
        }
    }
    if hypervisor == Hypervisor::None {
        for key in ["cmdline", "restart", "graceful_shutdown"] {
            if let Some(field) = group.get(key) {
                reader.refuse_and_discard_others(field, "has no effect with hypervisor \"none\"");
            }
        }
        return Lifecycle::default();
    }
    let mut programs = fields.programs.into_iter().zip(PROGRAMS);
    let selected = programs.find(|(_, (_, required))| *required == hypervisor);
    Lifecycle {
        program: selected.and_then(|(program, _)| program),
        jailer: fields
            .jailer
            .filter(|_| hypervisor == Hypervisor::Firecracker),
        // An empty value in a group overrides that of `config:`.
        cmdline: fields.cmdline.filter(|words| !words.is_empty()),
        machine: match hypervisor {
            Hypervisor::Qemu => fields.machine.unwrap_or_default(),
            Hypervisor::None | Hypervisor::Firecracker | Hypervisor::CloudHypervisor => {
                MachineType::default()
            }
        },
        restart: fields.restart.unwrap_or_default(),
        graceful_shutdown: fields.graceful_shutdown.unwrap_or_default(),
    }
}
