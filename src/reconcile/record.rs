//! The record in a VM's run directory, with which a daemon that has lost its state can adopt the VM.
//! Out of scope: writing it (the Net stage), reading it back into the store ([`super::adopt`]).

use serde::{Deserialize, Serialize};

use crate::api::host_group::{Origin, UpdatePolicy};
use crate::api::lease::Lease;
use crate::api::vm::Vm;

/// One VM, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The boot it was written in (`/proc/sys/kernel/random/boot_id`); another one means that nothing of it is left.
    pub boot_id: String,
    /// Where its group came from.
    pub origin: Origin,
    /// How its group is updated.
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
