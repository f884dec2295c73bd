//! Maps the identity of a VM or daemon to names and labels of kernel objects (links, chains, namespaces) and directories, and back.
//! Out of scope: the kernel and the store; all functions are pure.
//!
//! # Why
//! A label contains the instance id of the daemon, `slice/<instance>/<kind>/…`, and so does every link and chain name. Two daemons on
//! one host can therefore distinguish their objects, and the wildcard rules of the host (`sl<instance>+`) match neither links of
//! another daemon nor unrelated links such as `slave0`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::api::meta::{Name, Uid};
use crate::api::network::Mac;

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The TAP inside a VM's namespace. Links in it have fixed names because it contains no others.
pub const TAP: &str = "tap0";
/// The veth end inside a VM's namespace.
pub const UPLINK: &str = "up0";

/// Link groups (`IFLA_GROUP`) of VM links in the host namespace. All daemons use the same groups, so the rules of one daemon match the
/// links of the others. The upper half is "sl", which avoids collisions with the small numbers that other programs use.
pub mod link_group {
    /// Mask for the upper half.
    pub const MASK: u32 = 0xffff_0000;
    /// Matches every link of a VM, with [`MASK`].
    pub const ANY: u32 = 0x736c_0000;
    /// The host end of an isolated VM's veth.
    pub const ISOLATED: u32 = ANY | 1;
    /// A bridge created by a daemon.
    pub const BRIDGE: u32 = ANY | 2;
    /// A TAP on a bridge.
    pub const PORT: u32 = ANY | 3;
}

/// The instance id of a daemon: five characters of base 32, stored with its state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(String);

impl Instance {
    /// The prefix of every chain in the host's tables, common to all daemons.
    pub const CHAIN_PREFIX: &str = "SLICE-";

    /// The id of a new state in `state_dir` (canonical), and of a state from a version that did not store ids.
    pub fn of(state_dir: &Path) -> Self {
        Self::new(state_dir.as_os_str().as_encoded_bytes())
    }

    /// The id derived from `seed`.
    pub fn new(seed: &[u8]) -> Self {
        Self(hash("instance", seed, 5))
    }

    /// Parses the result of [`Instance::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        is_instance(text).then(|| Self(text.to_owned()))
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The prefix of every link of this daemon in the host namespace.
    pub fn link_prefix(&self) -> String {
        format!("sl{}", self.0)
    }

    /// The `iptables -i` wildcard for every link of this daemon.
    pub fn link_wildcard(&self) -> String {
        format!("{}+", self.link_prefix())
    }

    /// The name of a chain of this daemon in the host's tables: `SLICE-<instance>-<role>`, at most 28 characters.
    pub fn chain(&self, role: &str) -> String {
        format!("{}{}-{role}", Self::CHAIN_PREFIX, self.0)
    }

    /// The daemon that owns the chain with this name; `None` for other chains.
    pub fn from_chain(name: &str) -> Option<Self> {
        let (instance, _) = name.strip_prefix("SLICE-")?.split_once('-')?;
        is_instance(instance).then(|| Self(instance.to_owned()))
    }

    /// The CNI container id of a VM, which plugins record on the objects that they create: `slice-<instance>-<uid>`.
    pub fn container_id(&self, uid: Uid) -> String {
        format!("slice-{}-{uid}", self.0)
    }

    /// The VM with this CNI container id; `None` if the container does not belong to this daemon.
    pub fn uid_from_container_id(&self, container_id: &str) -> Option<Uid> {
        let uid = container_id.strip_prefix(&format!("slice-{}-", self.0))?;
        let uid = uid.parse().ok()?;
        // `Uid::from_str` accepts several formats of a uid, but a container id has only one.
        (self.container_id(uid) == container_id).then_some(uid)
    }

    /// The label of objects that belong to no VM.
    pub fn host_network_label(&self) -> Label {
        Label {
            instance: self.clone(),
            owner: Owner::HostNetwork,
        }
    }

    /// The label of objects that belong to a VM.
    pub fn vm_label(&self, name: &Name, uid: Uid) -> Label {
        Label {
            instance: self.clone(),
            owner: Owner::Vm {
                name: name.clone(),
                uid,
            },
        }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The owner of a kernel object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The host network.
    #[serde(rename = "ground")]
    HostNetwork,
    /// One VM.
    Vm {
        /// Its name.
        name: Name,
        /// Its uid.
        uid: Uid,
    },
}

/// A label on a kernel object: `slice/<instance>/ground` for the host network, or `slice/<instance>/vm/<name>@<uid>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label {
    /// The daemon.
    pub instance: Instance,
    /// The owner within this daemon.
    pub owner: Owner,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Owner::HostNetwork => write!(f, "slice/{}/ground", self.instance),
            Owner::Vm { name, uid } => write!(f, "slice/{}/vm/{name}@{uid}", self.instance),
        }
    }
}

/// The error for a text that is not a label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a slice label")]
pub struct InvalidLabel(String);

impl FromStr for Label {
    type Err = InvalidLabel;
    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        parse_label(text).ok_or_else(|| InvalidLabel(text.to_owned()))
    }
}

fn parse_label(text: &str) -> Option<Label> {
    let (instance, owner) = text.strip_prefix("slice/")?.split_once('/')?;
    let is_valid = is_instance(instance);
    let owner = match owner {
        "ground" => Owner::HostNetwork,
        vm => {
            let (name, uid) = vm.strip_prefix("vm/")?.split_once('@')?;
            Owner::Vm {
                name: name.parse().ok()?,
                uid: uid.parse().ok()?,
            }
        }
    };
    is_valid.then(|| Label {
        instance: Instance(instance.to_owned()),
        owner,
    })
}

fn is_instance(text: &str) -> bool {
    text.len() == 5 && text.bytes().all(|b| ALPHABET.contains(&b))
}

impl TryFrom<String> for Label {
    type Error = InvalidLabel;
    fn try_from(text: String) -> Result<Self, InvalidLabel> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.to_string()
    }
}

/// A kernel object that was observed with a label of this daemon. Delete actions accept no other type, so code that deletes a foreign
/// object does not compile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned<T> {
    resource: T,
    label: Label,
}

impl<T> Owned<T> {
    /// The object.
    pub fn resource(&self) -> &T {
        &self.resource
    }

    /// The label of the object.
    pub fn label(&self) -> &Label {
        &self.label
    }
}

impl Label {
    /// Claims `resource` if `found`, the label read from it, equals `self`.
    pub fn claim<T>(&self, object: T, found: Option<&str>) -> Option<Owned<T>> {
        (found == Some(self.to_string().as_str())).then(|| Owned {
            resource: object,
            label: self.clone(),
        })
    }

    /// Claims a bridge by its label or, if it has none, by its MAC, as [`Label::claim_link`] does for a veth.
    pub fn claim_bridge(&self, name: &str, alias: Option<&str>, mac: Mac) -> Option<Owned<String>> {
        match alias {
            Some(_) => self.claim(name.to_owned(), alias),
            None => (mac == bridge_mac(&self.instance, name)).then(|| Owned {
                resource: name.to_owned(),
                label: self.clone(),
            }),
        }
    }

    /// Claims a link by its label (the alias) or, if it has none, by its MAC. The kernel sets the MAC of a link together with its name,
    /// but the alias in a second step, and the daemon may crash between the two.
    pub fn claim_link(&self, name: &str, alias: Option<&str>, mac: Mac) -> Option<Owned<String>> {
        match alias {
            Some(_) => self.claim(name.to_owned(), alias),
            None => (mac == initial_mac(name)).then(|| Owned {
                resource: name.to_owned(),
                label: self.clone(),
            }),
        }
    }
}

/// The MAC with which a veth end in the host namespace is created: a function of its name, see [`Label::claim_link`].
pub fn initial_mac(host_link: &str) -> Mac {
    mac("birthmark", host_link.as_bytes())
}

/// The MAC with which a bridge is created. Other daemons may create a bridge with the same name, so the MAC depends on the instance.
pub fn bridge_mac(instance: &Instance, bridge: &str) -> Mac {
    mac("bridge", format!("{instance}/{bridge}").as_bytes())
}

/// The names and MACs of a VM's kernel objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmNames {
    /// `sl<instance><hash>`, 15 characters: the veth end in the host namespace.
    pub host_link: String,
    /// The MAC of that end.
    pub host_mac: Mac,
    /// The MAC of `up0`.
    pub uplink_mac: Mac,
    /// The MAC of `tap0`, the guest's gateway.
    pub tap_mac: Mac,
    /// The MAC of the TAP as a port of a bridge. It starts with `fe:ff`, the highest locally administered prefix: a bridge without its
    /// own MAC takes the lowest MAC of its ports (`br_stp_recalculate_bridge_id`), and a user's bridge must keep its MAC. A change of
    /// the MAC, however short, removes all neighbours of the bridge (`neigh_changeaddr`), including permanent entries.
    pub port_mac: Mac,
    /// The MAC the guest must use.
    pub guest_mac: Mac,
    /// `slice-<hash>`: the name of the namespace in the run directory and in `ip netns`.
    pub netns: String,
}

/// The names of the VM with this uid.
pub fn vm_names(instance: &Instance, uid: Uid) -> VmNames {
    let id = uid.0.as_bytes();
    let host_link = format!("{}{}", instance.link_prefix(), hash("host-link", id, 8));
    VmNames {
        host_mac: initial_mac(&host_link),
        host_link,
        uplink_mac: mac("uplink", id),
        tap_mac: mac("tap", id),
        port_mac: port_mac(id),
        guest_mac: mac("guest", id),
        netns: format!("slice-{}", hash(instance.as_str(), id, 12)),
    }
}

/// The names of the VM that a label refers to. The label of the host network yields names that no VM has.
pub fn names_of(label: &Label) -> VmNames {
    vm_names(&label.instance, uid_of(label))
}

/// The uid that a label refers to. The uid of the host network is the nil uid, which no VM has (RFC 9562, section 5.9).
pub fn uid_of(label: &Label) -> Uid {
    match &label.owner {
        Owner::HostNetwork => Uid(uuid::Uuid::nil()),
        Owner::Vm { uid, .. } => *uid,
    }
}

/// The run directory of a daemon, which lasts until the host reboots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(pub PathBuf);

impl RunDir {
    /// The directory with the mount points of the VMs' namespaces.
    pub fn netns_dir(&self) -> PathBuf {
        self.0.join("netns")
    }

    /// The mount point of a VM's namespace.
    pub fn netns(&self, names: &VmNames) -> PathBuf {
        self.netns_dir().join(&names.netns)
    }

    /// The directory that contains the directories of all VMs.
    pub fn vm_dirs(&self) -> PathBuf {
        self.0.join("vm")
    }

    /// The directory of a VM: its record, and the sockets and logs of its VMM.
    pub fn vm_dir(&self, uid: Uid) -> PathBuf {
        self.vm_dirs().join(uid.to_string())
    }

    /// The part of a VM's directory that its VMM owns.
    pub fn vmm_dir(&self, uid: Uid) -> PathBuf {
        self.vm_dir(uid).join("vmm")
    }

    /// The copy of the state's integrity record for the current boot.
    pub fn integrity_record(&self) -> PathBuf {
        self.0.join("state.seal")
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("sliced.sock")
    }
}

/// The path at which `ip netns` expects a namespace.
pub fn ip_netns_path(netns: &str) -> PathBuf {
    Path::new("/run/netns").join(netns)
}

/// `length` characters of base 32 (RFC 4648, lower case) of a hash. `role` is the derivation context.
fn hash(role: &str, bytes: &[u8], length: usize) -> String {
    digest(role, bytes)
        .iter()
        .take(length)
        .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
        .collect()
}

/// A locally administered unicast MAC (IEEE 802 section 8.4) derived from a hash.
fn mac(role: &str, bytes: &[u8]) -> Mac {
    let d = digest(role, bytes);
    Mac([(d[0] & 0xfc) | 0x02, d[1], d[2], d[3], d[4], d[5]])
}

fn port_mac(id: &[u8]) -> Mac {
    let [_, _, c, d, e, f] = mac("port", id).0;
    Mac([0xfe, 0xff, c, d, e, f])
}

fn digest(role: &str, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(role);
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}
