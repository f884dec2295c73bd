//! QEMU's microvm machine. Pure.
//! Not here: other VMMs; starting it.
//!
//! # Why these words
//! - `microvm` has virtio over MMIO only and boots in about two seconds even without KVM. ACPI stays on: Debian's kernel
//!   needs it, and the power button is the polite way to stop.
//! - `tsc_early_khz`: without KVM the guest may hang calibrating its clock, so it is told the rate.
//! - `ip=` is the kernel's own format (Documentation/admin-guide/nfs/nfsroot.rst); kernels without IP_PNP leave it to the init.
//! - `script=no`: the TAP is there, with all that belongs to it. That it is there is checked by whoever starts this.

use std::net::Ipv4Addr;

use super::recipe::{Access, Disk, Launch, Slot, Unfit};
use super::{Accel, CONSOLE, Machine, QMP};
use crate::api::network::Connection;
use crate::api::vm::{Hypervisor, VmSpec};

/// Bytes, IEEE 802.3; what a virtio network card without `host_mtu` has.
const ETHERNET_MTU: u32 = 1500;

/// The program, looked up in `PATH`.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

pub(super) fn recipe(spec: &VmSpec, slot: &Slot, machine: &Machine) -> Result<Launch, Unfit> {
    let kernel = spec
        .kernel_file
        .as_ref()
        .ok_or(Unfit::NoKernel(Hypervisor::Qemu))?;
    let mut argv: Vec<String> = vec![PROGRAM.to_owned()];
    let mut say = |option: &str, value: String| argv.extend([option.to_owned(), value]);
    say("-name", format!("guest={}", slot.name));
    say("-M", "microvm".to_owned());
    for (option, value) in accelerator(machine.accel) {
        say(option, value.to_owned());
    }
    say("-smp", spec.vcpu.to_string());
    say("-m", format!("{}M", spec.ram_bytes >> 20));
    say(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
    );
    say("-display", "none".to_owned());
    // Appending, so that a rotated log does not become a hole of its old length.
    let console = escape(&slot.dir.join(CONSOLE).display().to_string());
    say(
        "-chardev",
        format!("file,id=console,path={console},append=on"),
    );
    say("-serial", "chardev:console".to_owned());
    // Relative to the run directory: a socket's path holds 107 bytes at most (unix(7)).
    say(
        "-chardev",
        format!("socket,id=qmp,path={QMP},server=on,wait=off"),
    );
    say("-mon", "chardev=qmp,mode=control".to_owned());
    say(
        "-netdev",
        format!(
            "tap,id=net0,ifname={},script=no,downscript=no,vhost=off",
            slot.connection.tap
        ),
    );
    say("-device", network_card(&slot.connection));
    for (place, disk) in slot.disks.iter().enumerate() {
        say("-drive", drive(place, disk));
        say(
            "-device",
            format!("virtio-blk-device,drive=disk{place},serial=disk{place}"),
        );
    }
    say("-kernel", kernel.display().to_string());
    if let Some(initrd) = &spec.initrd_file {
        say("-initrd", initrd.display().to_string());
    }
    say("-append", command_line(spec, slot, machine));
    argv.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    Ok(Launch {
        argv,
        netns: slot.connection.netns.clone(),
        tap: slot.connection.tap.clone(),
    })
}

pub(super) fn accelerator(accel: Accel) -> [(&'static str, &'static str); 2] {
    match accel {
        Accel::Kvm => [("-accel", "kvm"), ("-cpu", "host")],
        // The translation cache is 1 GiB by default, more than most guests.
        Accel::Tcg => [("-accel", "tcg,tb-size=32"), ("-cpu", "max")],
    }
}

/// QEMU's own locks stay on: they do not meet ours, and keep another QEMU off the disk.
fn drive(place: usize, disk: &Disk) -> String {
    let read_only = match disk.access {
        Access::ReadOnly => "on",
        Access::ReadWrite => "off",
    };
    let path = escape(&disk.path.display().to_string());
    format!("if=none,id=disk{place},file={path},format=raw,readonly={read_only},discard=unmap")
}

/// The MTU is said only where it is not what a guest takes for granted.
fn network_card(connection: &Connection) -> String {
    let card = format!("virtio-net-device,netdev=net0,mac={}", connection.mac);
    match connection.mtu {
        ETHERNET_MTU => card,
        mtu => format!("{card},host_mtu={mtu}"),
    }
}

/// `ip=` knows one route; the others are for the guest's init: `slice.route=NETWORK[,NEXT HOP]`, as often as there are some.
fn command_line(spec: &VmSpec, slot: &Slot, machine: &Machine) -> String {
    let connection = &slot.connection;
    let text = |address: Option<&Ipv4Addr>| address.map(ToString::to_string).unwrap_or_default();
    // The user's own name servers win over the network's.
    let servers = match spec.dns_servers.as_slice() {
        [] => &connection.dns,
        _ => &spec.dns_servers,
    };
    let dns = |place: usize| text(servers.get(place));
    let mut line = format!(
        "console=ttyS0 quiet panic=-1 nokaslr ip={}::{}:{}:{}:eth0:off:{}:{}",
        connection.ip,
        text(connection.gateway.as_ref()),
        netmask(connection.prefix_len),
        slot.name,
        dns(0),
        dns(1),
    );
    for (network, next_hop) in &connection.routes {
        let via = next_hop.map(|hop| format!(",{hop}")).unwrap_or_default();
        line.push_str(&format!(" slice.route={network}{via}"));
    }
    if let (Accel::Tcg, Some(khz)) = (machine.accel, machine.tsc_khz) {
        line.push_str(&format!(" tsc_early_khz={khz}"));
    }
    line
}

fn netmask(prefix_len: u8) -> Ipv4Addr {
    let host_bits = 32 - u32::from(prefix_len.min(32));
    Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0))
}

/// In QEMU's option lists a comma is written twice.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        assert_eq!(netmask(30), Ipv4Addr::new(255, 255, 255, 252));
        assert_eq!(netmask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
    }

    #[test]
    fn a_comma_in_a_path_starts_no_option() {
        assert_eq!(escape("/run/a,append=off"), "/run/a,,append=off");
    }
}
