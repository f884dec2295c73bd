//! Firecracker 1.10 and newer. Pure.
//! Out of scope: other VMMs; starting it.
//!
//! # Why these arguments
//! - A single spawn is sufficient: `--config-file` together with `--api-sock` boots at once and keeps the API available. A crash of the
//!   daemon cannot leave a half-configured VM.
//! - It rejects a configuration with an unknown field, so a field is written only for a version that has it
//!   (`src/firecracker/swagger/firecracker.yaml` at each release's tag).
//! - No disk is its root device: it would append its own `root=` after the user's. Drives become `/dev/vda`, … in their order.
//! - Log and serial console both go to its standard output, the console file: with separate paths they would be overwritten from the
//!   start by every run. Metrics go into a pipe: a file could not be rotated; a pipe is bounded, and a full one is skipped.
//! - `--level Error`: its warnings do not help a user who reads the last output of the guest (each API request causes a warning about a
//!   spurious notification), and would displace that output. The reasons of failures are logged as errors.
//! - `reboot=k`: a reset through the keyboard controller is the only way in which a guest can end Firecracker.
//! - It appends `pci=off` itself since 1.13; a duplicate is harmless.

use std::path::PathBuf;

use serde::Serialize;

use super::cmdline::{self, VmmParameters};
use super::jailer;
use super::recipe::{Access, Disk, Launch, NewFile, RecipeError, Slot};
use super::{CONFIG, Control, METRICS, Program, VSOCK, Version};
use crate::api::network::Mac;
use crate::api::vm::VmSpec;

/// The first version that reports the MTU to the guest.
const REPORTS_MTU: Version = Version::new(1, 16);
/// Its limit (`MAX_SUPPORTED_VCPUS`).
const MAX_VCPUS: u32 = 32;
/// Bytes; the default of a guest.
const ETHERNET_MTU: u32 = 1500;
/// Maximum number of bytes that it appends to the command line for each device: ` virtio_mmio.device=4K@0xc0001000:10`.
const DEVICE_BYTES: usize = 40;
/// Bytes that it always appends: ` pci=off`.
const OTHER_BYTES: usize = 8;
/// Network card, entropy, vsock.
const OTHER_DEVICES: usize = 3;

pub(super) fn recipe(spec: &VmSpec, slot: &Slot, program: &Program) -> Result<Launch, RecipeError> {
    if spec.vcpu > MAX_VCPUS {
        return Err(RecipeError::TooManyVcpus {
            hypervisor: spec.hypervisor,
            max: MAX_VCPUS,
        });
    }
    let mut argv = vec![program.path.display().to_string()];
    let path = |name: &str| jailer::path_in_vmm(&slot.confined_by, name);
    for (option, value) in [
        ("--id", slot.name.to_string()),
        ("--api-sock", path(Control::Firecracker.socket())),
        ("--config-file", path(CONFIG)),
        ("--level", "Error".to_owned()),
    ] {
        argv.extend([option.to_owned(), value]);
    }
    let mut launch = Launch::new(argv, slot);
    launch.pipes.push(METRICS.to_owned());
    launch.files.push(NewFile {
        name: CONFIG.to_owned(),
        text: format!("{:#}\n", serde_json::json!(config(spec, slot, program)?)),
    });
    Ok(launch)
}

/// The file that `--config-file` names (docs/getting-started.md of its sources, `VmmConfig`).
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Config {
    machine_config: MachineConfig,
    boot_source: BootSource,
    /// Required even if empty.
    drives: Vec<Drive>,
    network_interfaces: [NetworkInterface; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    vsock: Option<Vsock>,
    entropy: Entropy,
    metrics: Metrics,
}

#[derive(Serialize)]
struct MachineConfig {
    vcpu_count: u32,
    mem_size_mib: u64,
}

#[derive(Serialize)]
struct BootSource {
    kernel_image_path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    initrd_path: Option<PathBuf>,
    boot_args: String,
}

#[derive(Serialize)]
struct Drive {
    drive_id: String,
    path_on_host: PathBuf,
    is_root_device: bool,
    is_read_only: bool,
    cache_type: CacheType,
}

#[derive(Serialize)]
enum CacheType {
    /// A flush of the guest is executed. The default ignores it.
    Writeback,
}

#[derive(Serialize)]
struct NetworkInterface {
    iface_id: &'static str,
    host_dev_name: String,
    guest_mac: Mac,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
}

#[derive(Serialize)]
struct Vsock {
    /// The address of the guest; it has no meaning on the host.
    guest_cid: u32,
    uds_path: String,
}

#[derive(Serialize)]
struct Entropy {}

#[derive(Serialize)]
struct Metrics {
    metrics_path: String,
}

fn config(spec: &VmSpec, slot: &Slot, program: &Program) -> Result<Config, RecipeError> {
    let connection = &slot.connection;
    let mtu = (connection.mtu != ETHERNET_MTU).then_some(connection.mtu);
    let config_mtu = mtu.filter(|_| program.version >= REPORTS_MTU);
    let mut parameters = "reboot=k pci=off i8042.noaux i8042.nomux i8042.dumbkbd".to_owned();
    if let (Some(mtu), None) = (mtu, config_mtu) {
        parameters.push_str(&format!(" slice.mtu={mtu}"));
    }
    let reserved = OTHER_BYTES + DEVICE_BYTES * (OTHER_DEVICES + slot.disks.len());
    Ok(Config {
        machine_config: MachineConfig {
            vcpu_count: spec.vcpu,
            mem_size_mib: spec.ram_bytes >> 20,
        },
        boot_source: BootSource {
            kernel_image_path: slot.kernel(spec)?.to_owned(),
            initrd_path: slot.initrd(spec),
            boot_args: cmdline::command_line(
                spec,
                slot,
                &VmmParameters {
                    parameters,
                    reserved,
                },
            )?,
        },
        drives: slot.disks.iter().enumerate().map(drive).collect(),
        network_interfaces: [NetworkInterface {
            iface_id: "eth0",
            host_dev_name: connection.tap.clone(),
            guest_mac: connection.mac,
            mtu: config_mtu,
        }],
        vsock: spec.guest_access.vsock.then(|| Vsock {
            guest_cid: 3,
            uds_path: jailer::path_in_vmm(&slot.confined_by, VSOCK),
        }),
        entropy: Entropy {},
        metrics: Metrics {
            metrics_path: jailer::path_in_vmm(&slot.confined_by, METRICS),
        },
    })
}

fn drive((place, disk): (usize, &Disk)) -> Drive {
    Drive {
        drive_id: format!("disk{place}"),
        path_on_host: disk.path.clone(),
        is_root_device: false,
        is_read_only: match disk.access {
            Access::ReadOnly => true,
            Access::ReadWrite => false,
        },
        cache_type: CacheType::Writeback,
    }
}
