//! Where the files of a VMM are.
//! Out of scope: their content.

use std::path::PathBuf;

use super::{BACK_END_RECORD, CONSOLE, Desired, INPUT, RECORD, STOPPING};
use crate::api::stage::Stage;
use crate::api::vm::{Hypervisor, Vm};
use crate::owner::RunDir;
use crate::reconcile::checkpoint;
use crate::store::World;
use crate::vmm::{Control, supports_serial_input};

/// The files of a VM's VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmmPaths {
    /// The directory that the VMM writes to.
    pub dir: PathBuf,
    /// The output of the guest and the VMM; `None` if the VM has no VMM.
    pub log: Option<PathBuf>,
    /// The control socket; `None` if the VM has no VMM.
    pub api_socket: Option<PathBuf>,
    /// The pipe to the serial input; `None` if the VMM does not support it.
    pub input: Option<PathBuf>,
}

impl VmmPaths {
    /// The paths of a VM.
    pub fn of(run_dir: &RunDir, world: &World, vm: &Vm) -> Self {
        let uid = vm.meta.uid;
        let process = checkpoint::vmm(world.status(uid, Stage::Vmm)).process;
        let dir = match (world.vmm_id(uid), process) {
            // Started by an earlier version.
            (None, Some(_)) => run_dir.vm_dir(uid),
            (Some(_), _) | (None, None) => run_dir.vmm_dir(uid),
        };
        let hypervisor = vm.spec.hypervisor;
        let has_vmm = hypervisor != Hypervisor::None;
        let control = Control::of(hypervisor);
        let has_input = supports_serial_input(hypervisor);
        Self {
            log: has_vmm.then(|| dir.join(CONSOLE)),
            api_socket: control.map(|control| dir.join(control.socket())),
            input: has_input.then(|| run_dir.vm_dir(uid).join(INPUT)),
            dir,
        }
    }
}

impl Desired {
    /// Path of the process record, next to the run directory.
    pub fn record(&self) -> PathBuf {
        self.dir.with_file_name(RECORD)
    }

    /// Path of the pipe to the serial input.
    pub(super) fn input(&self) -> PathBuf {
        self.dir.with_file_name(INPUT)
    }

    /// Path of the record of the process that handles the vsock device.
    pub(super) fn back_end_record(&self) -> PathBuf {
        self.dir.with_file_name(BACK_END_RECORD)
    }

    /// Path of the record of a stop.
    pub(super) fn stopping(&self) -> PathBuf {
        self.dir.with_file_name(STOPPING)
    }
}
