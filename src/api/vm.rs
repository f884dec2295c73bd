//! `Vm`: one microVM slot of a group. Written by the group's reconciler.
//! Out of scope: running VMs.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::life::Lifecycle;
use super::meta::{Meta, Name};
use super::network::NetworkSpec;
use super::on_demand::OnDemand;
use super::storage::Storage;

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Name (`<group>-<index>`, or any other for a VM made on demand), uid, generation.
    pub meta: Meta,
    /// The group it belongs to.
    pub group: Name,
    /// The index in the group; the first is 1. The index of a VM made on demand is higher than the maximum `count`
    /// (see [`super::host_group::MAX_COUNT`]).
    pub index: u32,
    /// The desired state.
    pub spec: VmSpec,
    /// The power state that the user requested. Persists across restarts of the daemon, and is reset when the VM is replaced.
    #[serde(default, skip_serializing_if = "Power::is_default")]
    pub power: Power,
    /// Set for a VM made on demand; `None` for a VM that `count` covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<Box<OnDemand>>,
}

/// The desired power state of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// Running, subject to its restart policy.
    #[default]
    Running,
    /// Paused.
    Paused,
    /// Stopped, with its index, network and disk kept.
    Stopped,
    /// Stopped and started again. Becomes `Running` when the VMM has exited.
    Restarting,
}

impl Power {
    /// Whether this is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Restarting => "restarting",
        })
    }
}

/// A power command for a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerCommand {
    /// Pause the VM.
    Pause,
    /// Resume a paused VM.
    Resume,
    /// Stop the VM, then start it.
    Restart,
    /// Stop the VM until it is started.
    Stop,
    /// Start the VM, for whatever reason it is stopped.
    Start,
}

/// The error for a text that is not a valid [`PowerCommand`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown power action \"{0}\": expected pause, resume, restart, stop or start")]
pub struct UnknownPowerAction(String);

impl fmt::Display for PowerCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Restart => "restart",
            Self::Stop => "stop",
            Self::Start => "start",
        })
    }
}

impl FromStr for PowerCommand {
    type Err = UnknownPowerAction;
    fn from_str(text: &str) -> Result<Self, UnknownPowerAction> {
        match text {
            "pause" => Ok(Self::Pause),
            "resume" => Ok(Self::Resume),
            "restart" => Ok(Self::Restart),
            "stop" => Ok(Self::Stop),
            "start" => Ok(Self::Start),
            _ => Err(UnknownPowerAction(text.to_owned())),
        }
    }
}

/// The desired state of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The VMM.
    pub hypervisor: Hypervisor,
    /// Virtual processors, 1 to 255.
    pub vcpu: u32,
    /// Memory, in bytes, a whole number of MiB.
    pub ram_bytes: u64,
    /// The kernel to boot: bzImage or an ELF with a PVH note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_file: Option<PathBuf>,
    /// Its initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_file: Option<PathBuf>,
    /// Name servers for the guest, at most two (the limit of `ip=`).
    #[serde(default)]
    pub dns_servers: Vec<Ipv4Addr>,
    /// Its disks.
    #[serde(default, skip_serializing_if = "Storage::is_default")]
    pub storage: Storage,
    /// How its VMM is started and stopped.
    #[serde(default, skip_serializing_if = "Lifecycle::is_default")]
    #[serde(rename = "life")]
    pub lifecycle: Lifecycle,
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
        probe == *other
    }
}

/// Which VMM runs a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
