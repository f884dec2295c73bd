//! The disks of a VM: which it gets, or why it cannot have them.
//! Out of scope: creating and removing them ([`crate::reconcile::disk`]).

use std::path::Path;

use super::Processes;
use crate::api::meta::Name;
use crate::api::storage::Storage;
use crate::host::fs;
use crate::owner::{self, Label, Owner};
use crate::reconcile::disk;
use crate::reconcile::storage::{self, DiskContext, Disks};
use crate::vmm::inspect_blocking;

impl Processes {
    /// Returns the disks of a VM.
    ///
    /// # Errors
    /// The reason why it cannot have them, as text for users.
    pub async fn disks(
        &self,
        storage: &Storage,
        name: &Name,
        label: &Label,
    ) -> Result<Disks, String> {
        let running = self.running(owner::uid_of(label));
        let holder_pid = running.map(|running| running.pid);
        if storage.image.is_none() && storage.disks.is_empty() {
            return storage::disks(storage, &self.disk_context(name, label, holder_pid)?);
        }
        self.disks_blocking(storage, name, label, holder_pid, storage::disks)
            .await
    }

    /// Runs `look` on a thread that may block: an image may be on a file system with a server that does not respond.
    pub(super) async fn disks_blocking(
        &self,
        storage: &Storage,
        name: &Name,
        label: &Label,
        user: Option<u32>,
        inspect: fn(&Storage, &DiskContext<'_>) -> Result<Disks, String>,
    ) -> Result<Disks, String> {
        let boot = fs::boot_id().map_err(|error| error.to_string())?;
        let (dir, storage) = (self.disk_dir.clone(), storage.clone());
        let files = self.files.clone();
        let (name, label) = (name.clone(), label.clone());
        let key = format!("storage of {label} {storage:?}");
        inspect_blocking(key, move || {
            let context = DiskContext {
                dir: &dir,
                boot_id: boot,
                name: &name,
                label: &label,
                user,
                files: &files,
            };
            inspect(&storage, &context)
        })
        .await
    }

    fn disk_context<'a>(
        &'a self,
        name: &'a Name,
        label: &'a Label,
        user: Option<u32>,
    ) -> Result<DiskContext<'a>, String> {
        Ok(DiskContext {
            dir: &self.disk_dir,
            boot_id: fs::boot_id().map_err(|error| error.to_string())?,
            name,
            label,
            user,
            files: &self.files,
        })
    }

    /// The desired state without a disk. None: the label is not that of a VM.
    pub fn no_disk(&self, label: &Label) -> Option<disk::Desired> {
        let Owner::Vm { name, .. } = &label.owner else {
            return None;
        };
        let context = DiskContext {
            dir: &self.disk_dir,
            boot_id: "",
            name,
            label,
            user: None,
            files: &self.files,
        };
        Some(context.nothing())
    }

    /// `<state>/disks`.
    pub fn disk_dir(&self) -> &Path {
        &self.disk_dir
    }
}
