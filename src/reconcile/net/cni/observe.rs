//! Observes a data path that CNI plugins make.
//! Out of scope: what is desired.

use std::sync::atomic::Ordering;

use super::super::place::{EnteredNetns, Seen};
use super::intent::write_intent;
use super::routes::Route;
use super::state::{
    Added, AddedSeen, Baseline, ConflistSeen, Desired, Eth, Inside, Intent, IntentSeen, Observed,
    Tap,
};
use super::{CniNet, IFNAME, INTENT, guest, host_error, one_line, residue};
use crate::api::event::EventReason;
use crate::cni::{Cached, Error, Failure};
use crate::host::{self, fs, link, route};
use crate::owner::TAP;
use crate::reconcile::net::isolated::observe::{addresses, mac, tap_owner};

pub(super) async fn observe(cni_net: &CniNet, desired: &Desired) -> Result<Observed, host::Error> {
    let place = desired.paths();
    let Seen {
        record,
        dir,
        handle,
    } = place.observe()?;
    let intent = observe_intent(desired)?;
    let added = observe_cache(cni_net, desired, &intent)?;
    let conflist = observe_conflist(cni_net, desired, &intent, &added);
    let tap = match &added {
        AddedSeen::Recorded(added) => guest::tap(&added.result, &added.attachment),
        AddedSeen::Absent | AddedSeen::Damaged => TAP,
    };
    let (netns, entered) = place.observe_netns(&cni_net.session).await?;
    let inside = match &entered {
        Some(entered) => Some(observe_inside(entered, tap).await?),
        None => None,
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
        check_failure: None,
        limited: None,
    };
    observed.limited = limited(cni_net, desired, &observed).await;
    observed.check_failure = check(cni_net, desired, &observed).await?;
    Ok(observed)
}

fn observe_intent(desired: &Desired) -> Result<IntentSeen, host::Error> {
    let Some(bytes) = fs::read(&desired.vm_dir().join(INTENT))? else {
        return Ok(IntentSeen::Absent);
    };
    Ok(match serde_json::from_slice::<Intent>(&bytes) {
        Ok(intent) => IntentSeen::Written(Box::new(intent)),
        Err(_) => IntentSeen::Damaged,
    })
}

/// Reads the record by the network's name if that is known, because the list of all records is long on a host with many VMs.
fn observe_cache(
    cni_net: &CniNet,
    desired: &Desired,
    intent: &IntentSeen,
) -> Result<AddedSeen, host::Error> {
    let runtime = &cni_net.runtime;
    let attachment = desired.attachment();
    let network = match intent {
        IntentSeen::Written(intent) => Some(&intent.network.name),
        IntentSeen::Absent | IntentSeen::Damaged => desired.network.as_ref(),
    };
    let found = match network {
        Some(network) => runtime.cached(network, &attachment),
        None => runtime
            .attachments_of(&attachment.container_id)
            .map(|records| {
                let mut its = records.into_iter();
                its.find(|found| found.attachment.ifname == attachment.ifname)
            }),
    };
    match found {
        Ok(None) => Ok(AddedSeen::Absent),
        Ok(Some(cached)) => Ok(read_cached(&cached)),
        Err(Error::DamagedCache { .. }) => Ok(AddedSeen::Damaged),
        Err(error) => {
            let network = network.map_or("", String::as_str);
            Err(host_error("read the cache record of", network, error))
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
        Ok(added) => AddedSeen::Recorded(Box::new(added)),
        Err(_) => AddedSeen::Damaged,
    }
}

fn observe_conflist(
    cni_net: &CniNet,
    desired: &Desired,
    intent: &IntentSeen,
    added: &AddedSeen,
) -> ConflistSeen {
    let is_needed_for_del = match (intent, added) {
        (IntentSeen::Written(_), _) | (_, AddedSeen::Recorded(_)) => false,
        (IntentSeen::Absent, AddedSeen::Absent) => false,
        (IntentSeen::Absent | IntentSeen::Damaged, AddedSeen::Absent | AddedSeen::Damaged) => true,
    };
    let Some(network) = &desired.network else {
        return ConflistSeen::NotRead;
    };
    if desired.data_path.is_none() && !is_needed_for_del {
        return ConflistSeen::NotRead;
    }
    match cni_net.runtime.find(network) {
        Ok(network) => ConflistSeen::Found(Box::new(network)),
        Err(error) => ConflistSeen::Unusable(one_line(&error)),
    }
}

pub(super) async fn observe_inside(
    entered: &EnteredNetns,
    tap: &str,
) -> Result<Inside, host::Error> {
    let eth = match link::get(&entered.netlink, IFNAME).await? {
        None => None,
        Some(eth) => Some(Eth {
            mac: mac(eth.mac),
            veth: eth.kind.as_deref() == Some("veth"),
            up: eth.up,
            mtu: eth.mtu,
            addresses: addresses(&entered.netlink, eth.index).await?,
        }),
    };
    let tap = match link::get(&entered.netlink, tap).await? {
        None => None,
        Some(found) => Some(Tap {
            owner: tap_owner(&found),
            mtu: found.mtu,
            ipv6_off: found
                .ipv6
                .is_none_or(|ipv6| ipv6.no_autogenerated_address || ipv6.disabled),
        }),
    };
    Ok(Inside { eth, tap })
}

/// Returns the routes of the plugins' interface in the main table, in the order in which the kernel lists them.
pub(super) async fn routes(entered: &EnteredNetns) -> Result<Option<Vec<Route>>, host::Error> {
    let Some(eth) = link::get(&entered.netlink, IFNAME).await? else {
        return Ok(None);
    };
    let routes = route::list(&entered.netlink).await?;
    let records = routes
        .into_iter()
        .filter(|route| route.link == Some(eth.index));
    Ok(Some(
        records.map(|route| (route.dst, route.gateway)).collect(),
    ))
}

/// Calls STATUS together with CHECK: an attached VM may have limited connectivity (code 51).
async fn limited(cni_net: &CniNet, desired: &Desired, observed: &Observed) -> Option<String> {
    let AddedSeen::Recorded(added) = &observed.added else {
        return None;
    };
    desired.data_path.as_ref()?;
    if cni_net.check_pending.load(Ordering::Relaxed)
        && let Err(error) = cni_net.runtime.check_serving(&added.network).await
    {
        // An attached VM does not need an ADD.
        tracing::debug!(%error, network = added.network.name, "CNI STATUS failed");
    }
    cni_net.runtime.limited_connectivity(&added.network)
}

/// Calls CHECK, if this run has not done so yet and the VM is attached. Returns why the attachment has to be repaired.
///
/// # Why
/// CHECK of some chains fails although the attachment is intact: `sbr`, `portmap` 1.1.1 with an IPv4 port, `tuning` 1.1.1 with `IFNAME`.
/// To attach such a VM again would interrupt its network and would not help. The first CHECK after an ADD therefore yields the baseline of
/// an intact attachment. It is stored in the intent, where the next daemon finds it; only a failure at a later CHECK means damage.
async fn check(
    cni_net: &CniNet,
    desired: &Desired,
    observed: &Observed,
) -> Result<Option<String>, host::Error> {
    let (AddedSeen::Recorded(added), IntentSeen::Written(intent)) =
        (&observed.added, &observed.intent)
    else {
        return Ok(None);
    };
    let eth = observed.inside.as_ref().and_then(|seen| seen.eth.as_ref());
    if desired.data_path.is_none()
        || eth.is_none()
        || !cni_net.check_pending.swap(false, Ordering::Relaxed)
    {
        return Ok(None);
    }
    let mut network = added.network.clone();
    if let ConflistSeen::Found(now) = &observed.conflist {
        network.disable_check |= now.disable_check;
    }
    let baseline = intent.baseline.clone().unwrap_or_default();
    let excused = baseline.excused.keys().cloned().collect();
    let checked = cni_net
        .runtime
        .check_failures(&network, &added.attachment, &excused)
        .await;
    let Some(complaints) = checked.map_err(|error| host_error("check", &network.name, error))?
    else {
        return Ok(None);
    };
    let masqueraded = residue::masquerades(&network.name, &added.attachment).await?;
    if intent.baseline.is_none() {
        return store_baseline(cni_net, desired, intent, &complaints, masqueraded).map(|()| None);
    }
    let mut causes: Vec<String> = complaints.iter().map(ToString::to_string).collect();
    if baseline.masqueraded && !masqueraded {
        causes.push("the iptables chain that masquerades its packets is missing".to_owned());
    }
    if causes.is_empty() {
        return Ok(None);
    }
    let causes = causes.join("; ");
    cni_net.notify(
        EventReason::CheckFailed,
        format!("{causes}; the VM is attached again"),
    );
    Ok(Some(causes))
}

fn store_baseline(
    cni_net: &CniNet,
    desired: &Desired,
    intent: &Intent,
    complaints: &[Failure],
    masqueraded: bool,
) -> Result<(), host::Error> {
    let excused = complaints
        .iter()
        .map(|failure| (failure.plugin.clone(), failure.to_string()));
    let baseline = Baseline {
        excused: excused.collect(),
        masqueraded,
    };
    for (plugin, message) in &baseline.excused {
        let message = format!(
            "{message}; this is the first CHECK after ADD, so CHECK of `{plugin}` is ignored"
        );
        cni_net.notify(EventReason::CheckIgnored, message);
    }
    let updated = Intent {
        baseline: Some(baseline),
        ..intent.clone()
    };
    write_intent(desired, &updated)
}
