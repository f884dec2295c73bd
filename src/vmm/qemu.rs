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
//! - The memory is a file in memory that another process, the back end of the vsock device, maps as well. QEMU connects to it and cannot
//!   connect again (`hw/virtio/vhost-user-vsock.c` has no reconnect).
//! - `script=no`: the TAP exists and is configured. Its existence is checked when the process is started.

use super::cmdline::{self, VmmParameters};
use super::recipe::{Access, BackEnd, Disk, Launch, RecipeError, Slot};
use super::{AGENT, Accel, Control, Machine, Program, VHOST_VSOCK};
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
    let guest_port = GuestPort::of(spec, slot);
    add("-M", format!("{machine_name}{}", guest_port.memory()));
    if spec.lifecycle.machine == MachineType::Microvm {
        add("-global", "virtio-mmio.force-legacy=false".to_owned());
    }
    for (option, value) in accelerator(machine.accel) {
        add(option, value.to_owned());
    }
    add("-smp", spec.vcpu.to_string());
    add("-m", format!("{}M", spec.ram_bytes >> 20));
    if guest_port == GuestPort::Vsock {
        let size = spec.ram_bytes >> 20;
        add(
            "-object",
            format!("memory-backend-memfd,id=mem,size={size}M,share=on"),
        );
    }
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
    match guest_port {
        GuestPort::None => {}
        GuestPort::Vsock => {
            add("-chardev", format!("socket,id=vsock,path={VHOST_VSOCK}"));
            add("-device", format!("vhost-user-vsock-{bus},chardev=vsock"));
        }
        GuestPort::Serial => {
            add("-chardev", listen("agent", AGENT));
            add("-device", format!("virtio-serial-{bus}"));
            add("-device", SERIAL_PORT.to_owned());
        }
    }
    for [drive, device] in disks(&slot.disks, bus) {
        add("-drive", drive);
        add("-device", device);
    }
    add("-kernel", kernel.display().to_string());
    if let Some(initrd) = slot.initrd(spec) {
        add("-initrd", initrd.display().to_string());
    }
    add("-append", command_line(spec, slot, machine)?);
    argv.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    let back_end = (guest_port == GuestPort::Vsock).then_some(BackEnd {
        shared_bytes: spec.ram_bytes,
    });
    Ok(Launch {
        back_end,
        ..Launch::new(argv, slot)
    })
}

/// The device of an earlier version for guest access.
const SERIAL_PORT: &str = "virtserialport,chardev=agent,name=org.slicectl.agent.0";

/// The device for guest access.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GuestPort {
    None,
    Vsock,
    /// Of an earlier version.
    Serial,
}

impl GuestPort {
    fn of(spec: &VmSpec, slot: &Slot) -> Self {
        match (slot.has_serial_port, spec.guest_access.vsock) {
            (true, _) => Self::Serial,
            (false, true) => Self::Vsock,
            (false, false) => Self::None,
        }
    }

    /// The option of the machine for the guest's memory.
    fn memory(self) -> &'static str {
        match self {
            Self::Vsock => ",memory-backend=mem",
            Self::None | Self::Serial => "",
        }
    }
}

/// Whether a running QEMU was started by an earlier version, with a virtio-serial port for guest access.
pub fn has_serial_port(argv: &[String]) -> bool {
    argv.iter().any(|word| word == SERIAL_PORT)
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
