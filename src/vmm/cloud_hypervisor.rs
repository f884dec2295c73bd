//! Cloud Hypervisor 38 and newer. Pure.
//! Out of scope: other VMMs; starting it.
//!
//! # Why these arguments
//! - With a kernel on its command line it boots at once, and ends with the reason if it cannot.
//! - `num_queues=2` is one pair, one for each direction: our TAPs have a single queue.
//! - `--serial tty` is its standard output, the console file; it would truncate a separate file at every reboot of the guest.
//! - No `mtu=`: it would set the MTU of the TAP, and a guest gets the MTU of the TAP anyway.
//! - `image_type` since 51. Before that the format is guessed: a guest could turn its raw disk into an image with a backing file that is a
//!   file of the host.

use std::path::Path;

use super::cmdline::{self, VmmParameters};
use super::recipe::{Access, Disk, Launch, RecipeError, Slot, Sys};
use super::{Control, Program, VSOCK, Version};
use crate::api::vm::VmSpec;

/// The first version with a parameter for a disk's format.
const IMAGE_TYPE: Version = Version::new(51, 0);
/// The first version that assigns no address to a TAP unless configured to. Earlier ones do so unless they find the TAP in `/sys`.
const NO_OWN_ADDRESS: Version = Version::new(49, 0);
/// Its limit (formerly `MAX_SUPPORTED_CPUS`).
const MOST_VCPUS: u32 = 254;

pub(super) fn recipe(spec: &VmSpec, slot: &Slot, program: &Program) -> Result<Launch, RecipeError> {
    let connection = &slot.connection;
    match (&connection.netns, slot.sys) {
        (Some(_), Sys::Host) if program.version < NO_OWN_ADDRESS => {
            return Err(RecipeError::OwnAddress(program.version));
        }
        (Some(_) | None, Sys::Host | Sys::Own) => {}
    }
    if spec.vcpu > MOST_VCPUS {
        return Err(RecipeError::TooManyVcpus {
            hypervisor: spec.hypervisor,
            max: MOST_VCPUS,
        });
    }
    let kernel = slot.kernel(spec)?;
    let own = VmmParameters {
        parameters: "reboot=k".to_owned(),
        reserved: 0,
    };
    let line = cmdline::command_line(spec, slot, &own)?;
    let mut argv = vec![program.path.display().to_string()];
    let mut add = |option: &str, value: String| argv.extend([option.to_owned(), value]);
    let socket = Control::CloudHypervisor.socket();
    add("--api-socket", format!("path={socket}"));
    add("--cpus", format!("boot={}", spec.vcpu));
    add("--memory", format!("size={}M", spec.ram_bytes >> 20));
    add("--kernel", kernel.display().to_string());
    if let Some(initrd) = slot.initrd(spec) {
        add("--initramfs", initrd.display().to_string());
    }
    add("--cmdline", line);
    let (tap, mac) = (&connection.tap, connection.mac);
    add(
        "--net",
        format!("tap={tap},mac={mac},num_queues=2,queue_size=256"),
    );
    add("--rng", "src=/dev/urandom".to_owned());
    add("--serial", "tty".to_owned());
    add("--console", "off".to_owned());
    if spec.guest_access.vsock {
        add("--vsock", format!("cid=3,socket={VSOCK}"));
    }
    // One option with several values.
    if !slot.disks.is_empty() {
        argv.push("--disk".to_owned());
    }
    for disk in &slot.disks {
        argv.push(disk_argument(spec, disk, program.version)?);
    }
    Ok(Launch::new(argv, slot))
}

fn disk_argument(spec: &VmSpec, disk: &Disk, version: Version) -> Result<String, RecipeError> {
    let path = checked_path(spec, &disk.path)?;
    let read_only = match disk.access {
        Access::ReadOnly => "on",
        Access::ReadWrite => "off",
    };
    match (disk.access, version >= IMAGE_TYPE) {
        (Access::ReadWrite, false) => Err(RecipeError::GuessedFormat(version)),
        (Access::ReadOnly, false) => Ok(format!("path={path},readonly={read_only}")),
        (_, true) => Ok(format!("path={path},readonly={read_only},image_type=raw")),
    }
}

/// Its option lists use quotes and brackets as syntax and cannot escape them.
fn checked_path(spec: &VmSpec, path: &Path) -> Result<String, RecipeError> {
    let text = path.display().to_string();
    match text.contains([',', '"', '[', ']']) {
        false => Ok(text),
        true => Err(RecipeError::Path {
            hypervisor: spec.hypervisor,
            path: path.to_owned(),
        }),
    }
}
