//! The files that a VM needs: which it boots from, and which its VMM opens.
//! Out of scope: its disks (`disks`); opening files ([`crate::vmm::FileAccess`]).

use std::path::{Path, PathBuf};

use super::Processes;
use crate::api::guest_access::Agent;
use crate::api::vm::VmSpec;
use crate::reconcile::vmm::{Confined, Injected};
use crate::vmm::{Access, Disk, Slot};

impl Processes {
    pub(super) async fn check_boot_files(
        &self,
        spec: &VmSpec,
        kernel: &Path,
    ) -> Result<(), String> {
        match spec.guest_access.agent {
            Agent::Inject => self.files.check_agent().await?,
            Agent::Baked | Agent::None => {}
        }
        let files = [Some(kernel), spec.initrd_file.as_deref()];
        self.files.check_boot_files(files).await
    }

    pub(super) async fn check_readable(
        &self,
        files: impl Iterator<Item = Disk>,
    ) -> Result<(), String> {
        self.files.check_readable(files.collect()).await
    }
}

/// The kernel of a VM.
pub(super) fn kernel(spec: &VmSpec) -> Result<&Path, String> {
    let hypervisor = spec.hypervisor;
    let kernel = spec.kernel_file.as_deref();
    kernel.ok_or_else(|| format!("hypervisor {hypervisor} needs a `kernel_file`"))
}

/// The host resources of a VMM.
pub(super) fn confined(spec: &VmSpec, slot: &Slot, user: u32) -> Confined {
    Confined {
        user,
        vcpu: spec.vcpu,
        ram_bytes: spec.ram_bytes,
        injected: injected(spec, slot),
        files: opened_files(spec, slot),
    }
}

/// The initrd with `slice-agent` of a VM that has one.
fn injected(spec: &VmSpec, slot: &Slot) -> Option<Injected> {
    match spec.guest_access.agent {
        Agent::Inject => Some(Injected {
            path: slot.injected_initrd(),
            initrd: spec.initrd_file.clone(),
        }),
        Agent::Baked | Agent::None => None,
    }
}

/// The files of users that a VMM opens. It does not open an initrd that is a part of another one.
fn opened_files(spec: &VmSpec, slot: &Slot) -> Vec<Disk> {
    let files = user_files(spec, &slot.disks);
    match spec.guest_access.agent {
        Agent::Inject => files
            .filter(|file| spec.initrd_file.as_ref() != Some(&file.path))
            .collect(),
        Agent::Baked | Agent::None => files.collect(),
    }
}

/// The files of users that a VM needs.
pub(super) fn user_files<'a>(
    spec: &'a VmSpec,
    disks: &'a [Disk],
) -> impl Iterator<Item = Disk> + 'a {
    let read_only = |path: &PathBuf| Disk {
        path: path.clone(),
        access: Access::ReadOnly,
    };
    let boot = spec
        .kernel_file
        .iter()
        .chain(&spec.initrd_file)
        .map(read_only);
    boot.chain(disks.iter().cloned())
}
