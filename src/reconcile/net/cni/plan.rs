//! Plans the actions for a data path that CNI plugins make. Pure.
//! Out of scope: the input of a plugin; the redirect between the plugins' interface and the TAP.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::super::Conflict;
use super::super::NetnsSeen;
use super::state::{
    Added, AddedSeen, ConflistSeen, Desired, Eth, Intent, IntentSeen, Observed, Tap, Want,
};
use super::{IFNAME, guest};
use crate::api::network::TapOwner;
use crate::cni::{Attachment, Network};
use crate::owner::{Owned, TAP};

/// What a DEL goes by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Basis {
    /// The configuration.
    pub network: Network,
    /// For whom; without a namespace when it is gone.
    pub attachment: Attachment,
    /// The plugins find not all of the addresses that ADD gave: by these some find what else they have to take back, and leave behind
    /// what they find no address for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub addresses_lost: bool,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Write the record.
    WriteRecord,
    /// DEL of every plugin; with it the cache's record goes.
    Detach(Box<Basis>),
    /// DEL of every plugin, whoever fails, and no more of it: what is left of the attachment is removed as far as it is provably its
    /// own, and what plugins owe is kept for the sweep.
    Abandon(Box<Basis>),
    /// Remove a cache record that nobody can read, and nobody knows what to DEL by.
    Forget(String),
    /// Remove the intent.
    RemoveIntent,
    /// Make the namespace: label, `lo`, and only then its name.
    CreateNetns,
    /// Make it visible to `ip netns`.
    LinkHandle,
    /// Settle the version with the plugins, and write down what they will be asked.
    WriteIntent,
    /// Write down again what they were asked.
    RestoreIntent(Box<Intent>),
    /// ADD of every plugin. What it leaves when it fails is taken back at once.
    Attach,
    /// Set the plugins' interface up.
    RaiseEth,
    /// Remove what bears the TAP's name; everything inside is ours.
    DeleteTap,
    /// Make the TAP, with the MTU of the plugins' interface.
    CreateTap(TapOwner, u32),
    /// Give the TAP that MTU.
    SetTapMtu(u32),
    /// Have the kernel give the TAP no IPv6 address: the namespace itself has nothing to say to the guest.
    StripIpv6,
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
            Self::WriteRecord => f.write_str("write the VM's record"),
            Self::Detach(basis) => write!(f, "detach from CNI network {}", basis.network.name),
            Self::Abandon(basis) => {
                write!(
                    f,
                    "give up the attachment to CNI network {}",
                    basis.network.name
                )
            }
            Self::Forget(network) => write!(f, "forget the damaged record of network {network}"),
            Self::RemoveIntent => f.write_str("remove the intent"),
            Self::CreateNetns => f.write_str("create the namespace"),
            Self::LinkHandle => f.write_str("show the namespace to ip netns"),
            Self::WriteIntent => f.write_str("write the intent"),
            Self::RestoreIntent(_) => f.write_str("write the intent again"),
            Self::Attach => f.write_str("attach to the CNI network"),
            Self::RaiseEth => write!(f, "bring {IFNAME} up"),
            Self::DeleteTap => write!(f, "delete the wrong {TAP}"),
            Self::CreateTap(owner, mtu) => write!(f, "create {TAP} for uid {owner}, MTU {mtu}"),
            Self::SetTapMtu(mtu) => write!(f, "set the MTU of {TAP} to {mtu}"),
            Self::StripIpv6 => write!(f, "keep IPv6 addresses off {TAP}"),
            Self::UnlinkHandle => f.write_str("hide the namespace from ip netns"),
            Self::DeleteNetns(path) => write!(f, "delete namespace {}", path.thing().display()),
            Self::RemoveRunDir => f.write_str("remove the VM's run directory"),
        }
    }
}

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    match &desired.want {
        None => Ok(teardown(desired, observed)),
        Some(want) => build(desired, want, observed),
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

fn build(desired: &Desired, want: &Want, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let gaps = desired
        .place()
        .gaps(&observed.netns, observed.handle.as_ref())?;
    let mut plan = Vec::new();
    if observed.record.as_ref() != Some(&want.record) {
        plan.push(Action::WriteRecord);
    }
    let standing = standing(observed);
    if standing.is_none() {
        undo(desired, observed, &mut plan);
        let tap = observed.inside.as_ref().and_then(|seen| seen.tap.as_ref());
        if tap.is_some() && makes_a_tap(&observed.conflist) {
            plan.push(Action::DeleteTap);
        }
    }
    if standing.is_none() {
        // First, for it may turn out that nothing can be attached.
        plan.push(Action::WriteIntent);
    }
    plan.extend(gaps.netns.then_some(Action::CreateNetns));
    plan.extend(gaps.handle.then_some(Action::LinkHandle));
    let Some((added, eth, tap)) = standing else {
        plan.push(Action::Attach);
        // The TAP's MTU is that of an interface which no look has found yet.
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
        plan.push(Action::RaiseEth);
    }
    if guest::chains_tap(&added.result, &added.attachment).is_none() {
        plan_tap(want, eth, tap, &mut plan);
    }
    Ok(plan)
}

fn plan_tap(want: &Want, eth: &Eth, seen: Option<&Tap>, plan: &mut Vec<Action>) {
    let kept = seen.filter(|tap| tap.owner == Some(want.tap_owner));
    match kept {
        Some(tap) if tap.mtu == eth.mtu => {}
        Some(_) => plan.push(Action::SetTapMtu(eth.mtu)),
        None => {
            plan.extend(seen.map(|_| Action::DeleteTap));
            plan.push(Action::CreateTap(want.tap_owner, eth.mtu));
        }
    }
    // A new one is born so.
    if kept.is_some_and(|tap| !tap.ipv6_off) {
        plan.push(Action::StripIpv6);
    }
}

/// The ADD, if it was not cut short and what it made is still as it made it.
fn standing(observed: &Observed) -> Option<(&Added, &Eth, Option<&Tap>)> {
    let added = observed.remembered()?;
    let inside = observed.inside.as_ref()?;
    let eth = inside.eth.as_ref()?;
    let (result, attachment) = (&added.result, &added.attachment);
    // What a DEL was begun of is not whole, though it may look so.
    let sound = observed.complaint.is_none()
        && observed.failed() == 0
        && !observed.adding()
        && guest::unfit(result, attachment).is_none()
        && guest::disagreement(result, attachment, inside).is_none();
    sound.then_some((added, eth, inside.tap.as_ref()))
}

/// DEL of what an ADD left, whole or cut short.
fn undo(desired: &Desired, observed: &Observed, plan: &mut Vec<Action>) {
    let noted = observed.intent != IntentSeen::Absent;
    let cached = observed.added != AddedSeen::Absent;
    if noted || cached {
        match basis(desired, observed) {
            Some(basis) => plan.push(match observed.failed() < desired.tries() {
                true => Action::Detach(Box::new(basis)),
                false => Action::Abandon(Box::new(basis)),
            }),
            None if cached => plan.extend(desired.network.clone().map(Action::Forget)),
            None => {}
        }
    }
    if noted {
        plan.push(Action::RemoveIntent);
    }
}

/// Not all addresses that ADD gave are on the plugins' interface, or nobody knows which it gave.
fn addresses_lost(observed: &Observed) -> bool {
    let eth = observed.inside.as_ref().and_then(|seen| seen.eth.as_ref());
    let (Some(added), Some(eth)) = (observed.remembered(), eth) else {
        return true;
    };
    let given = guest::expected(&added.result, &added.attachment).addresses;
    !given.is_subset(&eth.addresses)
}

/// What ADD went by or, when nobody can say that any more, what it would go by now.
fn basis(desired: &Desired, observed: &Observed) -> Option<Basis> {
    // A stranger's namespace in the place of ours is no business of the plugins.
    let netns = owned_netns(desired, observed).map(|netns| netns.thing().clone());
    let (network, attachment) = match (&observed.intent, &observed.added, &observed.conflist) {
        (IntentSeen::Written(intent), _, _) => (&intent.network, intent.attachment.clone()),
        (_, AddedSeen::Remembered(added), _) => (&added.network, added.attachment.clone()),
        (_, _, ConflistSeen::Found(network)) => (&**network, desired.attachment()),
        (_, _, ConflistSeen::Unasked | ConflistSeen::Unusable(_)) => return None,
    };
    Some(Basis {
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

/// A plugin that makes a TAP wants its name to be free.
fn makes_a_tap(conflist: &ConflistSeen) -> bool {
    match conflist {
        ConflistSeen::Found(network) => super::tap_plugin(network),
        ConflistSeen::Unasked | ConflistSeen::Unusable(_) => false,
    }
}
