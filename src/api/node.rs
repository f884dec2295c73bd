//! A VM as the REST API lists it: what a client of that API knows of it.
//! Out of scope: the JSON of that API (`wire`).

use std::net::Ipv4Addr;

use super::condition::Reason;
use super::meta::{Name, Timestamp};
use super::network::Mode;
use super::policy::Policy;
use super::tag::TagSet;
use super::view::VmmState;
use super::vm::VmSpec;

/// A VM.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: Name,
    /// Its group.
    pub group: Name,
    /// Its address and prefix length; `None` before it has one.
    pub ip: Option<(Ipv4Addr, u8)>,
    /// Memory in bytes.
    pub ram_bytes: u64,
    /// Virtual processors.
    pub vcpu: u32,
    /// When it was created.
    pub created_at: Timestamp,
    /// Its tags.
    pub tags: TagSet,
    /// The state of its VMM.
    pub state: VmmState,
    /// Whether its slot is ready for a VMM that the user starts.
    pub ready: bool,
    /// Its disk is kept when it is deleted.
    pub persistent: bool,
    /// It has a disk of its own, made from an image.
    pub has_disk: bool,
    /// It was made on demand, and can be deleted by itself.
    pub on_demand: bool,
    /// Its guest can have an agent.
    pub access: GuestAgent,
    /// The reason of its condition `Agent`.
    pub agent: Option<Reason>,
}

/// Whether the guest of a VM can have an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestAgent {
    /// It can.
    Possible,
    /// The VMM is none of the daemon's.
    NoHypervisor,
    /// The VM has no vsock device.
    NoVsock,
    /// The image has none.
    NoAgent,
}

impl GuestAgent {
    /// Of a VM with this spec.
    pub fn of(spec: &VmSpec) -> Self {
        use super::guest_access::Agent;
        use super::vm::Hypervisor;
        let access = &spec.guest_access;
        match (spec.hypervisor, access.vsock, access.agent) {
            (Hypervisor::None, ..) => Self::NoHypervisor,
            (_, false, _) => Self::NoVsock,
            (_, true, Agent::None) => Self::NoAgent,
            (_, true, Agent::Baked | Agent::Inject) => Self::Possible,
        }
    }

    /// Why there is none, with the VM or group as the subject.
    pub fn obstacle(self) -> Option<&'static str> {
        match self {
            Self::Possible => None,
            Self::NoHypervisor => Some("has no agent: hypervisor is none"),
            Self::NoVsock => Some("has no agent: vsock is false"),
            Self::NoAgent => Some("has no agent: agent is none"),
        }
    }
}

/// What the REST API describes of one VM in addition.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeDetails {
    /// The VM.
    pub node: Node,
    /// The file name of its image, or of its kernel.
    pub image: String,
    /// Its data path.
    pub mode: Mode,
    /// The lists of its group; `None` unless isolated.
    pub group_policy: Option<Policy>,
    /// The lists that replace those of the group.
    pub overrides: PolicyOverrides,
    /// The lists in effect.
    pub policy: Option<Policy>,
}

/// The lists of a VM that replace those of its group; `None`: inherited.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyOverrides {
    /// What it may reach.
    pub allow: Option<Vec<super::policy::Entry>>,
    /// What it may not reach.
    pub drop: Option<Vec<super::policy::Entry>>,
}

/// A change of the tags of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagChange {
    /// Removed first.
    pub remove: Vec<String>,
    /// Added then.
    pub add: Vec<String>,
    /// All tags but the name become these, instead.
    pub replace: Option<Vec<String>>,
    /// The friendly name; empty: there is none. `None`: it stays.
    pub name: Option<String>,
}
