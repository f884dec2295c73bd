//! `new`: the kernel and initrd to use if none is given, and the lines that name them.
//! Out of scope: whether they boot.

use std::path::{Path, PathBuf};

use super::super::failure::{Failure, note};
use super::super::yaml;
use super::text::YamlText;
use super::{NewArgs, Vmm};
use crate::api::allowed::{AllowedDirectories, directories};

/// The directories of images, as for `sliced`.
const DIRECTORIES: &str = "SLICE_IMAGES";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.img";

/// Sets the kernel and the initrd that are in a directory of images, unless the user starts the VMM or names a kernel.
pub fn find_files(args: &mut NewArgs) {
    if args.kernel_file.is_some() || args.hypervisor == Some(Vmm::None) {
        return;
    }
    let dirs = image_directories();
    let file = |dir: &PathBuf, name: &str| Some(dir.join(name)).filter(|path| path.is_file());
    let found = dirs
        .iter()
        .find_map(|dir| Some((file(dir, KERNEL)?, file(dir, INITRD))));
    match found {
        Some((kernel, initrd)) => {
            args.kernel_file = Some(kernel);
            args.initrd_file = initrd;
        }
        None if args.hypervisor.is_none() => {
            let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
            note(&format!(
                "note: no {KERNEL} in {}: the VMs are empty slots (hypervisor: none); --kernel-file sets a kernel",
                dirs.join(", ")
            ));
        }
        None => {}
    }
}

fn image_directories() -> Vec<PathBuf> {
    let set = std::env::var(DIRECTORIES).ok();
    let set = set.and_then(|text| directories(&text).ok());
    set.unwrap_or_else(|| AllowedDirectories::default().images)
}

/// `hypervisor:`, `kernel_file:` and `initrd_file:` of `config:`.
pub fn write(text: &mut YamlText, args: &NewArgs) -> Result<(), Failure> {
    const NO_VMM: &str = "you start the VMM yourself";
    match (args.hypervisor, &args.kernel_file) {
        (Some(Vmm::Qemu), _) => text.line(1, "hypervisor: qemu"),
        (Some(Vmm::Firecracker), _) => text.line(1, "hypervisor: firecracker"),
        (Some(Vmm::CloudHypervisor), _) => text.line(1, "hypervisor: cloud-hypervisor"),
        (Some(Vmm::None), _) => text.note(1, "hypervisor: none", NO_VMM),
        (None, Some(_)) => {
            let comment = format!("or cloud-hypervisor, none ({NO_VMM}); default: qemu");
            text.note(1, "# hypervisor: firecracker", &comment);
        }
        (None, None) => {
            let why = format!("or firecracker, cloud-hypervisor; default: none, {NO_VMM}");
            text.note(1, "# hypervisor: qemu", &why);
        }
    }
    match &args.kernel_file {
        None => text.line(1, "# kernel_file: /var/lib/slice/images/vmlinuz"),
        Some(path) => text.line(1, &format!("kernel_file: {}", scalar(path)?)),
    }
    match &args.initrd_file {
        None => text.line(1, "# initrd_file: /var/lib/slice/images/initrd.img"),
        Some(path) => text.line(1, &format!("initrd_file: {}", scalar(path)?)),
    }
    Ok(())
}

fn scalar(path: &Path) -> Result<String, Failure> {
    yaml::scalar(&path.to_string_lossy())
}
