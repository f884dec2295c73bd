//! Plans the actions for a VM's bridge port. Pure.
//! Out of scope: the TAP's link state; filters.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::api::network::{Mac, TapOwner};
use crate::owner::{self, Label, Owned, Owner, RunDir, VmNames};
use crate::reconcile::Conflict;
use crate::reconcile::net::MTU;
use crate::reconcile::net::routed::RouteConflict;

/// The desired state for one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The owner; MACs are derived from it.
    pub label: Label,
    /// The directory of the record.
    pub run_dir: PathBuf,
    /// The TAP's name.
    pub tap: String,
    /// The port. `None`: it is to be removed.
    #[serde(default)]
    pub slot: Option<Slot>,
    /// The VM's last known location, if the port is to be removed.
    #[serde(default)]
    pub last_location: Option<Location>,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// The bridge. The host network's reconciler creates it unless it is unmanaged.
    pub bridge: String,
    /// The VM's address.
    pub ip: Ipv4Addr,
    /// Who may open the TAP.
    pub tap_owner: TapOwner,
    /// It cannot reach other isolated ports.
    pub isolated: bool,
    /// The guest may send from its own MAC only, so that nothing has to be learned.
    pub antispoof: bool,
    /// What a daemon that has lost its state reads to adopt the VM.
    pub record: String,
}

/// The last known location of a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Location {
    /// The bridge.
    pub bridge: String,
    /// The VM's address.
    pub ip: Ipv4Addr,
}

/// The observed state.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// The record's text; `None` if there is no such file.
    pub record: Option<String>,
    /// Whether the VM's run directory exists.
    pub dir: bool,
    /// The link with the TAP's name.
    pub tap: Option<TapSeen>,
    /// The name of `tap` if it was renamed. Searched for only if the VM has a record and no link has the TAP's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renamed: Option<String>,
    /// The link with the bridge's name. If a slot is desired and it does not exist, the observation fails.
    pub bridge: Option<BridgeSeen>,
    /// The bridge's forwarding entry for the guest's MAC.
    pub entry: Option<Entry>,
    /// The permanent neighbour of the VM's address on the bridge.
    pub neighbour: Option<Mac>,
    /// The route or rule that takes packets to the VM's address from the bridge, if this host is the subnet's gateway.
    pub route_conflict: Option<RouteConflict>,
}

/// A link with the TAP's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TapSeen {
    /// Its label.
    pub alias: Option<String>,
    /// Who may open the TAP, if it is a persistent TAP with one queue; `None` for another kind of link.
    pub owner: Option<TapOwner>,
    /// Its MAC.
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
    /// It is a port of the desired bridge.
    pub enslaved: bool,
    /// It cannot reach other isolated ports.
    pub isolated: bool,
    /// The bridge learns source addresses from this port.
    pub learning: bool,
    /// Frames to unknown destinations are flooded to this port.
    pub unicast_flood: bool,
    /// It is in the group of ports, and the host accepts no configuration on it ([`crate::reconcile::net::host_links`]).
    pub configured: bool,
    /// Frames from this port change neither the bridge's spanning tree nor its multicast routers.
    #[serde(default)]
    pub guarded: bool,
}

/// A link with the bridge's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BridgeSeen {
    /// It is a bridge.
    pub is_bridge: bool,
    /// Its label.
    pub alias: Option<String>,
    /// Its MAC.
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
    /// The host's addresses on it; read only for a port that is to be isolated.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub host_addresses: BTreeSet<IpAddr>,
}

/// A forwarding entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// It leads to the TAP, does not age and cannot move.
    Sticky,
    /// It leads elsewhere, or may change.
    Other,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Write the record.
    WriteRecord,
    /// The same, since it differs: the store has changed, as no other program writes it.
    UpdateRecord,
    /// Remove the TAP, and with it its port of the bridge and all entries that lead to it.
    DeleteTap(Owned<String>),
    /// Rename the VM's TAP back; its VMM has it open.
    RenameTap(Owned<String>),
    /// Create the TAP, labelled, down.
    CreateTap(TapOwner),
    /// Set MAC, MTU and group, and have the host accept no configuration on it.
    Configure,
    /// Make the TAP a port of the bridge.
    Enslave,
    /// Set the flags of the bridge port.
    SetPort,
    /// Add the bridge's forwarding entry for the guest's MAC.
    PinMac,
    /// Add the host's neighbour entry for the guest.
    PinNeighbour,
    /// Remove the guest's neighbour entry on that bridge.
    UnpinNeighbour(Location),
    /// Remove the VM's run directory.
    RemoveRunDir,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteRecord | Self::UpdateRecord => f.write_str("write the VM's record"),
            Self::DeleteTap(tap) => write!(f, "delete TAP {}", tap.resource()),
            Self::RenameTap(tap) => write!(f, "rename TAP {} back", tap.resource()),
            Self::CreateTap(owner) => write!(f, "create the TAP for uid {owner}"),
            Self::Configure => f.write_str("set MAC and MTU of the TAP"),
            Self::Enslave => f.write_str("make the TAP a port of the bridge"),
            Self::SetPort => f.write_str("set isolation, learning and flooding of the port"),
            Self::PinMac => f.write_str("pin the guest's MAC to the port"),
            Self::PinNeighbour => f.write_str("pin the guest's MAC on the bridge"),
            Self::UnpinNeighbour(location) => {
                write!(f, "unpin neighbour {} on {}", location.ip, location.bridge)
            }
            Self::RemoveRunDir => f.write_str("remove the VM's run directory"),
        }
    }
}

impl Desired {
    /// The VM's names.
    pub fn names(&self) -> VmNames {
        owner::names_of(&self.label)
    }

    /// Its run directory.
    pub fn vm_dir(&self) -> PathBuf {
        RunDir(self.run_dir.clone()).vm_dir(owner::uid_of(&self.label))
    }

    /// Whether this daemon manages that bridge.
    pub fn is_managed(&self, bridge: &BridgeSeen) -> bool {
        let slot = self.slot.as_ref();
        slot.is_some_and(|slot| is_managed_bridge(self, slot, bridge))
    }

    /// The VM's desired location, or its last known one.
    pub fn location(&self) -> Option<Location> {
        let location = self.slot.as_ref().map(|slot| Location {
            bridge: slot.bridge.clone(),
            ip: slot.ip,
        });
        location.or_else(|| self.last_location.clone())
    }
}

/// The state of a new VM before the host network has created the bridge.
pub(super) fn unbuilt(desired: &Desired) -> Option<Observed> {
    let slot = desired.slot.as_ref()?;
    let instance = &desired.label.instance;
    let bridge = BridgeSeen {
        is_bridge: true,
        alias: Some(instance.host_network_label().to_string()),
        mac: owner::bridge_mac(instance, &slot.bridge),
        mtu: MTU,
        host_addresses: BTreeSet::new(),
    };
    Some(Observed {
        bridge: Some(bridge),
        ..Observed::default()
    })
}

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    match &desired.slot {
        None => Ok(teardown(desired, observed)),
        Some(slot) => build(desired, slot, observed),
    }
}

fn teardown(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let mut plan = Vec::new();
    let tap = observed.tap.as_ref();
    let tap = tap.and_then(|tap| owned(desired, tap));
    plan.extend(renamed(desired, observed).or(tap).map(Action::DeleteTap));
    // The MAC belongs to this VM alone: another VM that now has the address has another neighbour entry.
    if let Some(location) = &desired.last_location
        && observed.neighbour == Some(desired.names().guest_mac)
    {
        plan.push(Action::UnpinNeighbour(location.clone()));
    }
    if observed.dir {
        plan.push(Action::RemoveRunDir);
    }
    plan
}

fn build(desired: &Desired, slot: &Slot, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let bridge = usable_bridge(slot, observed)?;
    let mut plan = Vec::new();
    plan.extend(renamed(desired, observed).map(Action::RenameTap));
    let record = match &observed.record {
        Some(record) if *record == slot.record => None,
        Some(_) => Some(Action::UpdateRecord),
        None => Some(Action::WriteRecord),
    };
    // As in isolated mode: the record of a port that exists is written last.
    let exists = observed.record.is_some() && observed.tap.is_some();
    plan.extend(record.clone().filter(|_| !exists));
    let kept = plan_tap(desired, slot, bridge, observed.tap.as_ref(), &mut plan)?;
    let enslaved = kept.is_some_and(|tap| tap.enslaved);
    // A new TAP is created as a port of a managed bridge, which has a MAC of its own whatever the MACs of its ports.
    let created_enslaved = kept.is_none() && is_managed_bridge(desired, slot, bridge);
    if !enslaved && !created_enslaved {
        plan.push(Action::Enslave);
    }
    // A new port has the kernel's default flags, and its entries were removed with the old one.
    if !kept.is_some_and(|tap| tap.enslaved && has_flags(tap, slot)) {
        plan.push(Action::SetPort);
    }
    if !enslaved || observed.entry != Some(Entry::Sticky) {
        plan.push(Action::PinMac);
    }
    plan_neighbour(desired, slot, bridge, observed.neighbour, &mut plan)?;
    plan.extend(record.filter(|_| exists));
    // Last: what belongs to us is repaired whatever other programs do.
    match &observed.route_conflict {
        Some(taken) if plan.is_empty() => Err(taken.conflict(slot.ip)),
        Some(_) | None => Ok(plan),
    }
}

fn usable_bridge<'a>(slot: &Slot, observed: &'a Observed) -> Result<&'a BridgeSeen, Conflict> {
    let usable = observed.bridge.as_ref().filter(|seen| seen.is_bridge);
    usable.ok_or_else(|| not_a_bridge(&slot.bridge))
}

/// A link that is not a bridge has the name of the bridge.
pub fn not_a_bridge(name: &str) -> Conflict {
    Conflict {
        object: format!("link {name}"),
        remedy: format!(
            "it is not a bridge: rename or remove it (ip link set {name} name OTHER), or name another bridge"
        ),
    }
}

/// Returns the TAP that is kept, if any.
fn plan_tap<'a>(
    desired: &Desired,
    slot: &Slot,
    bridge: &BridgeSeen,
    seen: Option<&'a TapSeen>,
    plan: &mut Vec<Action>,
) -> Result<Option<&'a TapSeen>, Conflict> {
    let mut kept = None;
    if let Some(tap) = seen {
        let ours = owned(desired, tap).ok_or_else(|| foreign_tap(desired, tap))?;
        match tap.owner == Some(slot.tap_owner) {
            true => kept = Some(tap),
            false => plan.push(Action::DeleteTap(ours)),
        }
    }
    match kept {
        None => plan.push(Action::CreateTap(slot.tap_owner)),
        Some(tap)
            if tap.mac != desired.names().port_mac || tap.mtu != bridge.mtu || !tap.configured =>
        {
            plan.push(Action::Configure);
        }
        Some(_) => {}
    }
    Ok(kept)
}

fn plan_neighbour(
    desired: &Desired,
    slot: &Slot,
    bridge: &BridgeSeen,
    pinned: Option<Mac>,
    plan: &mut Vec<Action>,
) -> Result<(), Conflict> {
    let guest = desired.names().guest_mac;
    match pinned {
        Some(mac) if mac == guest => Ok(()),
        // On an unmanaged bridge the entry is foreign: two machines have the same address.
        Some(mac) if !is_managed_bridge(desired, slot, bridge) => Err(Conflict {
            object: format!("the permanent neighbour {} at {mac}", slot.ip),
            remedy: format!(
                "remove it: ip neigh del {} dev {}; or exclude that address from the group",
                slot.ip, slot.bridge
            ),
        }),
        Some(_) | None => {
            plan.push(Action::PinNeighbour);
            Ok(())
        }
    }
}

/// Whether this daemon manages the bridge.
pub(super) fn is_managed_bridge(desired: &Desired, slot: &Slot, bridge: &BridgeSeen) -> bool {
    let host_label = desired.label.instance.host_network_label();
    let alias = bridge.alias.as_deref();
    let claimed = host_label.claim_bridge(&slot.bridge, alias, bridge.mac);
    claimed.is_some()
}

fn has_flags(tap: &TapSeen, slot: &Slot) -> bool {
    let open = !slot.antispoof;
    tap.guarded
        && tap.isolated == slot.isolated
        && tap.learning == open
        && tap.unicast_flood == open
}

/// The TAP is labelled when it is created, so its MAC is not considered.
fn owned(desired: &Desired, tap: &TapSeen) -> Option<Owned<String>> {
    desired
        .label
        .claim(desired.tap.clone(), tap.alias.as_deref())
}

/// The VM's TAP under another name.
fn renamed(desired: &Desired, observed: &Observed) -> Option<Owned<String>> {
    let name = observed.renamed.clone()?;
    let alias = observed.tap.as_ref()?.alias.as_deref();
    desired.label.claim(name, alias)
}

fn foreign_tap(desired: &Desired, tap: &TapSeen) -> Conflict {
    let label: Option<Label> = tap.alias.as_deref().and_then(|alias| alias.parse().ok());
    let owner_message = label.and_then(|label| match label.owner {
        Owner::Vm { name, .. } => Some(format!(
            "it belongs to VM {name}: choose another tap_prefix"
        )),
        Owner::HostNetwork => None,
    });
    let rename = || {
        format!(
            "rename or remove it: ip link set {} name OTHER",
            desired.tap
        )
    };
    Conflict {
        object: format!("link {}", desired.tap),
        remedy: owner_message.unwrap_or_else(rename),
    }
}
