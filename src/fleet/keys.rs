//! The layout of the keys in etcd. All keys of a fleet have the prefix `/slice/v1/`.
//! Out of scope: the values ([`super::object`]).
//!
//! | key | value | writer |
//! |---|---|---|
//! | `/slice/v1/groups/<name>` | [`Group`](super::object::Group) | users, by the API of a control node |
//! | `/slice/v1/vms/<uid>` | [`Vm`](super::object::Vm) | the elected scheduler |
//! | `/slice/v1/nodes/<node>` | [`Node`](super::object::Node) | administrators, by the API of a control node |
//! | `/slice/v1/nodestatus/<node>` | [`NodeStatus`](super::object::NodeStatus) | that node |
//! | `/slice/v1/alive/<node>` | the id of the host until it is booted again, with a lease | that node |
//! | `/slice/v1/status/<node>/<uid>` | [`VmStatus`](super::object::VmStatus) | that node |
//! | `/slice/v1/ranges/<group>/<node>` | [`NodeSubnet`](super::object::NodeSubnet) | the elected scheduler |
//! | `/slice/v1/election` | the name of the leader, with a lease | control nodes |

use crate::api::meta::{Name, Uid};

/// The prefix of all keys.
pub const ROOT: &str = "/slice/v1/";
/// The prefix of groups.
pub const GROUPS: &str = "/slice/v1/groups/";
/// The prefix of VMs.
pub const VMS: &str = "/slice/v1/vms/";
/// The prefix of nodes.
pub const NODES: &str = "/slice/v1/nodes/";
/// The prefix of the status of nodes.
pub const NODE_STATUS: &str = "/slice/v1/nodestatus/";
/// The prefix of the keys that exist while their nodes renew their leases.
pub const ALIVE: &str = "/slice/v1/alive/";
/// The prefix of the status of VMs.
pub const STATUS: &str = "/slice/v1/status/";
/// The prefix of the subnets of groups in bridge mode.
pub const RANGES: &str = "/slice/v1/ranges/";
/// The key of the leader.
pub const ELECTION: &str = "/slice/v1/election";

/// A key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `/slice/v1/groups/<name>`
    Group(Name),
    /// `/slice/v1/vms/<uid>`
    Vm(Uid),
    /// `/slice/v1/nodes/<node>`
    Node(Name),
    /// `/slice/v1/nodestatus/<node>`
    NodeStatus(Name),
    /// `/slice/v1/alive/<node>`
    Alive(Name),
    /// `/slice/v1/status/<node>/<uid>`
    VmStatus(Name, Uid),
    /// `/slice/v1/ranges/<group>/<node>`
    Range(Name, Name),
    /// `/slice/v1/election`
    Election,
}

impl Key {
    /// The key that this text is; `None` for keys of other programs and of other versions.
    pub fn parse(text: &str) -> Option<Self> {
        if text == ELECTION {
            return Some(Self::Election);
        }
        let parts: Vec<&str> = text.strip_prefix(ROOT)?.split('/').collect();
        Some(match parts[..] {
            ["groups", name] => Self::Group(name.parse().ok()?),
            ["vms", uid] => Self::Vm(uid.parse().ok()?),
            ["nodes", node] => Self::Node(node.parse().ok()?),
            ["nodestatus", node] => Self::NodeStatus(node.parse().ok()?),
            ["alive", node] => Self::Alive(node.parse().ok()?),
            ["status", node, uid] => Self::VmStatus(node.parse().ok()?, uid.parse().ok()?),
            ["ranges", group, node] => Self::Range(group.parse().ok()?, node.parse().ok()?),
            _ => return None,
        })
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Group(name) => write!(f, "{GROUPS}{name}"),
            Self::Vm(uid) => write!(f, "{VMS}{uid}"),
            Self::Node(node) => write!(f, "{NODES}{node}"),
            Self::NodeStatus(node) => write!(f, "{NODE_STATUS}{node}"),
            Self::Alive(node) => write!(f, "{ALIVE}{node}"),
            Self::VmStatus(node, uid) => write!(f, "{STATUS}{node}/{uid}"),
            Self::Range(group, node) => write!(f, "{RANGES}{group}/{node}"),
            Self::Election => f.write_str(ELECTION),
        }
    }
}
