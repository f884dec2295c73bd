//! The desired and the observed state of a data path that CNI plugins make. Pure.
//! Out of scope: the actions that follow from them (`plan`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::super::place::VmPaths;
use super::IFNAME;
use super::routes::Route;
use crate::api::cni::CniOptions;
use crate::api::network::{Mac, TapOwner};
use crate::cni::{Attachment, CniResult, Network};
use crate::owner::{self, Label};
use crate::reconcile::net::place::NetnsSeen;

/// After how many failures of DEL an attachment is given up, unless its removal is [forced](Desired::forced).
const MAX_DELS: u32 = 5;

/// The desired state for one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The owner; the names of links and files are derived from it.
    pub label: Label,
    /// The directory of the namespace, the record and the intent.
    pub run_dir: PathBuf,
    /// The name of the CNI network. None: it is not known (any more), so no data path can be desired.
    pub network: Option<String>,
    /// The attachment of a data path that is to be removed is given up after the first DEL that fails.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// The data path. None: it is to be removed.
    pub data_path: Option<DataPath>,
}

/// A data path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataPath {
    /// Who may open the TAP.
    pub tap_owner: TapOwner,
    /// What a daemon that has lost its state reads to adopt the VM.
    pub record: String,
    /// The guest's current or last identity, which is requested from the plugins. None: it was never connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<GuestIdentity>,
    /// What the VM requests from the plugins; `ips` contains only the addresses of this VM.
    #[serde(default, skip_serializing_if = "CniOptions::is_default")]
    pub requested: CniOptions,
}

/// The identity of a guest on its network. If either changes, the guest has to be restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestIdentity {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its MAC.
    pub mac: Mac,
}

/// The input of ADD, written to the disk before the first plugin runs. DEL uses the same input, even if the configuration has changed or
/// the daemon was restarted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The [`digest`](Network::digest) of the configuration as it was read.
    pub digest: String,
    /// The configuration, with the version that all its plugins support.
    pub network: Network,
    /// The container's id, namespace, interface and arguments.
    pub attachment: Attachment,
    /// The routes of the plugins' interface after the ADD. The guest gets these routes even if they change later. `None` if they were
    /// not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Route>>,
    /// Why the ADD failed, if the DEL that undoes it failed as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_failed: Option<String>,
    /// ADD has begun, and its result has not been checked yet: after a crash, such an attachment is removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adding: bool,
    /// How often a DEL of it has failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed: u32,
    /// The result of the first CHECK after the ADD. None: CHECK has not been called since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
}

/// The result of CHECK for an attachment that is as ADD made it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Baseline {
    /// The plugins that fail nevertheless, each with its message. Their CHECK is not called again.
    pub excused: BTreeMap<String, String>,
    /// The attachment has an iptables chain of its own for masquerading.
    pub masqueraded: bool,
}

impl Intent {
    /// For a first ADD: no DEL has failed, and CHECK was not called.
    pub fn new(digest: String, network: Network, attachment: Attachment) -> Self {
        Self {
            digest,
            network,
            attachment,
            routes: None,
            add_failed: None,
            adding: true,
            failed: 0,
            baseline: None,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The observed state.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// The record's text; `None` if there is no such file.
    pub record: Option<String>,
    /// Whether the VM's run directory exists.
    pub dir: bool,
    /// The namespace.
    pub netns: NetnsSeen,
    /// Where `/run/netns/<name>` points to; `None` if it does not exist. A file that is not a symlink points to itself.
    pub handle: Option<PathBuf>,
    /// The present configuration of the network.
    pub conflist: ConflistSeen,
    /// The input that was written to the disk before the ADD.
    pub intent: IntentSeen,
    /// The cache's record of the ADD.
    pub added: AddedSeen,
    /// The content of the namespace, if it is ours.
    pub inside: Option<Inside>,
    /// What CHECK found to differ from the state after the ADD.
    pub check_failure: Option<String>,
    /// Why attached containers may have limited connectivity, as reported by STATUS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited: Option<String>,
}

/// A network's configuration.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub enum ConflistSeen {
    /// It was not needed.
    #[default]
    NotRead,
    /// It exists.
    Found(Box<Network>),
    /// It does not exist or cannot be used; contains the error.
    Unusable(String),
}

/// The intent.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub enum IntentSeen {
    /// The file does not exist.
    #[default]
    Absent,
    /// It cannot be decoded.
    Damaged,
    /// It exists.
    Written(Box<Intent>),
}

/// The cache's record.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub enum AddedSeen {
    /// It does not exist.
    #[default]
    Absent,
    /// It cannot be decoded.
    Damaged,
    /// It exists.
    Recorded(Box<Added>),
}

/// A successful ADD, as recorded in the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Added {
    /// The configuration.
    pub network: Network,
    /// The container's id, namespace, interface and arguments.
    pub attachment: Attachment,
    /// The result.
    pub result: CniResult,
}

/// The content of the namespace.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inside {
    /// The plugins' interface.
    pub eth: Option<Eth>,
    /// The TAP, created by us or by the chain.
    pub tap: Option<Tap>,
}

/// The plugins' interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eth {
    /// Its MAC.
    pub mac: Mac,
    /// It is a veth: packets that arrive on it are redirected whatever their destination MAC is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub veth: bool,
    /// Administratively up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// IPv4 addresses.
    pub addresses: BTreeSet<Ipv4Network>,
}

/// A TAP, or another link of its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tap {
    /// Who may open the TAP, if it is a persistent TAP with one queue; `None` for another kind of link.
    pub owner: Option<TapOwner>,
    /// Bytes.
    pub mtu: u32,
    /// IPv6 is off on it, or the kernel has no IPv6.
    pub ipv6_off: bool,
}

impl Desired {
    /// The number of failures of DEL after which the attachment is given up.
    pub(super) fn tries(&self) -> u32 {
        match self.forced && self.data_path.is_none() {
            true => 1,
            false => MAX_DELS,
        }
    }

    /// Where its namespace is mounted.
    pub fn netns(&self) -> PathBuf {
        self.paths().netns()
    }

    /// Where `ip netns` finds it.
    pub fn handle(&self) -> PathBuf {
        self.paths().handle()
    }

    /// Its run directory.
    pub fn vm_dir(&self) -> PathBuf {
        self.paths().vm_dir()
    }

    pub(in super::super) fn paths(&self) -> VmPaths<'_> {
        VmPaths {
            label: &self.label,
            run_dir: &self.run_dir,
        }
    }

    /// The input of the plugins without arguments.
    pub fn attachment(&self) -> Attachment {
        let id = self.label.instance.container_id(owner::uid_of(&self.label));
        Attachment::new(id, self.netns(), IFNAME)
    }
}

impl Observed {
    /// How often a DEL of the attachment has failed.
    pub(super) fn failed(&self) -> u32 {
        match &self.intent {
            IntentSeen::Written(intent) => intent.failed,
            IntentSeen::Absent | IntentSeen::Damaged => 0,
        }
    }

    /// Whether a crash interrupted ADD before its result was checked.
    pub(super) fn adding(&self) -> bool {
        match &self.intent {
            IntentSeen::Written(intent) => intent.adding,
            IntentSeen::Absent | IntentSeen::Damaged => false,
        }
    }

    /// Whether the network's configuration has changed or was removed since ADD; this VM keeps what ADD assigned.
    pub fn network_changed(&self) -> bool {
        match (&self.intent, &self.conflist) {
            (IntentSeen::Written(intent), ConflistSeen::Found(now)) => {
                let now = now.digest();
                // An intent that was restored from the cache has the digest of the negotiated configuration.
                intent.digest != now && intent.network.digest() != now
            }
            (IntentSeen::Written(_), ConflistSeen::Unusable(_)) => true,
            (IntentSeen::Written(_), ConflistSeen::NotRead) => false,
            (IntentSeen::Absent | IntentSeen::Damaged, _) => false,
        }
    }

    pub(super) fn recorded(&self) -> Option<&Added> {
        match &self.added {
            AddedSeen::Recorded(added) => Some(added),
            AddedSeen::Absent | AddedSeen::Damaged => None,
        }
    }
}
