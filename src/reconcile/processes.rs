//! The VMMs of all VMs: what this host can do for one, and who is told when one ends.
//! Not here: starting and stopping (the Vmm rung).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::disk;
use super::engine::Key;
use super::storage::{self, Disks, Whose};
use super::vmm::{self, Desired, Machine, Slot, Vmm};
use crate::api::meta::{Name, Uid};
use crate::api::network::Connection;
use crate::api::storage::Storage;
use crate::api::vm::{Hypervisor, VmSpec};
use crate::host::fs;
use crate::host::process::Identity;
use crate::owner::{self, Label, Owner, RunDir};
use crate::runtime::controller::Waker;

/// One for the daemon.
pub struct Processes {
    /// The rung.
    pub rung: Vmm,
    run_dir: RunDir,
    disk_dir: PathBuf,
    waker: Waker<Key>,
    machine: OnceCell<Machine>,
    watches: Mutex<HashMap<Uid, Watch>>,
}

struct Watch {
    identity: Identity,
    _task: AbortOnDropHandle<()>,
}

impl Processes {
    /// None is known yet. Their disks lie in `disk_dir`.
    pub fn new(run_dir: RunDir, disk_dir: PathBuf, waker: Waker<Key>) -> Self {
        Self {
            rung: Vmm::default(),
            run_dir,
            disk_dir,
            waker,
            machine: OnceCell::new(),
            watches: Mutex::default(),
        }
    }

    /// What is to run for a VM.
    ///
    /// # Errors
    /// Why this host cannot run it, in words.
    pub async fn desired(
        &self,
        spec: &VmSpec,
        name: &Name,
        label: &Label,
        connection: &Connection,
        disks: &Disks,
    ) -> Result<Desired, String> {
        let nothing = self.nothing(label);
        let kernel = match (spec.hypervisor, &spec.kernel_file) {
            (Hypervisor::None, _) => return Ok(nothing),
            (Hypervisor::Qemu, None) => {
                return Err("hypervisor qemu needs a `kernel_file`".to_owned());
            }
            (Hypervisor::Qemu, Some(kernel)) => kernel,
        };
        let files = [Some(kernel), spec.initrd_file.as_ref()];
        if let Some(missing) = files.into_iter().flatten().find(|file| !file.is_file()) {
            return Err(format!("{} is no file on this host", missing.display()));
        }
        let probe = || Machine::probe(&self.run_dir.0, kernel);
        let machine = self.machine.get_or_try_init(probe).await;
        let machine = machine.map_err(|error| error.to_string())?;
        let slot = Slot {
            name: name.clone(),
            dir: nothing.dir.clone(),
            connection: connection.clone(),
            disks: disks.all.clone(),
        };
        let want = vmm::recipe(spec, &slot, machine).map_err(|unfit| unfit.to_string())?;
        Ok(Desired {
            want,
            disks: disks.all.clone(),
            ..nothing
        })
    }

    /// Nothing may run.
    pub fn nothing(&self, label: &Label) -> Desired {
        let uid = owner::uid_of(label);
        Desired {
            label: label.clone(),
            uid,
            dir: self.run_dir.vm_dir(uid),
            want: None,
            disks: Vec::new(),
        }
    }

    /// Which disks a VM is to have.
    ///
    /// # Errors
    /// Why it cannot have them, in words.
    pub fn disks(&self, storage: &Storage, name: &Name, label: &Label) -> Result<Disks, String> {
        let boot = fs::boot_id().map_err(|error| error.to_string())?;
        let dir = &self.disk_dir;
        let whose = Whose {
            dir,
            boot,
            name,
            label,
        };
        storage::disks(storage, &whose)
    }

    /// No disk is wanted any more. None: the label is no VM's.
    pub fn no_disk(&self, label: &Label) -> Option<disk::Desired> {
        let Owner::Vm { name, .. } = &label.owner else {
            return None;
        };
        let whose = Whose {
            dir: &self.disk_dir,
            boot: "",
            name,
            label,
        };
        Some(whose.nothing())
    }

    /// `<state>/disks`.
    pub fn disk_dir(&self) -> &Path {
        &self.disk_dir
    }

    /// Tells the VM's key when this process ends. Watching the one that is watched already changes nothing.
    pub fn watch(&self, uid: Uid, identity: Option<&Identity>) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(identity) = identity else {
            watches.remove(&uid);
            return;
        };
        if watches.get(&uid).is_some_and(|w| w.identity == *identity) {
            return;
        }
        let (waker, dir, watched) = (
            self.waker.clone(),
            self.run_dir.vm_dir(uid),
            identity.clone(),
        );
        let task = tokio::spawn(async move {
            if let Err(error) = vmm::watch(&watched, &dir).await {
                debug!(%uid, %error, "a VMM cannot be watched");
            }
            waker.nudge(Key::Vm(uid));
        });
        let watch = Watch {
            identity: identity.clone(),
            _task: AbortOnDropHandle::new(task),
        };
        watches.insert(uid, watch);
    }
}
