//! QEMU's machines `microvm` and `q35`. Pure.
//! Out of scope: other VMMs; starting it.
//!
//! # Why these arguments
//! - `microvm` has virtio over MMIO only and boots in about two seconds even without KVM. ACPI stays on: Debian's kernel
//!   needs it, and the power button is used for a graceful stop.
//! - `tsc_early_khz`: without KVM the guest may hang while calibrating its clock, so the rate is passed.
//! - `reboot=t`: a `microvm` can be reset only by a triple fault (docs/system/i386/microvm.rst); Linux tries all other methods first and
//!   hangs. A `q35` is reset by the first method of Linux.
//! - `pvpanic`: the guest kernel reports a panic (docs/specs/pvpanic.rst). QEMU then exits with status 1 at once, which is a failure,
//!   unlike a reset or a power-off.
//! - `script=no`: the TAP exists and is configured. Its existence is checked when the process is started.

use super::cmdline::{self, VmmParameters};
use super::recipe::{Access, Disk, Launch, RecipeError, Slot};
use super::{AGENT, Accel, Control, Machine, Program};
use crate::api::life::MachineType;
use crate::api::network::Connection;
use crate::api::vm::VmSpec;

/// Refused system calls: obsolete ones, those that change the user, start programs or change scheduling.
pub(super) const SANDBOX: &str =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// Bytes, IEEE 802.3; the MTU of a virtio network card without `host_mtu`.
const ETHERNET_MTU: u32 = 1500;

pub(super) fn recipe(
    spec: &VmSpec,
    slot: &Slot,
    program: &Program,
    machine: &Machine,
) -> Result<Launch, RecipeError> {
    let kernel = slot.kernel(spec)?;
    let mut argv: Vec<String> = vec![program.path.display().to_string()];
    let mut add = |option: &str, value: String| argv.extend([option.to_owned(), value]);
    add("-name", format!("guest={}", slot.name));
    let (machine_name, bus) = match spec.lifecycle.machine {
        MachineType::Microvm => ("microvm", "device"),
        MachineType::Q35 => ("q35", "pci"),
    };
    add("-M", machine_name.to_owned());
    if spec.lifecycle.machine == MachineType::Microvm {
        add("-global", "virtio-mmio.force-legacy=false".to_owned());
    }
    for (option, value) in accelerator(machine.accel) {
        add(option, value.to_owned());
    }
    add("-smp", spec.vcpu.to_string());
    add("-m", format!("{}M", spec.ram_bytes >> 20));
    add("-sandbox", SANDBOX.to_owned());
    add("-display", "none".to_owned());
    // Its standard input and output: a pipe, and the console file, which is opened for appending, so that the log does not become sparse
    // when it is truncated. Input cannot cause signals.
    add("-chardev", "stdio,id=console,signal=off".to_owned());
    add("-serial", "chardev:console".to_owned());
    // Relative to the run directory: a socket's path holds 107 bytes at most (unix(7)).
    let listen = |id: &str, name: &str| format!("socket,id={id},path={name},server=on,wait=off");
    add("-chardev", listen("qmp", Control::Qmp.socket()));
    add("-mon", "chardev=qmp,mode=control".to_owned());
    add(
        "-netdev",
        format!(
            "tap,id=net0,ifname={},script=no,downscript=no,vhost=off",
            slot.connection.tap
        ),
    );
    add(
        "-device",
        network_card(&slot.connection, spec.lifecycle.machine),
    );
    add("-device", format!("virtio-rng-{bus}"));
    add("-device", "pvpanic".to_owned());
    add("-action", "panic=exit-failure".to_owned());
    add("-chardev", listen("agent", AGENT));
    add("-device", format!("virtio-serial-{bus}"));
    add(
        "-device",
        "virtserialport,chardev=agent,name=org.slicectl.agent.0".to_owned(),
    );
    for [drive, device] in disks(&slot.disks, bus) {
        add("-drive", drive);
        add("-device", device);
    }
    add("-kernel", kernel.display().to_string());
    if let Some(initrd) = &spec.initrd_file {
        add("-initrd", initrd.display().to_string());
    }
    add("-append", command_line(spec, slot, machine)?);
    argv.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    Ok(Launch::new(argv, slot))
}

/// KASLR delays the boot of a translated guest by a second.
fn command_line(spec: &VmSpec, slot: &Slot, machine: &Machine) -> Result<String, RecipeError> {
    let mut parameters = "nokaslr".to_owned();
    if let (Accel::Tcg, Some(khz)) = (machine.accel, machine.tsc_khz) {
        parameters.push_str(&format!(" tsc_early_khz={khz}"));
    }
    match spec.lifecycle.machine {
        MachineType::Microvm => parameters.push_str(" reboot=t"),
        MachineType::Q35 => {}
    }
    let reserved = 0;
    cmdline::command_line(
        spec,
        slot,
        &VmmParameters {
            parameters,
            reserved,
        },
    )
}

/// The disks in their order: Linux names the first one `/dev/vda`.
fn disks(disks: &[Disk], bus: &str) -> impl Iterator<Item = [String; 2]> {
    disks.iter().enumerate().map(move |(index, disk)| {
        let path = escape(&disk.path.display().to_string());
        let read_only = match disk.access {
            Access::ReadOnly => "on",
            Access::ReadWrite => "off",
        };
        [
            format!("file={path},format=raw,if=none,id=disk{index},readonly={read_only}"),
            format!("virtio-blk-{bus},drive=disk{index},serial=disk{index}"),
        ]
    })
}

pub(super) fn accelerator(accel: Accel) -> [(&'static str, &'static str); 2] {
    match accel {
        Accel::Kvm => [("-accel", "kvm"), ("-cpu", "host")],
        // The translation cache is 1 GiB by default, more than most guests.
        Accel::Tcg => [("-accel", "tcg,tb-size=32"), ("-cpu", "max")],
    }
}

/// The [`Machine`] that a running QEMU was started for, according to its arguments.
pub fn machine_of(argv: &[String]) -> Machine {
    let after = |option: &str| {
        let at = argv.iter().position(|word| word == option)?;
        argv.get(at + 1)
    };
    let accel = match after("-accel") {
        Some(accel) if accel.starts_with("tcg") => Accel::Tcg,
        Some(_) | None => Accel::Kvm,
    };
    let line = after("-append").map_or("", String::as_str);
    // It follows the first parameter that this module adds: elsewhere it is a parameter of the user.
    let mut words = line
        .split(' ')
        .skip_while(|word| *word != "nokaslr")
        .skip(1);
    let rate = words
        .next()
        .and_then(|word| word.strip_prefix("tsc_early_khz="));
    Machine {
        accel,
        tsc_khz: rate.and_then(|rate| rate.parse().ok()),
    }
}

/// The MTU is set only if it is not the default of a guest. `romfile=` disables the boot ROM of a PCI card, which is in another package.
fn network_card(connection: &Connection, board: MachineType) -> String {
    let mac = connection.mac;
    let card = match board {
        MachineType::Microvm => format!("virtio-net-device,netdev=net0,mac={mac}"),
        MachineType::Q35 => format!("virtio-net-pci,netdev=net0,mac={mac},romfile="),
    };
    match connection.mtu {
        ETHERNET_MTU => card,
        mtu => format!("{card},host_mtu={mtu}"),
    }
}

/// A comma in QEMU's option lists is escaped by doubling it.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_does_not_start_an_option() {
        assert_eq!(escape("/run/a,append=off"), "/run/a,,append=off");
    }
}
