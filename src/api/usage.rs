//! `Usage`: what a VM's VMM uses on the host.
//! Out of scope: the counters of VMMs (`metrics`), the guest.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::meta::Name;

/// The resources that the process of a VMM has used since its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// The VM.
    pub vm: Name,
    /// CPU time of all threads, in nanoseconds.
    pub cpu_ns: u64,
    /// Resident memory in bytes, with that of the guest.
    pub memory_bytes: u64,
    /// Bytes read from storage.
    pub disk_read_bytes: u64,
    /// Bytes written to storage, or to be written to it.
    pub disk_written_bytes: u64,
    /// The traffic of its TAP device; `None`: it has none, or it is not in the network namespace of the VMM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Traffic>,
}

/// Traffic of a guest, counted by the host since the TAP device was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// Bytes that the guest has received.
    pub received_bytes: u64,
    /// Bytes that the guest has sent.
    pub sent_bytes: u64,
}
