//! OWNS: whose a kernel thing is. Identity to link, chain, namespace and directory names and labels; and back.
//! Out of scope: the kernel, the store; everything is a pure function.
//!
//! # Why
//! The design's label is `slice/<kind>/<name>@<uid>`. Ours names the daemon too, `slice/<instance>/<kind>/…`, and the same
//! five characters stand in every link and chain name: so two daemons on one host tell their things apart, and the host's
//! wildcard rules (`sl<instance>+`) match neither another daemon's links nor a stranger's `slave0`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::api::meta::{Name, Uid};
use crate::api::network::Mac;

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The links inside a VM's namespace have fixed names: nothing else lives there.
pub const TAP: &str = "tap0";
/// The veth end inside a VM's namespace.
pub const UPLINK: &str = "up0";

/// Groups of links (`IFLA_GROUP`) that mark links of VMs in the host namespace, whichever daemon made them: rules of one daemon know the
/// others' links by them. The upper half is "sl", so that nobody's small numbers are meant.
pub mod link_group {
    /// Compares the upper half only.
    pub const MASK: u32 = 0xffff_0000;
    /// Every link of a VM, under [`MASK`].
    pub const ANY: u32 = 0x736c_0000;
    /// The host's end of an isolated VM's veth.
    pub const ISOLATED: u32 = ANY | 1;
    /// A bridge that a daemon made.
    pub const BRIDGE: u32 = ANY | 2;
    /// A TAP on a bridge.
    pub const PORT: u32 = ANY | 3;
}

/// Which daemon: five characters, stored beside its state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(String);

impl Instance {
    /// What every chain in the host's tables starts with, whichever daemon's it is.
    pub const CHAIN_PREFIX: &str = "SLICE-";

    /// The id of a state that begins in `state_dir` (canonical), and of one from before ids were stored.
    pub fn of(state_dir: &Path) -> Self {
        Self::new(state_dir.as_os_str().as_encoded_bytes())
    }

    /// The id that these bytes come to.
    pub fn new(seed: &[u8]) -> Self {
        Self(hash("instance", seed, 5))
    }

    /// What [`Instance::as_str`] says, read back.
    pub fn parse(text: &str) -> Option<Self> {
        is_instance(text).then(|| Self(text.to_owned()))
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What every link of ours in the host namespace starts with.
    pub fn link_prefix(&self) -> String {
        format!("sl{}", self.0)
    }

    /// `iptables -i` wildcard for every link of ours.
    pub fn link_wildcard(&self) -> String {
        format!("{}+", self.link_prefix())
    }

    /// A chain of ours in the host's tables: `SLICE-<instance>-<role>`, at most 28 characters.
    pub fn chain(&self, role: &str) -> String {
        format!("{}{}-{role}", Self::CHAIN_PREFIX, self.0)
    }

    /// The daemon whose chain bears this name, if one's does.
    pub fn of_chain(name: &str) -> Option<Self> {
        let (instance, _) = name.strip_prefix("SLICE-")?.split_once('-')?;
        is_instance(instance).then(|| Self(instance.to_owned()))
    }

    /// What a VM is called towards CNI plugins, who write it on what they make: `slice-<instance>-<uid>`.
    pub fn container_id(&self, uid: Uid) -> String {
        format!("slice-{}-{uid}", self.0)
    }

    /// The VM of ours that a plugin's thing is of; `None`: it is somebody else's.
    pub fn uid_of_container(&self, container_id: &str) -> Option<Uid> {
        let uid = container_id.strip_prefix(&format!("slice-{}-", self.0))?;
        let uid = uid.parse().ok()?;
        // A uid has many spellings, a name of ours one.
        (self.container_id(uid) == container_id).then_some(uid)
    }

    /// The label for what belongs to no VM.
    pub fn ground_label(&self) -> Label {
        Label {
            instance: self.clone(),
            owner: Owner::Ground,
        }
    }

    /// The label for what belongs to a VM.
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

/// Who a thing belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The host itself.
    Ground,
    /// One VM.
    Vm {
        /// Its name.
        name: Name,
        /// Its uid.
        uid: Uid,
    },
}

/// Ownership as written on a thing: `slice/<instance>/ground` or `slice/<instance>/vm/<name>@<uid>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label {
    /// Which daemon.
    pub instance: Instance,
    /// Which of its objects.
    pub owner: Owner,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Owner::Ground => write!(f, "slice/{}/ground", self.instance),
            Owner::Vm { name, uid } => write!(f, "slice/{}/vm/{name}@{uid}", self.instance),
        }
    }
}

/// A text that is not a label of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a slice label")]
pub struct NotALabel(String);

impl FromStr for Label {
    type Err = NotALabel;
    fn from_str(text: &str) -> Result<Self, NotALabel> {
        parse_label(text).ok_or_else(|| NotALabel(text.to_owned()))
    }
}

fn parse_label(text: &str) -> Option<Label> {
    let (instance, owner) = text.strip_prefix("slice/")?.split_once('/')?;
    let sound = is_instance(instance);
    let owner = match owner {
        "ground" => Owner::Ground,
        vm => {
            let (name, uid) = vm.strip_prefix("vm/")?.split_once('@')?;
            Owner::Vm {
                name: name.parse().ok()?,
                uid: uid.parse().ok()?,
            }
        }
    };
    sound.then(|| Label {
        instance: Instance(instance.to_owned()),
        owner,
    })
}

fn is_instance(text: &str) -> bool {
    text.len() == 5 && text.bytes().all(|b| ALPHABET.contains(&b))
}

impl TryFrom<String> for Label {
    type Error = NotALabel;
    fn try_from(text: String) -> Result<Self, NotALabel> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.to_string()
    }
}

/// Something in the kernel that was seen to carry our label. A delete action takes nothing else,
/// so deleting something foreign does not type-check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned<T> {
    thing: T,
    label: Label,
}

impl<T> Owned<T> {
    /// The thing.
    pub fn thing(&self) -> &T {
        &self.thing
    }

    /// Whose it is.
    pub fn label(&self) -> &Label {
        &self.label
    }
}

impl Label {
    /// `thing` is ours if `found`, the label read off it, is exactly `self`.
    pub fn claim<T>(&self, thing: T, found: Option<&str>) -> Option<Owned<T>> {
        (found == Some(self.to_string().as_str())).then(|| Owned {
            thing,
            label: self.clone(),
        })
    }

    /// Claims a bridge as [`Label::claim_link`] does a veth.
    pub fn claim_bridge(&self, name: &str, alias: Option<&str>, mac: Mac) -> Option<Owned<String>> {
        match alias {
            Some(_) => self.claim(name.to_owned(), alias),
            None => (mac == bridge_mac(&self.instance, name)).then(|| Owned {
                thing: name.to_owned(),
                label: self.clone(),
            }),
        }
    }

    /// Claims a link by its label or, while it has none, by its birthmark: the kernel sets a link's MAC in the same step
    /// as its name, but takes its alias only afterwards, and a crash may fall between the two.
    pub fn claim_link(&self, name: &str, alias: Option<&str>, mac: Mac) -> Option<Owned<String>> {
        match alias {
            Some(_) => self.claim(name.to_owned(), alias),
            None => (mac == birthmark(name)).then(|| Owned {
                thing: name.to_owned(),
                label: self.clone(),
            }),
        }
    }
}

/// The MAC that a veth end of ours in the host namespace is born with: a function of its name.
pub fn birthmark(host_link: &str) -> Mac {
    mac("birthmark", host_link.as_bytes())
}

/// The MAC of a bridge of ours: its birthmark, too. Any daemon may be asked for a bridge of this name, so it says whose it is.
pub fn bridge_mac(instance: &Instance, bridge: &str) -> Mac {
    mac("bridge", format!("{instance}/{bridge}").as_bytes())
}

/// One VM's names.
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
    /// The MAC of the TAP as a port of a bridge. It begins with `fe:ff`, as high as they come: a bridge without a MAC of its own
    /// takes its ports' lowest (`br_stp_recalculate_bridge_id`), and a user's bridge must keep the one it has. With another MAC,
    /// even for a moment, it forgets all its neighbours (`neigh_changeaddr`), those that we pinned, too.
    pub port_mac: Mac,
    /// The MAC the guest must use.
    pub guest_mac: Mac,
    /// `slice-<hash>`: the namespace, in our directory and in `ip netns`.
    pub netns: String,
}

/// The names of the VM with this uid.
pub fn vm_names(instance: &Instance, uid: Uid) -> VmNames {
    let id = uid.0.as_bytes();
    let host_link = format!("{}{}", instance.link_prefix(), hash("host-link", id, 8));
    VmNames {
        host_mac: birthmark(&host_link),
        host_link,
        uplink_mac: mac("uplink", id),
        tap_mac: mac("tap", id),
        port_mac: port_mac(id),
        guest_mac: mac("guest", id),
        netns: format!("slice-{}", hash(instance.as_str(), id, 12)),
    }
}

/// The names of the VM that a label speaks of; the ground's label gives names that no VM has.
pub fn names_of(label: &Label) -> VmNames {
    vm_names(&label.instance, uid_of(label))
}

/// The uid that a label speaks of; the ground's is the nil uid, which no VM has (RFC 9562, section 5.9).
pub fn uid_of(label: &Label) -> Uid {
    match &label.owner {
        Owner::Ground => Uid(uuid::Uuid::nil()),
        Owner::Vm { uid, .. } => *uid,
    }
}

/// Where a daemon keeps what lives as long as the host is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(pub PathBuf);

impl RunDir {
    /// The mount points of the VMs' namespaces.
    pub fn netns_dir(&self) -> PathBuf {
        self.0.join("netns")
    }

    /// One namespace.
    pub fn netns(&self, names: &VmNames) -> PathBuf {
        self.netns_dir().join(&names.netns)
    }

    /// All VMs' own directories.
    pub fn vm_dirs(&self) -> PathBuf {
        self.0.join("vm")
    }

    /// A VM's own directory: its record, its VMM's sockets and logs.
    pub fn vm_dir(&self, uid: Uid) -> PathBuf {
        self.vm_dirs().join(uid.to_string())
    }

    /// The part of a VM's own directory that belongs to its VMM.
    pub fn vmm_dir(&self, uid: Uid) -> PathBuf {
        self.vm_dir(uid).join("vmm")
    }

    /// This boot's copy of the state's seal.
    pub fn state_seal(&self) -> PathBuf {
        self.0.join("state.seal")
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("sliced.sock")
    }
}

/// Where `ip netns` looks.
pub fn ip_netns_path(netns: &str) -> PathBuf {
    Path::new("/run/netns").join(netns)
}

/// `length` characters of base 32 (RFC 4648, lower case) out of a hash; `role` keeps different uses apart.
fn hash(role: &str, bytes: &[u8], length: usize) -> String {
    digest(role, bytes)
        .iter()
        .take(length)
        .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
        .collect()
}

/// A locally administered unicast MAC (IEEE 802 section 8.4) out of a hash.
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
