//! How an attachment ends: DEL, what it leaves behind, and what is done when it does not succeed.
//! Out of scope: when; reservations and attachments of VMs that no object references any more (`sweep`).

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use super::act::{read_intent, write_intent};
use super::plan::{Basis, TRIES};
use super::state::{Desired, Intent};
use super::{Attach, IFNAME, fault, one_line, residue};
use crate::cni::{Attachment, Runtime};
use crate::host::error::absent_is_done;
use crate::host::link::Change;
use crate::host::netns::{self, Netns};
use crate::host::{Error, link, tap};

pub(super) async fn detach(attach: &Attach, desired: &Desired, basis: &Basis) -> Result<(), Error> {
    let done = release(&attach.runtime, basis).await;
    if done.is_err()
        && let Err(error) = note_failure(desired, basis)
    {
        tracing::warn!(%error, "cannot note that a CNI DEL has failed");
    }
    done
}

/// DEL, and what it leaves behind; then nothing is remembered any more.
///
/// # Why
/// A chain with a plugin that fails is asked again at once, as libcni's callers do ([`CniError::may_be_done_now`]). Where the
/// interface is gone, a link of its name stands in for it then: `sbr` up to 1.5 fails without one. It has no addresses, by which
/// other plugins would look for rules and fail if these are gone, too.
pub(super) async fn release(runtime: &Runtime, basis: &Basis) -> Result<(), Error> {
    let Basis {
        network,
        attachment,
        addresses_lost,
    } = basis;
    let failed = |error| fault("detach from", &network.name, error);
    let again = match runtime.release(network, attachment).await {
        Ok(()) => false,
        Err(error) if error.may_be_done_now() => {
            tracing::debug!(%error, network = network.name, "asking for DEL again");
            true
        }
        Err(error) => return Err(failed(error)),
    };
    if again {
        let stand_in = stand_in(attachment).await?;
        let attachment = stand_in.as_ref().map_or(attachment, |(_, its)| its);
        let released = runtime.release(network, attachment).await;
        released.map_err(failed)?;
    }
    if *addresses_lost || again {
        residue::remove(&network.name, attachment).await?;
    }
    runtime.forget(&network.name, attachment).map_err(failed)
}

/// A namespace that only we hold, with a link of the interface's name; none: the interface is there.
async fn stand_in(attachment: &Attachment) -> Result<Option<(Netns, Attachment)>, Error> {
    if let Some(path) = &attachment.netns {
        let netlink = Netns::open(path)?.netlink()?;
        if link::get(&netlink, &attachment.ifname).await?.is_some() {
            return Ok(None);
        }
    }
    let netns = netns::unnamed().await?;
    let nobody = tap::Owner { uid: 0, gid: None };
    let name = attachment.ifname.clone();
    netns.run_here(move || tap::create(&name, nobody, &Change::default()))?;
    let stand_in = Attachment {
        netns: Some(path_of(&netns)),
        ..attachment.clone()
    };
    Ok(Some((netns, stand_in)))
}

/// Where the plugins find it: among our open files, mounted or not.
pub(super) fn path_of(netns: &Netns) -> PathBuf {
    let descriptor = netns.as_fd().as_raw_fd();
    PathBuf::from(format!("/proc/{}/fd/{descriptor}", std::process::id()))
}

/// What is there is not whole from now on, and not to be tried for ever.
fn note_failure(desired: &Desired, basis: &Basis) -> Result<(), Error> {
    let noted = read_intent(desired).unwrap_or_else(|_| {
        let (network, attachment) = (basis.network.clone(), basis.attachment.clone());
        Intent::new(network.digest(), network, attachment)
    });
    let failed = noted.failed.saturating_add(1);
    write_intent(desired, &Intent { failed, ..noted })
}

/// The interface is removed here and not with the namespace, which a VM that is wanted keeps. Its address may be given to somebody
/// else only if there is no interface any more that has it, and its firewall rules are taken back or are its next holder's as well:
/// a reservation of an attachment that is not wanted any more stays until its plugins have taken it back.
pub(super) async fn abandon(
    attach: &Attach,
    desired: &Desired,
    basis: &Basis,
) -> Result<(), Error> {
    let (network, attachment) = (&basis.network, &basis.attachment);
    let failed = |error| fault("give up", &network.name, error);
    let abandoned = attach.runtime.abandon(network, attachment).await;
    let errors = abandoned.map_err(failed)?;
    residue::remove(&network.name, attachment).await?;
    if attachment.netns.is_some() {
        let netlink = attach.door.inside()?.netlink;
        if let Some(eth) = link::get(&netlink, IFNAME).await? {
            absent_is_done(link::delete(&netlink, eth.index).await)?;
        }
    }
    if desired.want.is_some() {
        let its = || |container: &str| container == attachment.container_id;
        let released = attach.runtime.sweep_host_local(network, its).await;
        released.map_err(failed)?;
    }
    if !errors.is_empty() {
        let words: Vec<String> = errors.iter().map(one_line).collect();
        let message = format!(
            "CNI network {} could not be detached after {TRIES} tries: {}; its interface is removed, and what its plugins may hold is tried again by the sweep and by slicectl gc",
            network.name,
            words.join("; ")
        );
        attach.tell("DetachFailed", message);
    }
    Ok(())
}
