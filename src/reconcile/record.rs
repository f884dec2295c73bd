//! The record in a VM's run directory, from which a daemon that has lost its state adopts the VM.
//! Out of scope: writing it (the Net stage), restoring it to the store (`engine::adopt`).

use serde::{Deserialize, Serialize};

use crate::api::host_group::{Origin, UpdatePolicy};
use crate::api::lease::Lease;
use crate::api::vm::Vm;

/// Everything that is needed to restore a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The boot it was written in (`/proc/sys/kernel/random/boot_id`). After another boot nothing of the VM is left on the host.
    pub boot_id: String,
    /// The origin of its group.
    pub origin: Origin,
    /// The update policy of its group.
    pub update: UpdatePolicy,
    /// The VM.
    pub vm: Vm,
    /// Its lease; none in CNI mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The user that its VMM runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_id: Option<u32>,
}
