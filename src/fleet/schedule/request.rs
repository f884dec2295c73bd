//! What the VMs of a group require of a node. Groups with equal requests share one list of nodes.
//! Out of scope: whether a node has it ([`super::filter`]).

use std::path::PathBuf;

use crate::api::allowed::files_of;
use crate::api::guest_access::Agent;
use crate::api::network::NetworkSpec;
use crate::api::secret::SecretName;
use crate::api::vm::Hypervisor;
use crate::fleet::object::{Group, Labels, Resources};

/// What a VM of a group requires of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Request<'v> {
    pub(super) architecture: Option<&'v str>,
    pub(super) labels: &'v Labels,
    pub(super) hypervisor: Hypervisor,
    /// See [`files_of`].
    pub(super) files: Vec<PathBuf>,
    pub(super) resources: Resources,
    /// It has a copy of an image. The size of the copy is 0 in `resources` if the group does not set it: the scheduler does not know the
    /// sizes of images.
    pub(super) copies_image: bool,
    pub(super) bridge: Option<&'v str>,
    /// It may be replaced, so the node needs a guard.
    pub(super) needs_guard: bool,
    /// Its CNI network.
    pub(super) network: Option<&'v str>,
    /// It has `agent: inject`.
    pub(super) needs_agent: bool,
    pub(super) secrets: &'v [SecretName],
}

impl<'v> Request<'v> {
    pub(super) fn of(group: &'v Group) -> Self {
        let spec = &group.spec.template;
        let storage = &spec.storage;
        let program = &spec.lifecycle.program;
        let (bridge, network) = match &spec.network {
            NetworkSpec::Bridge(spec) => (Some(spec.bridge.as_str()), None),
            NetworkSpec::Cni(spec) => (None, Some(spec.network_name.as_str())),
            NetworkSpec::Isolated(_) => (None, None),
        };
        Self {
            architecture: group.placement.architecture.as_deref(),
            labels: &group.placement.node_selector,
            hypervisor: match program {
                // It is one of the files.
                Some(_) => Hypervisor::None,
                None => spec.hypervisor,
            },
            files: files_of(spec).map(|(_, path)| path).collect(),
            resources: Resources::of(spec, |_| 0),
            copies_image: storage.image.is_some(),
            bridge,
            network,
            needs_guard: group.replacement.is_some(),
            needs_agent: spec.guest_access.agent == Agent::Inject,
            secrets: &spec.guest_access.provision.secrets,
        }
    }
}
