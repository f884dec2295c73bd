//! What ought to be and what is of a data path that CNI plugins make. Pure.
//! Out of scope: what is to be done about it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::super::NetnsSeen;
use super::super::place::Place;
use super::routes::Route;
use super::{IFNAME, guest};
use crate::api::cni::CniOptions;
use crate::api::network::{Connection, Mac, TapOwner};
use crate::cni::{Attachment, CniResult, Network};
use crate::owner::{self, Label};

/// What ought to be for one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// Whose it is: names are made from it.
    pub label: Label,
    /// Where the namespace, the record and the intent stand.
    pub run_dir: PathBuf,
    /// The name of the CNI network; none: not known (any more), and so nothing can be wanted.
    pub network: Option<String>,
    /// The data path; none: nothing of it.
    pub want: Option<Want>,
}

/// A data path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Want {
    /// Who may open the TAP.
    pub tap_owner: TapOwner,
    /// What a daemon that has lost its state reads to adopt the VM.
    pub record: String,
    /// What the guest has, or had last: the plugins are asked for the same. None: it was never connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// What the plugins are asked for, with this VM's addresses alone.
    #[serde(default, skip_serializing_if = "CniOptions::is_default")]
    pub asked: CniOptions,
}

/// What a guest is known by on its network. With another of either it has to be started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its MAC.
    pub mac: Mac,
}

/// What the plugins are asked, written down before the first of them is. Whatever becomes of the configuration or of us, DEL goes by
/// what ADD went by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The configuration's [`digest`](Network::digest) as it was found.
    pub digest: String,
    /// The configuration, with the version that all its plugins speak.
    pub network: Network,
    /// For whom.
    pub attachment: Attachment,
    /// The routes of the plugins' interface after the ADD: what the guest is told goes by them, and not by what becomes of them. None:
    /// nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Route>>,
    /// Why the ADD failed whose undoing failed, too. None: it did not, or was undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_failed: Option<String>,
}

/// What is.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// The record's text; none: no such file.
    pub record: Option<String>,
    /// The VM's run directory is there.
    pub dir: bool,
    /// The namespace.
    pub netns: NetnsSeen,
    /// Where `/run/netns/<name>` points to; none: nothing there. A file that is no symlink points to itself.
    pub handle: Option<PathBuf>,
    /// The network's configuration as it is now.
    pub conflist: ConflistSeen,
    /// What was written down before the ADD.
    pub intent: IntentSeen,
    /// What the cache remembers of the ADD.
    pub added: AddedSeen,
    /// What is in the namespace, if it is ours.
    pub inside: Option<Inside>,
    /// What a plugin complained of at CHECK.
    pub complaint: Option<String>,
    /// Why those that are attached may not be able to talk, in the words of STATUS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited: Option<String>,
}

/// A network's configuration.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub enum ConflistSeen {
    /// Nobody had to know.
    #[default]
    Unasked,
    /// It is there.
    Found(Box<Network>),
    /// It is not there, or cannot be used; why.
    Unusable(String),
}

/// The intent.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub enum IntentSeen {
    /// No such file.
    #[default]
    Absent,
    /// It cannot be understood.
    Damaged,
    /// It is there.
    Written(Box<Intent>),
}

/// The cache's record.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub enum AddedSeen {
    /// None.
    #[default]
    Absent,
    /// It cannot be understood.
    Damaged,
    /// It is there.
    Remembered(Box<Added>),
}

/// An ADD that succeeded, as the cache has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Added {
    /// The configuration.
    pub network: Network,
    /// For whom.
    pub attachment: Attachment,
    /// What came of it.
    pub result: CniResult,
}

/// The namespace's inside.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inside {
    /// The plugins' interface.
    pub eth: Option<Eth>,
    /// The TAP, ours or the chain's.
    pub tap: Option<Tap>,
}

/// The plugins' interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eth {
    /// Its MAC.
    pub mac: Mac,
    /// Administratively up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// IPv4 addresses.
    pub addresses: BTreeSet<Ipv4Network>,
}

/// A TAP, or what bears its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tap {
    /// It is a TAP, persistent, with one queue, and this is who may open it; none: another kind of link.
    pub owner: Option<TapOwner>,
    /// Bytes.
    pub mtu: u32,
    /// IPv6 is off on it (or the kernel has none).
    pub ipv6_off: bool,
}

impl Desired {
    /// Where its namespace is mounted.
    pub fn netns(&self) -> PathBuf {
        self.place().netns()
    }

    /// Where `ip netns` finds it.
    pub fn handle(&self) -> PathBuf {
        self.place().handle()
    }

    /// Its own directory.
    pub fn vm_dir(&self) -> PathBuf {
        self.place().vm_dir()
    }

    pub(in super::super) fn place(&self) -> Place<'_> {
        Place {
            label: &self.label,
            run_dir: &self.run_dir,
        }
    }

    /// What the plugins are told of it.
    pub fn attachment(&self) -> Attachment {
        let id = self.label.instance.container_id(owner::uid_of(&self.label));
        Attachment::new(id, self.netns(), IFNAME)
    }
}

impl Observed {
    /// How the guest is connected. `None` until the plan is empty.
    pub fn connection(&self) -> Option<Connection> {
        let eth = self.inside.as_ref()?.eth.as_ref()?;
        let added = self.remembered()?;
        let made = match &self.intent {
            IntentSeen::Written(intent) => intent.routes.as_deref(),
            IntentSeen::Absent | IntentSeen::Damaged => None,
        };
        guest::connection(&added.result, &added.attachment, eth, made)
    }

    /// The chain made the TAP itself, and joined it with its interface: there is nothing to redirect.
    pub fn chain_made_the_tap(&self) -> bool {
        self.remembered()
            .is_some_and(|added| guest::chains_tap(&added.result, &added.attachment).is_some())
    }

    /// The network's configuration is another one now, or gone; this VM keeps what it was given.
    pub fn network_changed(&self) -> bool {
        match (&self.intent, &self.conflist) {
            (IntentSeen::Written(intent), ConflistSeen::Found(now)) => {
                let now = now.digest();
                // An intent that was restored from the cache has no other digest.
                intent.digest != now && intent.network.digest() != now
            }
            (IntentSeen::Written(_), ConflistSeen::Unusable(_)) => true,
            (IntentSeen::Written(_), ConflistSeen::Unasked) => false,
            (IntentSeen::Absent | IntentSeen::Damaged, _) => false,
        }
    }

    pub(super) fn remembered(&self) -> Option<&Added> {
        match &self.added {
            AddedSeen::Remembered(added) => Some(added),
            AddedSeen::Absent | AddedSeen::Damaged => None,
        }
    }
}
