//! Observes a data path that CNI plugins make.
//! Out of scope: what is desired.

use std::sync::atomic::Ordering;

use super::super::NetnsSeen;
use super::super::observe::{addresses, mac, tap_owner};
use super::super::place::{Room, Seen};
use super::routes::Route;
use super::state::{
    Added, AddedSeen, ConflistSeen, Desired, Eth, Inside, Intent, IntentSeen, Observed, Tap,
};
use super::{Attach, IFNAME, INTENT, fault, guest, one_line};
use crate::cni::{Cached, Error, LIMITED, Outcome};
use crate::host::{self, fs, link, route};
use crate::owner::TAP;

pub(super) async fn observe(attach: &Attach, desired: &Desired) -> Result<Observed, host::Error> {
    let place = desired.place();
    let Seen {
        record,
        dir,
        handle,
    } = place.look()?;
    let intent = look_at_intent(desired)?;
    let added = look_at_cache(attach, desired, &intent)?;
    let conflist = look_at_conflist(attach, desired, &intent, &added);
    let tap = match &added {
        AddedSeen::Remembered(added) => guest::tap(&added.result, &added.attachment),
        AddedSeen::Absent | AddedSeen::Damaged => TAP,
    };
    let (netns, inside) = match place.open()? {
        None => (NetnsSeen::Absent, None),
        Some(netns) => {
            let room = attach.door.enter(netns).await?;
            let lo = link::get(&room.netlink, "lo").await?;
            let alias = lo.and_then(|lo| lo.alias);
            let ours = desired.label.claim((), alias.as_deref()).is_some();
            let inside = match ours {
                true => Some(look_inside(&room, tap).await?),
                false => None,
            };
            (NetnsSeen::Present(alias), inside)
        }
    };
    let mut observed = Observed {
        record,
        dir,
        netns,
        handle,
        conflist,
        intent,
        added,
        inside,
        complaint: None,
        limited: None,
    };
    observed.limited = limited(attach, desired, &observed).await;
    observed.complaint = check(attach, desired, &observed).await?;
    Ok(observed)
}

fn look_at_intent(desired: &Desired) -> Result<IntentSeen, host::Error> {
    let Some(bytes) = fs::read(&desired.vm_dir().join(INTENT))? else {
        return Ok(IntentSeen::Absent);
    };
    Ok(match serde_json::from_slice::<Intent>(&bytes) {
        Ok(intent) => IntentSeen::Written(Box::new(intent)),
        Err(_) => IntentSeen::Damaged,
    })
}

/// By the network's name, where that is known: a listing is long where there are many VMs.
fn look_at_cache(
    attach: &Attach,
    desired: &Desired,
    intent: &IntentSeen,
) -> Result<AddedSeen, host::Error> {
    let runtime = &attach.runtime;
    let attachment = desired.attachment();
    let network = match intent {
        IntentSeen::Written(intent) => Some(&intent.network.name),
        IntentSeen::Absent | IntentSeen::Damaged => desired.network.as_ref(),
    };
    let found = match network {
        Some(network) => runtime.cached(network, &attachment),
        None => runtime.attachments_of(&attachment.container_id).map(|its| {
            let mut its = its.into_iter();
            its.find(|found| found.attachment.ifname == attachment.ifname)
        }),
    };
    match found {
        Ok(None) => Ok(AddedSeen::Absent),
        Ok(Some(cached)) => Ok(read_cached(&cached)),
        Err(Error::DamagedCache { .. }) => Ok(AddedSeen::Damaged),
        Err(error) => {
            let network = network.map_or("", String::as_str);
            Err(fault("read what the cache knows of", network, error))
        }
    }
}

fn read_cached(cached: &Cached) -> AddedSeen {
    let added = cached.config().and_then(|network| {
        Ok(Added {
            result: cached.result(network.cni_version)?,
            attachment: cached.attachment.clone(),
            network,
        })
    });
    match added {
        Ok(added) => AddedSeen::Remembered(Box::new(added)),
        Err(_) => AddedSeen::Damaged,
    }
}

fn look_at_conflist(
    attach: &Attach,
    desired: &Desired,
    intent: &IntentSeen,
    added: &AddedSeen,
) -> ConflistSeen {
    let nothing_else_to_go_by = match (intent, added) {
        (IntentSeen::Written(_), _) | (_, AddedSeen::Remembered(_)) => false,
        (IntentSeen::Absent, AddedSeen::Absent) => false,
        (IntentSeen::Absent | IntentSeen::Damaged, AddedSeen::Absent | AddedSeen::Damaged) => true,
    };
    let Some(network) = &desired.network else {
        return ConflistSeen::Unasked;
    };
    if desired.want.is_none() && !nothing_else_to_go_by {
        return ConflistSeen::Unasked;
    }
    match attach.runtime.find(network) {
        Ok(network) => ConflistSeen::Found(Box::new(network)),
        Err(error) => ConflistSeen::Unusable(one_line(&error)),
    }
}

pub(super) async fn look_inside(room: &Room, tap: &str) -> Result<Inside, host::Error> {
    let eth = match link::get(&room.netlink, IFNAME).await? {
        None => None,
        Some(eth) => Some(Eth {
            mac: mac(eth.mac),
            up: eth.up,
            mtu: eth.mtu,
            addresses: addresses(&room.netlink, eth.index).await?,
        }),
    };
    let tap = match link::get(&room.netlink, tap).await? {
        None => None,
        Some(found) => Some(Tap {
            owner: tap_owner(&found),
            mtu: found.mtu,
            ipv6_off: found.ipv6.is_none_or(|ipv6| ipv6.bare || ipv6.disabled),
        }),
    };
    Ok(Inside { eth, tap })
}

/// The routes of the plugins' interface in the main table, in the order of the kernel's list.
pub(super) async fn routes(room: &Room) -> Result<Option<Vec<Route>>, host::Error> {
    let Some(eth) = link::get(&room.netlink, IFNAME).await? else {
        return Ok(None);
    };
    let routes = route::list(&room.netlink).await?;
    let its = routes
        .into_iter()
        .filter(|route| route.link == Some(eth.index));
    Ok(Some(its.map(|route| (route.dst, route.gateway)).collect()))
}

/// Asks the plugins of a VM that is attached, with CHECK, whether it may still be unable to talk (STATUS, code 51).
async fn limited(attach: &Attach, desired: &Desired, observed: &Observed) -> Option<String> {
    let AddedSeen::Remembered(added) = &observed.added else {
        return None;
    };
    if desired.want.is_none() || !attach.check.load(Ordering::Relaxed) {
        return None;
    }
    match attach.runtime.serves(&added.network).await {
        Err(Error::TryAgain(failure)) if failure.code == LIMITED => Some(failure.to_string()),
        // It could not serve an ADD, which nobody asks for.
        Err(error) => {
            tracing::debug!(%error, network = added.network.name, "STATUS");
            None
        }
        Ok(()) => None,
    }
}

/// Asks the plugins, if that is still to be done and there is something to ask about.
async fn check(
    attach: &Attach,
    desired: &Desired,
    observed: &Observed,
) -> Result<Option<String>, host::Error> {
    let AddedSeen::Remembered(added) = &observed.added else {
        return Ok(None);
    };
    let eth = observed.inside.as_ref().and_then(|seen| seen.eth.as_ref());
    if desired.want.is_none() || eth.is_none() || !attach.check.swap(false, Ordering::Relaxed) {
        return Ok(None);
    }
    match attach
        .runtime
        .check(&added.network, &added.attachment)
        .await
    {
        Ok(Outcome::Done | Outcome::Disabled | Outcome::Unknown) => Ok(None),
        // It was looked, and it is not as it was made.
        Err(Error::Plugin(failure)) => Ok(Some(failure.to_string())),
        // It could not look now, which says nothing of the VM; it is asked again with the next resync.
        Err(Error::TryAgain(failure)) => {
            tracing::debug!(%failure, "a CNI plugin could not look");
            Ok(None)
        }
        // It was not looked.
        Err(error) => Err(fault("check", &added.network.name, error)),
    }
}
