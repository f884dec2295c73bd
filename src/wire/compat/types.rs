//! Bodies of responses.
//! Out of scope: those of agents ([`crate::guest::protocol`]).

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::api::meta::Timestamp;
use crate::api::node::Node;
use crate::api::view::VmmState;
use crate::guest::protocol::Stats;

/// The architecture of the host, by the name that Go gives it.
pub(super) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `GET /info`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Info {
    /// The version of the daemon.
    pub(super) version: &'static str,
    /// The commit it was built from; `unknown` if the build does not know it.
    pub(super) git_commit: &'static str,
    /// `linux`.
    pub(super) platform: &'static str,
    /// `amd64` or `arm64`.
    pub(super) arch: &'static str,
}

/// A group.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GroupEntry {
    /// Its name.
    #[schema(example = "sbox")]
    pub(super) name: String,
    /// The number of VMs that the group keeps; those that requests create are not counted.
    pub(super) count: u32,
    /// The memory of a VM, and the limit for requests, in bytes.
    pub(super) ram_bytes: u64,
    /// The CPUs of a VM, and the limit for requests.
    pub(super) cpus: u32,
    /// 0.
    pub(super) gpu_count: u32,
    /// `amd64` or `arm64`.
    pub(super) arch: &'static str,
}

/// The state of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) enum NodeStatus {
    /// Its VMM runs, or is being started.
    Running,
    /// Its guest is paused.
    Paused,
    /// Its VMM has ended.
    Stopped,
}

impl NodeStatus {
    fn of(state: VmmState) -> Self {
        match state {
            VmmState::Starting | VmmState::Running | VmmState::Stopping | VmmState::None => {
                Self::Running
            }
            VmmState::Paused => Self::Paused,
            VmmState::Stopped | VmmState::Failed => Self::Stopped,
        }
    }
}

/// A VM in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NodeEntry {
    /// Its name.
    #[schema(example = "sbox-x4k2p")]
    pub(super) hostname: String,
    /// Its group.
    pub(super) hostgroup: String,
    /// Its address without a prefix length; empty before it has one.
    #[schema(example = "169.254.100.2")]
    pub(super) ip: String,
    /// Memory in bytes.
    pub(super) ram_bytes: u64,
    /// CPUs.
    pub(super) cpus: u32,
    /// When it was created.
    pub(super) created_at: Timestamp,
    /// `amd64` or `arm64`.
    pub(super) arch: &'static str,
    /// Its tags.
    pub(super) tags: Vec<String>,
    /// Its state.
    pub(super) status: NodeStatus,
    /// Its disk is kept when it is deleted.
    pub(super) persistent: bool,
    /// When a client last used its agent; absent if none has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_agent_call: Option<Timestamp>,
}

impl NodeEntry {
    pub(super) fn of(node: &Node, last_agent_call: Option<Timestamp>) -> Self {
        Self {
            hostname: node.name.to_string(),
            hostgroup: node.group.to_string(),
            ip: address(node),
            ram_bytes: node.ram_bytes,
            cpus: node.vcpu,
            created_at: node.created_at,
            arch: arch(),
            tags: node.tags.texts(),
            status: NodeStatus::of(node.state),
            persistent: node.persistent,
            last_agent_call,
        }
    }
}

/// The address of a VM without its prefix length.
pub(super) fn address(node: &Node) -> String {
    node.ip.map(|(ip, _)| ip.to_string()).unwrap_or_default()
}

/// A VM that was created or started again.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Created {
    /// Its name.
    #[schema(example = "sbox-x4k2p")]
    pub(super) hostname: String,
    /// Its group.
    pub(super) hostgroup: String,
    /// Its address with a prefix length.
    #[schema(example = "169.254.100.2/30")]
    pub(super) ip: String,
    /// When it was created.
    pub(super) created_at: Timestamp,
    /// `amd64` or `arm64`.
    pub(super) arch: &'static str,
    /// Its disk is kept when it is deleted.
    pub(super) persistent: bool,
}

impl Created {
    pub(super) fn of(node: &Node) -> Self {
        let ip = node.ip.map(|(ip, length)| format!("{ip}/{length}"));
        Self {
            hostname: node.name.to_string(),
            hostgroup: node.group.to_string(),
            ip: ip.unwrap_or_default(),
            created_at: node.created_at,
            arch: arch(),
            persistent: node.persistent,
        }
    }
}

/// A VM that was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Deleted {
    /// What was done.
    pub(super) message: String,
    /// `true` if its disk is removed; a text, not a boolean.
    #[serde(serialize_with = "text")]
    #[schema(value_type = String, example = "true")]
    pub(super) disk_removed: bool,
}

fn text<S: Serializer>(value: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *value { "true" } else { "false" })
}

/// The tags of a VM.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tags {
    /// The VM.
    pub(super) hostname: String,
    /// Its tags.
    pub(super) tags: Vec<String>,
}

/// The output of a VM.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Logs {
    /// The VM.
    pub(super) hostname: String,
    /// The number of lines in `content`.
    pub(super) lines: usize,
    /// The lines.
    pub(super) content: String,
}

/// The figures of a guest.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NodeStats {
    /// The VM.
    pub(super) hostname: String,
    /// Its address without a prefix length.
    pub(super) ip: String,
    /// When it was created.
    pub(super) created_at: Timestamp,
    /// The figures; null if the agent does not answer.
    pub(super) snapshot: Option<Stats>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// The state of an agent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AgentHealth {
    /// The VM.
    pub(super) hostname: String,
    /// The version of the agent.
    pub(super) agent_version: String,
    /// Time since the agent started, in nanoseconds.
    pub(super) agent_uptime: u64,
    /// Time since the guest booted, in nanoseconds.
    pub(super) system_uptime: u64,
    /// Whether the userdata has ended; true without userdata.
    pub(super) userdata_ran: bool,
    /// The exit status of the userdata; absent while it runs, or if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) userdata_exit_code: Option<i32>,
    /// The address of the VM without a prefix length.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) ip: String,
}

/// A VM with its lists and its commands in the background.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Description {
    /// What a list has.
    #[serde(flatten)]
    pub(super) node: NodeEntry,
    /// `image`, or `none` without a disk.
    pub(super) storage: &'static str,
    /// The file name of its image, or of its kernel without a disk.
    pub(super) image: String,
    /// Its network.
    pub(super) network: DescribedNetwork,
    /// The number of open requests to its agent.
    pub(super) open_agent_connections: usize,
    /// Its commands in the background; absent if its agent does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bg_execs: Option<Vec<BackgroundCommand>>,
}

/// The network of a VM.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DescribedNetwork {
    /// `isolated`, `bridge` or `cni`.
    pub(super) mode: String,
    /// `vm` if the VM has a list of its own, else `hostgroup`.
    pub(super) policy_source: &'static str,
    /// The lists of the group.
    pub(super) host_group: Lists,
    /// The lists of the VM; absent if it has none.
    #[serde(rename = "override", skip_serializing_if = "Option::is_none")]
    pub(super) overrides: Option<OverrideLists>,
    /// The lists in effect.
    pub(super) effective: Lists,
}

/// Lists of networks, ports and protocols.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Lists {
    /// What guests may reach.
    pub(super) allow: Vec<String>,
    /// What they may not reach.
    pub(super) drop: Vec<String>,
}

/// Lists of a VM: an absent one is inherited, an empty one is empty.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OverrideLists {
    /// Replaces that of the group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) allow: Option<Vec<String>>,
    /// Replaces that of the group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drop: Option<Vec<String>>,
}

/// A command in the background.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BackgroundCommand {
    /// Its id.
    pub(super) exec_id: String,
    /// The program and its arguments.
    pub(super) command: String,
    /// The process id in the guest.
    pub(super) pid: u32,
    /// `running` or `exited`.
    pub(super) state: &'static str,
    /// When it was started.
    pub(super) started_at: Timestamp,
    /// Its exit status, once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exit_code: Option<i32>,
}
