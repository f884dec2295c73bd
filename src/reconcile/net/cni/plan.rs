//! Plans the actions for a data path that CNI plugins make. Pure.
//! Out of scope: the input of a plugin; the redirect between the plugins' interface and the TAP.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::super::Conflict;
use super::state::{
    Added, AddedSeen, ConflistSeen, DataPath, Desired, Eth, Intent, IntentSeen, Observed, Tap,
};
use super::{IFNAME, guest};
use crate::api::network::TapOwner;
use crate::cni::{Attachment, Network};
use crate::owner::{Owned, TAP};
use crate::reconcile::net::place::NetnsSeen;

/// The input of a DEL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DelInput {
    /// The configuration.
    pub network: Network,
    /// The container; without a namespace if that does not exist any more.
    pub attachment: Attachment,
    /// The plugins cannot find all addresses that ADD assigned. Some plugins find their other resources by these addresses, and leave
    /// behind the resources of missing addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub addresses_lost: bool,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Write the record.
    WriteRecord,
    /// The same, since it differs: the store has changed, as no other program writes it.
    UpdateRecord,
    /// DEL of every plugin; it also removes the cache's record.
    Detach(Box<DelInput>),
    /// DEL of every plugin, even if some fail, for the last time: what is left of the attachment is removed if it certainly belongs to it,
    /// and what the plugins have not released is recorded for the sweep.
    Abandon(Box<DelInput>),
    /// Remove a cache record that cannot be read and without which there is no input for DEL.
    Forget(String),
    /// Remove the intent.
    RemoveIntent,
    /// Create the namespace: label, `lo`, and then its name.
    CreateNetns,
    /// Make it visible to `ip netns`.
    LinkHandle,
    /// Agree on a version with the plugins, and write the input of ADD to the disk.
    WriteIntent,
    /// Write the input of ADD again.
    RestoreIntent(Box<Intent>),
    /// ADD of every plugin. If it fails, it is undone at once.
    Attach,
    /// Set the plugins' interface up.
    SetEthUp,
    /// Remove the link with the TAP's name; everything in the namespace is ours.
    DeleteTap,
    /// Create the TAP with the MTU of the plugins' interface.
    CreateTap(TapOwner, u32),
    /// Set this MTU on the TAP.
    SetTapMtu(u32),
    /// Keep the kernel from assigning IPv6 addresses to the TAP: the namespace itself does not communicate with the guest.
    DisableIpv6,
    /// Remove the namespace's name.
    UnlinkHandle,
    /// Remove the namespace.
    DeleteNetns(Owned<PathBuf>),
    /// Remove the VM's run directory.
    RemoveRunDir,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteRecord | Self::UpdateRecord => f.write_str("write the VM's record"),
            Self::Detach(basis) => write!(f, "detach from CNI network {}", basis.network.name),
            Self::Abandon(basis) => {
                write!(
                    f,
                    "give up the attachment to CNI network {}",
                    basis.network.name
                )
            }
            Self::Forget(network) => {
                write!(f, "remove the damaged cache record of network {network}")
            }
            Self::RemoveIntent => f.write_str("remove the intent"),
            Self::CreateNetns => f.write_str("create the namespace"),
            Self::LinkHandle => f.write_str("make the namespace visible to ip netns"),
            Self::WriteIntent => f.write_str("write the intent"),
            Self::RestoreIntent(_) => f.write_str("write the intent again"),
            Self::Attach => f.write_str("attach to the CNI network"),
            Self::SetEthUp => write!(f, "bring {IFNAME} up"),
            Self::DeleteTap => write!(f, "delete the wrong {TAP}"),
            Self::CreateTap(owner, mtu) => write!(f, "create {TAP} for uid {owner}, MTU {mtu}"),
            Self::SetTapMtu(mtu) => write!(f, "set the MTU of {TAP} to {mtu}"),
            Self::DisableIpv6 => write!(f, "turn IPv6 address generation off on {TAP}"),
            Self::UnlinkHandle => f.write_str("hide the namespace from ip netns"),
            Self::DeleteNetns(path) => write!(f, "delete namespace {}", path.resource().display()),
            Self::RemoveRunDir => f.write_str("remove the VM's run directory"),
        }
    }
}

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    match &desired.data_path {
        None => Ok(teardown(desired, observed)),
        Some(data_path) => build(desired, data_path, observed),
    }
}

fn teardown(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let mut plan = Vec::new();
    undo(desired, observed, &mut plan);
    if observed.handle.as_ref() == Some(&desired.netns()) {
        plan.push(Action::UnlinkHandle);
    }
    plan.extend(owned_netns(desired, observed).map(Action::DeleteNetns));
    if observed.dir {
        plan.push(Action::RemoveRunDir);
    }
    plan
}

fn build(
    desired: &Desired,
    data_path: &DataPath,
    observed: &Observed,
) -> Result<Vec<Action>, Conflict> {
    let missing = desired
        .paths()
        .missing(&observed.netns, observed.handle.as_ref())?;
    let mut plan = Vec::new();
    match &observed.record {
        Some(record) if *record == data_path.record => {}
        Some(_) => plan.push(Action::UpdateRecord),
        None => plan.push(Action::WriteRecord),
    }
    let intact = intact_attachment(observed);
    if intact.is_none() {
        undo(desired, observed, &mut plan);
        let tap = observed.inside.as_ref().and_then(|seen| seen.tap.as_ref());
        if tap.is_some() && creates_tap(&observed.conflist) {
            plan.push(Action::DeleteTap);
        }
    }
    if intact.is_none() {
        // First, because it may find that the VM cannot be attached.
        plan.push(Action::WriteIntent);
    }
    plan.extend(missing.netns.then_some(Action::CreateNetns));
    plan.extend(missing.handle.then_some(Action::LinkHandle));
    let Some((added, eth, tap)) = intact else {
        plan.push(Action::Attach);
        // The TAP gets the MTU of an interface that has not been observed yet.
        return Ok(plan);
    };
    if !matches!(observed.intent, IntentSeen::Written(_)) {
        let (network, attachment) = (added.network.clone(), added.attachment.clone());
        let intent = Intent {
            adding: false,
            ..Intent::new(network.digest(), network, attachment)
        };
        plan.push(Action::RestoreIntent(Box::new(intent)));
    }
    if !eth.up {
        plan.push(Action::SetEthUp);
    }
    if guest::chain_tap(&added.result, &added.attachment).is_none() {
        plan_tap(data_path, eth, tap, &mut plan);
    }
    Ok(plan)
}

fn plan_tap(data_path: &DataPath, eth: &Eth, seen: Option<&Tap>, plan: &mut Vec<Action>) {
    let kept = seen.filter(|tap| tap.owner == Some(data_path.tap_owner));
    match kept {
        Some(tap) if tap.mtu == eth.mtu => {}
        Some(_) => plan.push(Action::SetTapMtu(eth.mtu)),
        None => {
            plan.extend(seen.map(|_| Action::DeleteTap));
            plan.push(Action::CreateTap(data_path.tap_owner, eth.mtu));
        }
    }
    // A new TAP is created without IPv6.
    if kept.is_some_and(|tap| !tap.ipv6_off) {
        plan.push(Action::DisableIpv6);
    }
}

/// Returns the ADD, if it was completed and its result is unchanged.
fn intact_attachment(observed: &Observed) -> Option<(&Added, &Eth, Option<&Tap>)> {
    let added = observed.recorded()?;
    let inside = observed.inside.as_ref()?;
    let eth = inside.eth.as_ref()?;
    let (result, attachment) = (&added.result, &added.attachment);
    // An attachment is incomplete after a DEL has begun, even if it looks complete.
    let is_intact = observed.check_failure.is_none()
        && observed.failed() == 0
        && !observed.adding()
        && guest::invalid_reason(result, attachment).is_none()
        && guest::disagreement(result, attachment, inside).is_none();
    is_intact.then_some((added, eth, inside.tap.as_ref()))
}

/// DEL of a complete or an interrupted ADD.
fn undo(desired: &Desired, observed: &Observed, plan: &mut Vec<Action>) {
    let has_intent = observed.intent != IntentSeen::Absent;
    let has_record = observed.added != AddedSeen::Absent;
    if has_intent || has_record {
        match del_input(desired, observed) {
            Some(basis) => plan.push(match observed.failed() < desired.tries() {
                true => Action::Detach(Box::new(basis)),
                false => Action::Abandon(Box::new(basis)),
            }),
            None if has_record => plan.extend(desired.network.clone().map(Action::Forget)),
            None => {}
        }
    }
    if has_intent {
        plan.push(Action::RemoveIntent);
    }
}

/// Whether addresses that ADD assigned are missing on the plugins' interface, or are not known.
fn addresses_lost(observed: &Observed) -> bool {
    let eth = observed.inside.as_ref().and_then(|seen| seen.eth.as_ref());
    let (Some(added), Some(eth)) = (observed.recorded(), eth) else {
        return true;
    };
    let assigned = guest::expected(&added.result, &added.attachment).addresses;
    !assigned.is_subset(&eth.addresses)
}

/// The input of ADD or, if that is lost, the input that ADD would have now.
fn del_input(desired: &Desired, observed: &Observed) -> Option<DelInput> {
    // A foreign namespace at our path does not concern the plugins.
    let netns = owned_netns(desired, observed).map(|netns| netns.resource().clone());
    let (network, attachment) = match (&observed.intent, &observed.added, &observed.conflist) {
        (IntentSeen::Written(intent), _, _) => (&intent.network, intent.attachment.clone()),
        (_, AddedSeen::Recorded(added), _) => (&added.network, added.attachment.clone()),
        (_, _, ConflistSeen::Found(network)) => (&**network, desired.attachment()),
        (_, _, ConflistSeen::NotRead | ConflistSeen::Unusable(_)) => return None,
    };
    Some(DelInput {
        network: network.clone(),
        attachment: Attachment {
            netns,
            ..attachment
        },
        addresses_lost: addresses_lost(observed),
    })
}

fn owned_netns(desired: &Desired, observed: &Observed) -> Option<Owned<PathBuf>> {
    match &observed.netns {
        NetnsSeen::Absent => None,
        NetnsSeen::Present(alias) => desired.label.claim(desired.netns(), alias.as_deref()),
    }
}

/// A plugin that creates a TAP requires that its name is not in use.
fn creates_tap(conflist: &ConflistSeen) -> bool {
    match conflist {
        ConflistSeen::Found(network) => super::has_tap_plugin(network),
        ConflistSeen::NotRead | ConflistSeen::Unusable(_) => false,
    }
}
