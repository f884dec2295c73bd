//! `Vm`: one microVM slot of a group. Written by the group's reconciler.
//! Out of scope: running VMs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::fleet::FleetVm;
use super::life::ExitPolicy;
use super::meta::{Meta, Name};
use super::on_demand::OnDemand;

pub use super::spec::{Hypervisor, VmSpec};

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Name (`<group>-<index>`, or any other for a VM made on demand), uid, generation.
    pub meta: Meta,
    /// The group it belongs to.
    pub group: Name,
    /// The index in the group; the first is 1. The index of a VM made on demand is higher than the maximum `count`
    /// (see [`super::host_group::MAX_COUNT`]), and that of a VM of a fleet is its index there.
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

impl Vm {
    /// What a VM of a fleet stores in addition.
    pub fn fleet(&self) -> Option<&FleetVm> {
        self.on_demand.as_ref()?.fleet.as_deref()
    }

    /// What happens when its VMM exits without being stopped.
    pub fn exit_policy(&self) -> ExitPolicy {
        let on_demand = self.on_demand.as_ref();
        ExitPolicy {
            restart: self.spec.lifecycle.restart,
            delete_on_exit: on_demand.is_some_and(|made| made.overrides.delete_on_exit),
        }
    }
}

/// The desired power state of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
