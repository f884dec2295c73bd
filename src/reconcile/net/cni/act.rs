//! Executes one step of a data path that CNI plugins make.
//! Out of scope: which steps are executed, and in which order (`plan`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::files;
use super::intent::{read_intent, write_intent};
use super::plan::{Action, DelInput};
use super::routes::{MAX_ROUTES, Route};
use super::state::{Desired, GuestIdentity, Intent};
use super::{
    CniNet, IFNAME, INTENT, detach, guest, host_error, not_found, observe, one_line, request,
    waits_for_a_change,
};
use crate::api::event::EventReason;
use crate::api::network::TapOwner;
use crate::cni::{CniResult, Error as CniError, Network};
use crate::host::error::{absent_is_done, exists_is_done};
use crate::host::link::{Change, Ipv6Addresses, State};
use crate::host::netlink::Handle;
use crate::host::{Error, fs, link, netns, tap};
use crate::owner::TAP;

/// How long the kernel may need to clean up a network namespace (`cleanup_net`).
const CLEANUP: Duration = Duration::from_millis(300);

pub(super) async fn act(cni_net: &CniNet, desired: &Desired, action: &Action) -> Result<(), Error> {
    match action {
        Action::WriteRecord | Action::UpdateRecord => match &desired.data_path {
            Some(data_path) => files::write_record(&desired.vm_dir(), &data_path.record),
            None => Ok(()),
        },
        Action::Detach(basis) => {
            if desired.data_path.is_some() {
                cni_net.await_repair().await;
            }
            detach::detach(cni_net, desired, basis).await
        }
        Action::Abandon(basis) => detach::abandon(cni_net, desired, basis).await,
        Action::Forget(network) => cni_net
            .runtime
            .remove_records(network, &desired.attachment())
            .map_err(|error| host_error("remove the cache record of", network, error)),
        Action::RemoveIntent => fs::remove(&desired.vm_dir().join(INTENT)),
        Action::CreateNetns => {
            // The plugins configure its content.
            match desired.paths().create_netns(|_| Ok(())).await? {
                Some(netns) => cni_net.session.enter(netns).await.map(drop),
                None => Ok(()),
            }
        }
        Action::LinkHandle => desired.paths().link_handle(),
        Action::WriteIntent => write_new_intent(cni_net, desired).await,
        Action::RestoreIntent(intent) => {
            let routes = observe::routes(&cni_net.session.inside()?).await?;
            let intent = Intent {
                routes,
                ..(**intent).clone()
            };
            write_intent(desired, &intent)
        }
        Action::Attach => add(cni_net, desired).await,
        Action::SetEthUp => {
            let up = Change {
                state: Some(State::Up),
                ..Change::default()
            };
            change(cni_net, IFNAME, up).await
        }
        Action::DeleteTap => delete_tap(cni_net).await,
        Action::CreateTap(owner, mtu) => create_tap(cni_net, desired, *owner, *mtu).await,
        Action::SetTapMtu(mtu) => {
            let mtu = Change {
                mtu: Some(*mtu),
                ..Change::default()
            };
            change(cni_net, TAP, mtu).await
        }
        Action::DisableIpv6 => {
            let no_ipv6 = Change {
                ipv6_addresses: Some(Ipv6Addresses::None),
                ..Change::default()
            };
            change(cni_net, TAP, no_ipv6).await
        }
        Action::UnlinkHandle => fs::remove(&desired.handle()),
        Action::DeleteNetns(owned) => {
            cni_net.session.close();
            absent_is_done(netns::delete(owned.resource()).await)
        }
        Action::RemoveRunDir => {
            fs::remove_temp(&desired.vm_dir().join(INTENT))?;
            desired.paths().remove_dir()
        }
    }
}

/// Reads the configuration again, because the plan does not contain the one that was observed. STATUS is called before anything is
/// created, because the plugins may be unable to serve an ADD.
async fn write_new_intent(cni_net: &CniNet, desired: &Desired) -> Result<(), Error> {
    let Some(name) = &desired.network else {
        return Err(Error::other(
            "find",
            "the CNI network",
            "its name is not known",
        ));
    };
    let found = cni_net.runtime.find(name);
    let found = found.map_err(|error| not_found(name, error))?;
    let network = cni_net.runtime.negotiate(&found).await;
    let network = network.map_err(|error| host_error("use", name, error))?;
    let is_taken = is_address_taken(cni_net, desired, &network);
    let attachment = request::attachment(desired, &network, is_taken);
    let attachment = attachment.map_err(|error| host_error("use", name, error))?;
    let status = cni_net.runtime.check_serving(&network).await;
    status.map_err(|error| host_error("attach to", name, error))?;
    write_intent(desired, &Intent::new(found.digest(), network, attachment))
}

/// Whether another container has the address that the guest had. A request for it would fail, and the failure can be permanent: the
/// bridge plugin up to 1.5 cannot use a bridge that it has created for an ADD that then failed ("could not set bridge's mac").
fn is_address_taken(cni_net: &CniNet, desired: &Desired, network: &Network) -> bool {
    other_holder(cni_net, desired, network).is_some()
}

/// The other container that has the address that the guest had.
fn other_holder(cni_net: &CniNet, desired: &Desired, network: &Network) -> Option<String> {
    let keep = desired.data_path.as_ref()?.identity?;
    let holder = cni_net.runtime.container_of(network, keep.ip.into())?;
    (holder != desired.attachment().container_id).then_some(holder)
}

/// Runs ADD with the intent on the disk, which DEL uses as well.
///
/// The plugins refuse the guest's address or MAC if another container has it, or if the network does not contain the address any more.
/// ADD is then run without both: a guest that is restarted with another address is better than a guest without a network. Before that,
/// ADD is retried once after [`CLEANUP`]: when a namespace has lost its last user, its interface keeps the MAC until the kernel runs
/// `cleanup_net`, and a second macvlan with the same MAC is refused.
async fn add(cni_net: &CniNet, desired: &Desired) -> Result<(), Error> {
    let mut intent = read_intent(desired)?;
    // A new attachment needs no CHECK in this run.
    cni_net.check_pending.store(false, Ordering::Relaxed);
    let is_preference = |(key, _): &(String, String)| {
        let data_path = desired.data_path.as_ref();
        data_path.is_some_and(|requested| request::is_preference(requested, key))
    };
    let may_pass_later = |added: &Result<CniResult, AddError>| match added {
        Err(AddError::Refused(refusal)) => !refusal.is_permanent(),
        Ok(_) | Err(AddError::Other(_)) => false,
    };
    let mut reason = None;
    let mut added = add_once(cni_net, desired, &mut intent).await;
    if intent.attachment.args.iter().any(is_preference) {
        if may_pass_later(&added) {
            tokio::time::sleep(CLEANUP).await;
            write_intent(desired, &intent)?;
            added = add_once(cni_net, desired, &mut intent).await;
        }
        if let Err(AddError::Refused(refusal)) = &added {
            reason = Some(one_line(refusal));
            let args = &mut intent.attachment.args;
            args.retain(|argument| !is_preference(argument));
            write_intent(desired, &intent)?;
            added = add_once(cni_net, desired, &mut intent).await;
        }
    }
    match added {
        Ok(result) => {
            report_address_change(cni_net, desired, &intent, &result, reason.as_deref());
            Ok(())
        }
        Err(AddError::Refused(error)) => Err(host_error("attach to", &intent.network.name, error)),
        Err(AddError::Other(error)) => Err(error),
    }
}

/// Why an ADD failed.
enum AddError {
    /// A plugin returned an error, and the ADD was undone. An ADD with other arguments may succeed.
    Refused(CniError),
    Other(Error),
}

impl From<Error> for AddError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

async fn add_once(
    cni_net: &CniNet,
    desired: &Desired,
    intent: &mut Intent,
) -> Result<CniResult, AddError> {
    let (network, attachment) = (&intent.network, &intent.attachment);
    let failed = match cni_net.runtime.add(network, attachment).await {
        Ok(result) => match check_added(cni_net, desired, intent, &result).await {
            Ok(routes) => {
                cni_net.added.store(true, Ordering::Relaxed);
                intent.routes = routes;
                intent.adding = false;
                write_intent(desired, intent)?;
                return Ok(result);
            }
            Err(error) => AddError::Other(error),
        },
        // There is an attachment already: no plugin was run, and there is nothing to undo.
        Err(error @ CniError::AlreadyAdded { .. }) => {
            return Err(host_error("attach to", &network.name, error).into());
        }
        Err(error @ CniError::Plugin(_)) => AddError::Refused(error),
        Err(error) => host_error("attach to", &network.name, error).into(),
    };
    // A partial attachment is undone at once and not after the backoff. If this fails, too, the intent on the disk records it.
    let basis = DelInput {
        network: network.clone(),
        attachment: attachment.clone(),
        addresses_lost: true,
    };
    match detach::release(&cni_net.runtime, &basis).await {
        Ok(()) => {
            fs::remove(&desired.vm_dir().join(INTENT))?;
            Err(failed)
        }
        Err(error) => {
            tracing::warn!(network = network.name, %error, "cannot undo a CNI ADD that failed");
            let failed = match failed {
                AddError::Refused(error) => host_error("attach to", &network.name, error),
                AddError::Other(error) => error,
            };
            let reason = failed.source.get_ref().map(ToString::to_string);
            // The DEL has to be repeated, whether or not the ADD waits for a change.
            let failed = match (waits_for_a_change(&failed), &reason) {
                (true, Some(why)) => {
                    let network = format!("CNI network `{}`", network.name);
                    Error::other("attach to", network, why.clone())
                }
                (true, None) | (false, _) => failed,
            };
            let failed_intent = Intent {
                add_failed: reason,
                ..intent.clone()
            };
            write_intent(desired, &failed_intent)?;
            Err(failed.into())
        }
    }
}

/// Checks the result before it is used: a guest must be able to use it, it must contain what was requested, and the interface must agree
/// with it. Another ADD would not change any of these. Returns the routes that the plugins created.
async fn check_added(
    cni_net: &CniNet,
    desired: &Desired,
    Intent {
        network,
        attachment,
        ..
    }: &Intent,
    result: &CniResult,
) -> Result<Option<Vec<Route>>, Error> {
    let unusable =
        |reason: String| Error::other("use", format!("CNI network `{}`", network.name), reason);
    if let Some(why) = guest::invalid_reason(result, attachment) {
        return Err(unusable(why));
    }
    let data_path = desired.data_path.as_ref();
    let entered = cni_net.session.inside()?;
    let inside = observe::observe_inside(&entered, guest::tap(result, attachment)).await?;
    if let Some(why) =
        data_path.and_then(|requested| request::unmet(requested, result, attachment, &inside))
    {
        return Err(host_error(
            "use",
            &network.name,
            CniError::UnsupportedRequest(why),
        ));
    }
    if let Some(why) = guest::disagreement(result, attachment, &inside) {
        return Err(unusable(why));
    }
    let routes = observe::routes(&entered).await?;
    match routes.as_ref().map_or(0, Vec::len) {
        ..=MAX_ROUTES => Ok(routes),
        many => Err(unusable(format!(
            "the plugins created {many} routes for {IFNAME}, the maximum is {MAX_ROUTES}"
        ))),
    }
}

/// Reports that the guest gets another address, before the guest is restarted with it.
fn report_address_change(
    cni_net: &CniNet,
    desired: &Desired,
    intent: &Intent,
    result: &CniResult,
    reason: Option<&str>,
) {
    let Some(GuestIdentity { ip, .. }) = desired
        .data_path
        .as_ref()
        .and_then(|requested| requested.identity)
    else {
        return;
    };
    let given = guest::addresses(result, &intent.attachment);
    if let Some((given, _)) = given.first().filter(|(given, _)| given.ip() != ip) {
        let why = reason.map(str::to_owned).or_else(|| {
            let holder = other_holder(cni_net, desired, &intent.network)?;
            Some(format!("{ip} is not available: {holder} has it"))
        });
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        let message = format!(
            "CNI network {} assigned {} instead of {ip}, so the guest is restarted{why}",
            intent.network.name,
            given.ip()
        );
        cni_net.notify(EventReason::AddressChanged, message);
    }
}

async fn create_tap(
    cni_net: &CniNet,
    desired: &Desired,
    owner: TapOwner,
    mtu: u32,
) -> Result<(), Error> {
    let owner = tap::Owner {
        uid: owner.uid,
        gid: owner.gid,
    };
    let attributes = Change {
        mac: Some(desired.paths().names().tap_mac.0),
        mtu: Some(mtu),
        ipv6_addresses: Some(Ipv6Addresses::None),
        ..Change::default()
    };
    let create = move || tap::create(TAP, owner, &attributes);
    exists_is_done(cni_net.session.inside()?.netns.run_here(create))
}

async fn delete_tap(cni_net: &CniNet) -> Result<(), Error> {
    let netlink = cni_net.session.inside()?.netlink;
    match link::get(&netlink, TAP).await? {
        None => Ok(()),
        Some(found) => absent_is_done(link::delete(&netlink, found.index).await),
    }
}

async fn change(cni_net: &CniNet, name: &str, change: Change) -> Result<(), Error> {
    let netlink = cni_net.session.inside()?.netlink;
    let index = find(&netlink, name).await?;
    link::set(&netlink, index, &change).await
}

async fn find(netlink: &Handle, name: &str) -> Result<u32, Error> {
    let found = link::get(netlink, name).await?;
    found.map(|found| found.index).ok_or_else(|| {
        let not_found = std::io::Error::from_raw_os_error(libc::ENODEV);
        Error::io("find link", name, not_found)
    })
}
