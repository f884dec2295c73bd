//! `Vm`: one microVM slot of a group. Written by the group's reconciler.
//! Out of scope: how one is run.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::life::Life;
use super::meta::{Meta, Name};
use super::network::NetworkSpec;
use super::on_demand::OnDemand;
use super::storage::Storage;

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Name (`<group>-<index>`; of one made on demand, any other), uid, generation.
    pub meta: Meta,
    /// The group it belongs to.
    pub group: Name,
    /// Its place in the group, from 1; that of one made on demand lies past all that `count` may reach
    /// (see [`super::host_group::MAX_COUNT`]).
    pub index: u32,
    /// What is wanted.
    pub spec: VmSpec,
    /// What a person has said it is to do since. Outlives restarts of the daemon; a VM that is replaced begins anew.
    #[serde(default, skip_serializing_if = "Power::is_default")]
    pub power: Power,
    /// None: it is one of those that `count` makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<Box<OnDemand>>,
}

/// What a VM is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// To run, as far as its restart policy lets it.
    #[default]
    Running,
    /// To be held where it is.
    Paused,
    /// To be down, and to keep its place, its network and its disk.
    Stopped,
    /// To be stopped, and to run again then. Becomes `Running` when nothing runs any more.
    Restarting,
}

impl Power {
    /// Nobody has said anything.
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

/// What a person may tell a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerVerb {
    /// Hold it where it is.
    Pause,
    /// Let it go on.
    Resume,
    /// Stop it, then start it.
    Restart,
    /// Take it down; it stays down until it is started.
    Stop,
    /// Start it, whatever has kept it down.
    Start,
}

/// A text that is no [`PowerVerb`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is nothing a VM can be told: expected pause, resume, restart, stop or start")]
pub struct UnknownVerb(String);

impl fmt::Display for PowerVerb {
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

impl FromStr for PowerVerb {
    type Err = UnknownVerb;
    fn from_str(text: &str) -> Result<Self, UnknownVerb> {
        match text {
            "pause" => Ok(Self::Pause),
            "resume" => Ok(Self::Resume),
            "restart" => Ok(Self::Restart),
            "stop" => Ok(Self::Stop),
            "start" => Ok(Self::Start),
            _ => Err(UnknownVerb(text.to_owned())),
        }
    }
}

/// What a VM is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Who runs it.
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
    /// Handed to the guest, at most what `ip=` carries: two.
    #[serde(default)]
    pub dns_servers: Vec<Ipv4Addr>,
    /// Its disks.
    #[serde(default, skip_serializing_if = "Storage::is_default")]
    pub storage: Storage,
    /// How its VMM is started and stopped.
    #[serde(default, skip_serializing_if = "Life::is_default")]
    pub life: Life,
    /// Its data path.
    pub network: NetworkSpec,
}

impl VmSpec {
    /// Whether a VM that runs `self` becomes `other` without being replaced:
    /// only what its network and its life take over live differs.
    pub fn changes_live_to(&self, other: &Self) -> bool {
        let mut probe = self.clone();
        probe.network.change_live_to(&other.network);
        probe.life.change_live_to(&other.life);
        probe == *other
    }
}

/// Which VMM runs a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hypervisor {
    /// The slot is prepared and nothing is started: bring your own VMM.
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
