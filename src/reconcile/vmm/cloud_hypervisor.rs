//! Cloud Hypervisor 38 and newer. Pure.
//! Out of scope: other VMMs; starting it.
//!
//! # Why these arguments
//! - With a kernel on its command line it boots at once, and ends with the reason if it cannot.
//! - `num_queues=2` is one pair, one for each direction: our TAPs have a single queue.
//! - `--serial tty` is its standard output, the console file; it would truncate a separate file at every reboot of the guest.
//! - No `mtu=`: it would set the MTU of the TAP, and a guest gets the MTU of the TAP anyway.
//! - `image_type` since 51. Before that the format is guessed: a guest could turn its raw disk into an image whose backing file is a
//!   file of the host.

use std::path::Path;

use super::cmdline::{self, Own};
use super::recipe::{Access, Disk, Launch, Slot, Sys, Unfit};
use super::{Control, Program, VSOCK, Version};
use crate::api::vm::VmSpec;

/// The first version with a parameter for a disk's format.
const TOLD_FORMATS: Version = Version::new(51, 0);
/// The first version that assigns no address to a TAP unless configured to. Earlier ones do so unless they find the TAP in `/sys`.
const NO_OWN_ADDRESS: Version = Version::new(49, 0);
/// Its limit (formerly `MAX_SUPPORTED_CPUS`).
const MOST_VCPUS: u32 = 254;

pub(super) fn recipe(spec: &VmSpec, slot: &Slot, program: &Program) -> Result<Launch, Unfit> {
    let connection = &slot.connection;
    match (&connection.netns, slot.sys) {
        (Some(_), Sys::Host) if program.version < NO_OWN_ADDRESS => {
            return Err(Unfit::OwnAddress(program.version));
        }
        (Some(_) | None, Sys::Host | Sys::Own) => {}
    }
    if spec.vcpu > MOST_VCPUS {
        return Err(Unfit::Processors {
            hypervisor: spec.hypervisor,
            most: MOST_VCPUS,
        });
    }
    let kernel = slot.kernel(spec)?;
    let own = Own {
        words: "reboot=k".to_owned(),
        reserved: 0,
    };
    let line = cmdline::command_line(spec, slot, &own)?;
    let mut argv = vec![program.path.display().to_string()];
    let mut say = |option: &str, value: String| argv.extend([option.to_owned(), value]);
    let socket = Control::CloudHypervisor.socket();
    say("--api-socket", format!("path={socket}"));
    say("--cpus", format!("boot={}", spec.vcpu));
    say("--memory", format!("size={}M", spec.ram_bytes >> 20));
    say("--kernel", kernel.display().to_string());
    if let Some(initrd) = &spec.initrd_file {
        say("--initramfs", initrd.display().to_string());
    }
    say("--cmdline", line);
    let (tap, mac) = (&connection.tap, connection.mac);
    say(
        "--net",
        format!("tap={tap},mac={mac},num_queues=2,queue_size=256"),
    );
    say("--rng", "src=/dev/urandom".to_owned());
    say("--serial", "tty".to_owned());
    say("--console", "off".to_owned());
    say("--vsock", format!("cid=3,socket={VSOCK}"));
    // One option with several values.
    if !slot.disks.is_empty() {
        argv.push("--disk".to_owned());
    }
    for disk in &slot.disks {
        argv.push(disk_words(spec, disk, program.version)?);
    }
    Ok(Launch::new(argv, slot))
}

fn disk_words(spec: &VmSpec, disk: &Disk, version: Version) -> Result<String, Unfit> {
    let path = plain(spec, &disk.path)?;
    let read_only = match disk.access {
        Access::ReadOnly => "on",
        Access::ReadWrite => "off",
    };
    match (disk.access, version >= TOLD_FORMATS) {
        (Access::ReadWrite, false) => Err(Unfit::GuessedFormat(version)),
        (Access::ReadOnly, false) => Ok(format!("path={path},readonly={read_only}")),
        (_, true) => Ok(format!("path={path},readonly={read_only},image_type=raw")),
    }
}

/// Its option lists use quotes and brackets as syntax and cannot escape them.
fn plain(spec: &VmSpec, path: &Path) -> Result<String, Unfit> {
    let text = path.display().to_string();
    match text.contains([',', '"', '[', ']']) {
        false => Ok(text),
        true => Err(Unfit::Path {
            hypervisor: spec.hypervisor,
            path: path.to_owned(),
        }),
    }
}
