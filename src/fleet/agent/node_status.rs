//! What this node reports of itself.
//! Out of scope: writing it.

use super::available::{Amounts, HostFacts};
use super::statuses::StatusWrite;
use crate::api::meta::Name;
use crate::fleet::keys::Key;
use crate::fleet::mirror::Mirror;
use crate::fleet::object::{self, Labels, NodeStatus, VERSION};

/// What the settings file says of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// Its labels.
    pub labels: Labels,
    /// vCPUs for each CPU.
    pub vcpus_per_cpu: u64,
    /// The URL of its API; `None`: other nodes do not reach it.
    pub api: Option<String>,
}

impl NodeSettings {
    /// The status of the node.
    pub(super) fn status(
        &self,
        host: &HostFacts,
        amounts: &Amounts,
        has_guard: bool,
        boot_id: &str,
    ) -> NodeStatus {
        NodeStatus {
            labels: self.labels.clone(),
            architecture: architecture(),
            hypervisors: host.hypervisors.clone(),
            files: host
                .files
                .iter()
                .filter_map(|(path, found)| Some((path.to_str()?.to_owned(), found.is_ok())))
                .collect(),
            secrets: host.secrets.clone(),
            has_guard,
            networks: host.networks.clone(),
            has_agent: host.no_agent.is_none(),
            capacity: amounts.capacity,
            allocatable: amounts.allocatable,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format: VERSION,
            api: self.api.clone(),
            boot_id: boot_id.to_owned(),
        }
    }
}

/// `uname -m`.
fn architecture() -> String {
    let found = rustix::system::uname();
    found.machine().to_string_lossy().into_owned()
}

/// The write of the status, if it differs from that in etcd.
pub(super) fn write(mirror: &Mirror, node: &Name, status: &NodeStatus) -> Option<StatusWrite> {
    let stored = mirror.node_statuses.get(node);
    let is_same = stored.is_some_and(|stored| stored.value.as_ref().is_ok_and(|it| it == status));
    if is_same {
        return None;
    }
    let value = object::encode(status).ok()?;
    let since = stored.map_or(0, |stored| stored.revision);
    Some(StatusWrite::put(
        Key::NodeStatus(node.clone()),
        since,
        value,
    ))
}
