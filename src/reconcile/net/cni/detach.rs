//! Ends an attachment: DEL, the removal of what DEL leaves behind, and what is done when DEL fails.
//! Out of scope: when an attachment ends; reservations and attachments of VMs that no object references any more (`sweep`).

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use super::intent::{read_intent, write_intent};
use super::plan::DelInput;
use super::state::{Desired, Intent};
use super::{CniNet, IFNAME, guest, host_error, one_line, residue};
use crate::api::event::EventReason;
use crate::api::network::Mac;
use crate::cni::{Attachment, Error as CniError, Runtime};
use crate::host::error::absent_is_done;
use crate::host::link::Change;
use crate::host::netns::{self, Netns};
use crate::host::{Error, link, tap};

pub(super) async fn detach(
    cni_net: &CniNet,
    desired: &Desired,
    del_input: &DelInput,
) -> Result<(), Error> {
    let Err(failed) = release(&cni_net.runtime, del_input).await else {
        return Ok(());
    };
    let noted = read_intent(desired).ok();
    if let Err(error) = count_failure(desired, del_input) {
        tracing::warn!(%error, "cannot record that a CNI DEL has failed");
    }
    if desired.tries() == 1 {
        // Without a backoff. A plugin that does not end would most likely use up another deadline.
        let cause = failed.source.into_inner();
        let cause = cause.and_then(|cause| cause.downcast::<CniError>().ok());
        let hung = cause.filter(|cause| matches!(**cause, CniError::Deadline { .. }));
        return give_up(cni_net, desired, del_input, hung.map(|cause| *cause)).await;
    }
    // The failure that requires the DEL is what the user has to fix.
    match noted.and_then(|intent| intent.add_failed) {
        None => Err(failed),
        Some(reason) => {
            let cause = failed.source.get_ref();
            let cause = cause.and_then(|cause| cause.downcast_ref::<CniError>());
            let cause = cause.map_or_else(|| failed.source.to_string(), one_line);
            let network = format!("CNI network `{}`", del_input.network.name);
            let messages = format!("{cause}; the attachment is removed because {reason}");
            Err(Error::other("detach from", network, messages))
        }
    }
}

/// Runs DEL, removes what it leaves behind, and removes the cache's record.
///
/// # Why
/// When a plugin fails, DEL of the chain is run again at once, as the callers of libcni do ([`crate::cni::Error::should_retry_now`]). If the
/// interface is gone, a temporary link of the same name replaces it for the second DEL, because `sbr` up to 1.5 fails without one. The
/// link has no addresses: other plugins would look for the rules of these addresses, and fail if the rules are gone, too.
pub(super) async fn release(runtime: &Runtime, del_input: &DelInput) -> Result<(), Error> {
    let DelInput {
        network,
        attachment,
        addresses_lost,
    } = del_input;
    let failed = |error| host_error("detach from", &network.name, error);
    let again = match runtime.release(network, attachment).await {
        Ok(()) => false,
        Err(error) if error.should_retry_now() => {
            tracing::debug!(%error, network = network.name, "calling DEL again");
            true
        }
        Err(error) => return Err(failed(error)),
    };
    if again {
        let stand_in = stand_in(attachment).await?;
        let attachment = stand_in
            .as_ref()
            .map_or(attachment, |(_, stand_in_attachment)| stand_in_attachment);
        let released = runtime.release(network, attachment).await;
        released.map_err(failed)?;
    }
    if *addresses_lost || again {
        residue::remove(&network.name, attachment).await?;
    }
    remove_veth(host_end(runtime, del_input)).await?;
    runtime
        .remove_records(&network.name, attachment)
        .map_err(failed)
}

/// The host's end of the veth, as the result of the ADD has it.
fn host_end(runtime: &Runtime, del_input: &DelInput) -> Option<(String, Mac)> {
    let cached = runtime.cached(&del_input.network.name, &del_input.attachment);
    let result = cached.ok()??.result(del_input.network.cni_version).ok()?;
    guest::host_end(&result)
}

/// Removes the host's end of the veth, if it is still there after DEL.
///
/// # Why
/// A plugin's DEL finds the veth by its end in the namespace. When the namespace is lost, the kernel removes both ends some time after its
/// last user has left. Until then the old end keeps the route to the address, and the next ADD of ptp accepts that there is one; on a
/// bridge the old namespace answers for the address. A link with the name and the MAC of the ADD's result belongs to this attachment.
async fn remove_veth(host_end: Option<(String, Mac)>) -> Result<(), Error> {
    let Some((name, mac)) = host_end else {
        return Ok(());
    };
    let netlink = Netns::current()?.netlink()?;
    match link::get(&netlink, &name).await? {
        Some(found) if found.kind.as_deref() == Some("veth") && found.mac == Some(mac.0) => {
            tracing::debug!(name, "removing the veth that a CNI DEL left behind");
            absent_is_done(link::delete(&netlink, found.index).await)
        }
        Some(_) | None => Ok(()),
    }
}

/// Creates an unnamed namespace with a link of the interface's name. None: the interface exists.
async fn stand_in(attachment: &Attachment) -> Result<Option<(Netns, Attachment)>, Error> {
    if let Some(path) = &attachment.netns {
        let netlink = Netns::open(path)?.netlink()?;
        if link::get(&netlink, &attachment.ifname).await?.is_some() {
            return Ok(None);
        }
    }
    let netns = netns::unnamed().await?;
    let owner = tap::Owner { uid: 0, gid: None };
    let name = attachment.ifname.clone();
    netns.run_here(move || tap::create(&name, owner, &Change::default()))?;
    let stand_in = Attachment {
        netns: Some(path_of(&netns)),
        ..attachment.clone()
    };
    Ok(Some((netns, stand_in)))
}

/// The path by which plugins open the namespace: our file descriptor, so no mount is needed.
pub(super) fn path_of(netns: &Netns) -> PathBuf {
    let descriptor = netns.as_fd().as_raw_fd();
    PathBuf::from(format!("/proc/{}/fd/{descriptor}", std::process::id()))
}

/// Counts a failed DEL in the intent: the attachment is incomplete from now on, and the number of tries is limited.
fn count_failure(desired: &Desired, del_input: &DelInput) -> Result<(), Error> {
    let intent = read_intent(desired).unwrap_or_else(|_| {
        let (network, attachment) = (del_input.network.clone(), del_input.attachment.clone());
        Intent::new(network.digest(), network, attachment)
    });
    let failed = intent.failed.saturating_add(1);
    write_intent(desired, &Intent { failed, ..intent })
}

/// Gives up an attachment after DEL has failed [often enough](Desired::tries).
pub(super) async fn abandon(
    cni_net: &CniNet,
    desired: &Desired,
    del_input: &DelInput,
) -> Result<(), Error> {
    give_up(cni_net, desired, del_input, None).await
}

/// Gives up an attachment whichever plugins fail; the one that has `hung` in DEL a moment ago is not called again. What these have not
/// released is recorded for the sweep.
///
/// The interface is removed here and not with the namespace, because a VM that is still desired keeps its namespace. The address may be
/// assigned to another container only if no interface has it any more, and if the firewall rules for it are removed or apply to the next
/// container as well. So, when the attachment is not desired any more, its reservation stays until the plugins have released it.
async fn give_up(
    cni_net: &CniNet,
    desired: &Desired,
    del_input: &DelInput,
    hung: Option<CniError>,
) -> Result<(), Error> {
    let (network, attachment) = (&del_input.network, &del_input.attachment);
    let failed = |error| host_error("give up", &network.name, error);
    let host_end = host_end(&cni_net.runtime, del_input);
    let abandoned = cni_net.runtime.abandon(network, attachment, hung).await;
    let errors = abandoned.map_err(failed)?;
    residue::remove(&network.name, attachment).await?;
    remove_veth(host_end).await?;
    if attachment.netns.is_some() {
        let netlink = cni_net.session.inside()?.netlink;
        if let Some(eth) = link::get(&netlink, IFNAME).await? {
            absent_is_done(link::delete(&netlink, eth.index).await)?;
        }
    }
    if desired.data_path.is_some() {
        let is_this_container = || |container: &str| container == attachment.container_id;
        let released = cni_net
            .runtime
            .sweep_host_local(network, is_this_container)
            .await;
        released.map_err(failed)?;
    }
    if !errors.is_empty() {
        let messages: Vec<String> = errors.iter().map(one_line).collect();
        let when = match desired.tries() {
            1 => "at once, as the forced deletion requires".to_owned(),
            tries => format!("after {tries} tries"),
        };
        let message = format!(
            "CNI network {} could not be detached {when}: {}; its interface is removed; \
             sliced at each resync and slicectl gc run DEL of these plugins again",
            network.name,
            messages.join("; ")
        );
        cni_net.notify(EventReason::DetachFailed, message);
    }
    Ok(())
}
