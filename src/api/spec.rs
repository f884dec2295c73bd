//! `VmSpec`: the desired state of a VM, and the template of a group.
//! Out of scope: identity and power state ([`super::vm`]).

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::guest_access::GuestAccess;
use super::life::Lifecycle;
use super::network::NetworkSpec;
use super::storage::Storage;

/// The desired state of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmSpec {
    /// The VMM.
    pub hypervisor: Hypervisor,
    /// Virtual processors, 1 to 255.
    pub vcpu: u32,
    /// Memory, in bytes, a whole number of MiB.
    pub ram_bytes: u64,
    /// The kernel to boot: bzImage or an ELF with a PVH note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub kernel_file: Option<PathBuf>,
    /// Its initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub initrd_file: Option<PathBuf>,
    /// Name servers for the guest, at most two (the limit of `ip=`).
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub dns_servers: Vec<Ipv4Addr>,
    /// Its disks.
    #[serde(default, skip_serializing_if = "Storage::is_default")]
    pub storage: Storage,
    /// How its VMM is started and stopped.
    #[serde(default, skip_serializing_if = "Lifecycle::is_default")]
    #[serde(rename = "life")]
    pub lifecycle: Lifecycle,
    /// How the host can access its guest.
    #[serde(default, skip_serializing_if = "GuestAccess::is_default")]
    pub guest_access: GuestAccess,
    /// Its data path.
    pub network: NetworkSpec,
}

impl VmSpec {
    /// Whether a running VM with the spec `self` can be changed to `other` without a replacement: they differ only in settings that can
    /// change live.
    pub fn can_change_live_to(&self, other: &Self) -> bool {
        let mut probe = self.clone();
        probe.network.apply_live_changes(&other.network);
        probe.lifecycle.apply_live_changes(&other.lifecycle);
        probe.guest_access.apply_live_changes(&other.guest_access);
        probe == *other
    }
}

/// Which VMM runs a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Hypervisor {
    /// The network and disks are prepared, and the user starts a VMM.
    None,
    /// `qemu-system-x86_64`.
    Qemu,
    /// `firecracker`.
    Firecracker,
    /// `cloud-hypervisor`.
    CloudHypervisor,
}

impl fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
        })
    }
}
