//! Plans the actions for a VM's data path. Pure.
//! Out of scope: rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::api::network::{Block, Mac, TapOwner};
use crate::host::tc::Insn;
use crate::owner::{Label, Owned, VmNames};
use crate::reconcile::Conflict;
use crate::reconcile::firewall::antispoof;
use crate::reconcile::net::isolated::{Action, Side};
use crate::reconcile::net::place::NetnsSeen;
use crate::reconcile::net::place::VmPaths;
use crate::reconcile::net::routed::RouteConflict;
use crate::reconcile::net::{MTU, NEXT_HOP};

/// The desired state for one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The owner; the names of links and files are derived from it.
    pub label: Label,
    /// The directory of the namespace and the record.
    pub run_dir: PathBuf,
    /// The data path. `None`: it is to be removed.
    pub slot: Option<Slot>,
}

/// A data path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// Its /30.
    pub block: Block,
    /// Who may open the TAP.
    pub tap_owner: TapOwner,
    /// What a daemon that has lost its state reads to adopt the VM.
    pub record: String,
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
    /// The link with the veth's name in the host namespace.
    pub host_link: Option<HostLink>,
    /// The content of the namespace, if it is ours.
    pub inside: Option<Inside>,
}

/// A link in the host namespace with one of our names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostLink {
    /// Its label.
    pub alias: Option<String>,
    /// Its MAC.
    pub mac: Mac,
    /// Its index.
    pub index: u32,
    /// Its peer's index, in the peer's namespace.
    pub peer: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// IPv4 addresses.
    pub addresses: BTreeSet<Ipv4Network>,
    /// Permanent neighbours.
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
    /// Whether the host sends the guest's packets directly over it.
    pub routed: bool,
    /// The route or rule that takes the guest's packets instead.
    #[serde(default)]
    pub route_conflict: Option<RouteConflict>,
    /// It is in the group of isolated VMs' links, IPv6 is off on it, and packets that arrive on it are forwarded ([`crate::reconcile::net::host_links`]).
    pub configured: bool,
    /// It has a master: its packets enter the host as the master's packets, which rules about our links do not match.
    #[serde(default)]
    pub has_master: bool,
}

/// The content of the namespace.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inside {
    /// The link named `tap0`.
    pub tap: Option<TapSeen>,
    /// The link named `up0`.
    pub uplink: Option<Uplink>,
    /// Next hop of the default route over `up0`.
    pub default_via: Option<Ipv4Addr>,
    /// Settings that differ from ours: key to the value that it should have.
    pub drifted: BTreeMap<String, String>,
}

/// A link named `tap0`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TapSeen {
    /// Who may open the TAP, if it is a persistent TAP with one queue; `None` for another kind of link.
    pub owner: Option<TapOwner>,
    /// Its MAC.
    pub mac: Mac,
    /// Administratively up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// IPv4 addresses.
    pub addresses: BTreeSet<Ipv4Network>,
    /// Permanent neighbours.
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
    /// On-link routes over it.
    pub routes: BTreeSet<Ipv4Network>,
    /// The digest of the program that filters the guest's frames ([`antispoof::digest`]).
    #[serde(default)]
    pub program: Option<String>,
    /// It has a master.
    #[serde(default)]
    pub has_master: bool,
}

/// A link named `up0`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Uplink {
    /// Its index.
    pub index: u32,
    /// Its peer's index, in the host namespace.
    pub peer: Option<u32>,
    /// Its MAC.
    pub mac: Mac,
    /// Administratively up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// Permanent neighbours.
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
    /// It has a master.
    #[serde(default)]
    pub has_master: bool,
}

impl Desired {
    /// The VM's names.
    pub fn names(&self) -> VmNames {
        self.paths().names()
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

    pub(super) fn paths(&self) -> VmPaths<'_> {
        VmPaths {
            label: &self.label,
            run_dir: &self.run_dir,
        }
    }
}

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    match &desired.slot {
        None => Ok(teardown(desired, observed)),
        Some(slot) => build(desired, slot, observed),
    }
}

fn teardown(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let mut plan = Vec::new();
    if observed.handle.as_ref() == Some(&desired.netns()) {
        plan.push(Action::UnlinkHandle);
    }
    if let NetnsSeen::Present(alias) = &observed.netns
        && let Some(netns) = desired.label.claim(desired.netns(), alias.as_deref())
    {
        plan.push(Action::DeleteNetns(netns));
    }
    // Last: the kernel removes the links of many deleted namespaces together. Deleting them one by one takes an RCU grace period each,
    // under the lock of all links.
    if let Some(link) = owned_host_link(desired, observed.host_link.as_ref()) {
        plan.push(Action::DeleteHostLink(link));
    }
    if observed.dir {
        plan.push(Action::RemoveRunDir);
    }
    plan
}

fn build(desired: &Desired, slot: &Slot, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let mut plan = Vec::new();
    let record = match &observed.record {
        Some(record) if *record == slot.record => None,
        Some(_) => Some(Action::UpdateRecord),
        None => Some(Action::WriteRecord),
    };
    // If the slot exists, the record is written last: a record that does not fit on a full disk must not prevent repairs.
    let exists = observed.record.is_some() && observed.inside.is_some();
    plan.extend(record.clone().filter(|_| !exists));
    plan_netns(desired, observed, &mut plan)?;
    let empty = Inside::default();
    let inside = observed.inside.as_ref().unwrap_or(&empty);
    if !inside.drifted.is_empty() {
        plan.push(Action::SetSysctls(inside.drifted.clone()));
    }
    plan_tap(desired, slot, inside.tap.as_ref(), &mut plan);
    plan_veth(
        desired,
        slot,
        observed.host_link.as_ref(),
        inside,
        &mut plan,
    )?;
    plan.extend(record.filter(|_| exists));
    // Last: what belongs to us is repaired whatever other programs do.
    match observed
        .host_link
        .as_ref()
        .and_then(|link| link.route_conflict.as_ref())
    {
        Some(route_conflict) if plan.is_empty() => Err(route_conflict.conflict(slot.block.guest())),
        Some(_) | None => Ok(plan),
    }
}

fn plan_netns(
    desired: &Desired,
    observed: &Observed,
    plan: &mut Vec<Action>,
) -> Result<(), Conflict> {
    let paths = desired.paths();
    let missing = paths.missing(&observed.netns, observed.handle.as_ref())?;
    plan.extend(missing.netns.then_some(Action::CreateNetns));
    plan.extend(missing.handle.then_some(Action::LinkHandle));
    Ok(())
}

fn plan_tap(desired: &Desired, slot: &Slot, seen: Option<&TapSeen>, plan: &mut Vec<Action>) {
    let names = desired.names();
    let matches = |tap: &&TapSeen| tap.owner == Some(slot.tap_owner);
    let kept = seen.filter(matches);
    if kept.is_none() {
        if seen.is_some() {
            plan.push(Action::DeleteNetnsLink(Side::Tap));
        }
        plan.push(Action::CreateTap(slot.tap_owner));
    }
    if kept.is_some_and(|tap| tap.has_master) {
        plan.push(Action::ClearMaster(Side::Tap));
    }
    // Before the TAP is up: no neighbour is learned from a guest.
    let digest = antispoof::digest(&filter_program(slot, &names));
    if kept.and_then(|tap| tap.program.as_ref()) != Some(&digest) {
        plan.push(Action::SetTapFilter { digest });
    }
    if !kept.is_some_and(|tap| tap.up && tap.mtu == MTU && tap.mac == names.tap_mac) {
        plan.push(Action::Configure(Side::Tap));
    }
    let gateway = gateway_network(slot.block);
    if !kept.is_some_and(|tap| tap.addresses.contains(&gateway)) {
        plan.push(Action::AddAddress(Side::Tap, gateway));
    }
    if kept.is_some_and(|tap| {
        tap.up && tap.addresses.contains(&gateway) && !tap.routes.contains(&slot.block.network())
    }) {
        plan.push(Action::AddBlockRoute(Side::Tap, slot.block));
    }
    let (guest, mac) = (slot.block.guest(), names.guest_mac);
    if kept.and_then(|tap| tap.neighbours.get(&guest)) != Some(&mac) {
        plan.push(Action::AddNeighbour(Side::Tap, guest, mac));
    }
}

/// The program that filters the guest's frames.
pub(super) fn filter_program(slot: &Slot, names: &VmNames) -> Vec<Insn> {
    let (guest, gateway) = (slot.block.guest(), slot.block.gateway());
    antispoof::program_isolated(names.guest_mac, guest, gateway)
}

fn plan_veth(
    desired: &Desired,
    slot: &Slot,
    host_link: Option<&HostLink>,
    inside: &Inside,
    plan: &mut Vec<Action>,
) -> Result<(), Conflict> {
    let names = desired.names();
    let owned = owned_host_link(desired, host_link);
    if host_link.is_some() && owned.is_none() {
        return Err(Conflict {
            object: format!("link {}", names.host_link),
            remedy: format!(
                "rename or remove it: ip link set {} name OTHER",
                names.host_link
            ),
        });
    }
    let uplink = inside.uplink.as_ref();
    let pair = host_link.zip(uplink).filter(|(host, uplink)| {
        host.peer == Some(uplink.index) && uplink.peer == Some(host.index)
    });
    if pair.is_none() {
        plan.extend(owned.map(Action::DeleteHostLink));
        if uplink.is_some() {
            plan.push(Action::DeleteNetnsLink(Side::Uplink));
        }
        plan.push(Action::CreateVeth);
    }
    let host = pair.map(|(host, _)| host);
    let uplink = pair.map(|(_, uplink)| uplink);
    plan_host_end(desired, slot, host, &names, plan);
    plan_uplink(uplink, inside.default_via, &names, plan);
    Ok(())
}

fn plan_host_end(
    desired: &Desired,
    slot: &Slot,
    host: Option<&HostLink>,
    names: &VmNames,
    plan: &mut Vec<Action>,
) {
    // First: while it has a master, the guest's packets do not appear to come from it.
    if host.is_some_and(|host| host.has_master) {
        plan.push(Action::ClearMaster(Side::Host));
    }
    let label = desired.label.to_string();
    if !host.is_some_and(|host| host.alias.as_ref() == Some(&label) && host.configured) {
        plan.push(Action::LabelHostLink);
    }
    if !host.is_some_and(|host| host.up && host.mtu == MTU && host.mac == names.host_mac) {
        plan.push(Action::Configure(Side::Host));
    }
    let gateway = gateway_network(slot.block);
    if !host.is_some_and(|host| host.addresses.contains(&gateway)) {
        plan.push(Action::AddAddress(Side::Host, gateway));
    }
    let has_route_conflict = host.is_some_and(|host| host.route_conflict.is_some());
    if !has_route_conflict
        && host.is_some_and(|host| host.up && host.addresses.contains(&gateway) && !host.routed)
    {
        plan.push(Action::AddBlockRoute(Side::Host, slot.block));
    }
    let guest = slot.block.guest();
    if host.and_then(|host| host.neighbours.get(&guest)) != Some(&names.uplink_mac) {
        plan.push(Action::AddNeighbour(Side::Host, guest, names.uplink_mac));
    }
}

fn plan_uplink(
    uplink: Option<&Uplink>,
    default_via: Option<Ipv4Addr>,
    names: &VmNames,
    plan: &mut Vec<Action>,
) {
    if uplink.is_some_and(|up| up.has_master) {
        plan.push(Action::ClearMaster(Side::Uplink));
    }
    if !uplink.is_some_and(|up| up.up && up.mtu == MTU && up.mac == names.uplink_mac) {
        plan.push(Action::Configure(Side::Uplink));
    }
    if uplink.and_then(|up| up.neighbours.get(&NEXT_HOP)) != Some(&names.host_mac) {
        plan.push(Action::AddNeighbour(Side::Uplink, NEXT_HOP, names.host_mac));
    }
    if uplink.is_none() || default_via != Some(NEXT_HOP) {
        plan.push(Action::AddDefaultRoute);
    }
}

fn owned_host_link(desired: &Desired, link: Option<&HostLink>) -> Option<Owned<String>> {
    let link = link?;
    let name = desired.names().host_link;
    desired
        .label
        .claim_link(&name, link.alias.as_deref(), link.mac)
}

/// The gateway's address with the block's prefix.
fn gateway_network(block: Block) -> Ipv4Network {
    Ipv4Network::new(block.gateway(), Block::PREFIX_LEN).expect("30 is a prefix length")
}
