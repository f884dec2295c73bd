//! One step of a data path that CNI plugins make.
//! Out of scope: which steps, and in which order.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use ipnetwork::Ipv4Network;

use super::super::files;
use super::super::place::Room;
use super::plan::{Action, Basis};
use super::state::{Desired, Intent};
use super::{Attach, IFNAME, INTENT, fault, guest, tap_plugin};
use crate::api::network::TapOwner;
use crate::cni::{Attachment, Error as CniError, Network};
use crate::host::error::{absent_is_done, exists_is_done};
use crate::host::fs::Durability;
use crate::host::link::{Change, Ipv6Addresses, State};
use crate::host::netlink::Handle;
use crate::host::netns::Netns;
use crate::host::{Error, addr, fs, link, netns, tap};
use crate::owner::TAP;

pub(super) async fn act(attach: &Attach, desired: &Desired, action: &Action) -> Result<(), Error> {
    match action {
        Action::WriteRecord => match &desired.want {
            Some(want) => files::write_record(&desired.vm_dir(), &want.record),
            None => Ok(()),
        },
        Action::Detach(basis) => detach(attach, basis).await,
        Action::Forget(network) => attach
            .runtime
            .forget(network, &desired.attachment())
            .map_err(|error| fault("forget the record of", network, error)),
        Action::RemoveIntent => fs::remove(&desired.vm_dir().join(INTENT)),
        Action::CreateNetns => {
            // What is in it is the plugins' to settle.
            match desired.place().create_netns(|_| Ok(())).await? {
                Some(netns) => attach.door.enter(netns).await.map(drop),
                None => Ok(()),
            }
        }
        Action::StandIn(addresses) => {
            let Room { netns, netlink } = attach.door.inside()?;
            stand_in(&netns, &netlink, addresses).await
        }
        Action::LinkHandle => desired.place().link_handle(),
        Action::WriteIntent => write_new_intent(attach, desired).await,
        Action::RestoreIntent(intent) => write_intent(desired, intent),
        Action::Attach => add(attach, desired).await,
        Action::RaiseEth => {
            let up = Change {
                state: Some(State::Up),
                ..Change::default()
            };
            change(attach, IFNAME, up).await
        }
        Action::DeleteTap => delete_tap(attach).await,
        Action::CreateTap(owner, mtu) => create_tap(attach, desired, *owner, *mtu).await,
        Action::SetTapMtu(mtu) => {
            let mtu = Change {
                mtu: Some(*mtu),
                ..Change::default()
            };
            change(attach, TAP, mtu).await
        }
        Action::StripIpv6 => {
            let bare = Change {
                ipv6_addresses: Some(Ipv6Addresses::Bare),
                ..Change::default()
            };
            change(attach, TAP, bare).await
        }
        Action::UnlinkHandle => fs::remove(&desired.handle()),
        Action::DeleteNetns(owned) => {
            attach.door.leave();
            absent_is_done(netns::delete(owned.thing()).await)
        }
        Action::RemoveRunDir => {
            fs::remove_draft(&desired.vm_dir().join(INTENT))?;
            desired.place().remove_dir()
        }
    }
}

/// A TAP will do where the interface is gone: plugins look for a link of that name and for its addresses, and delete it.
pub(super) async fn stand_in(
    netns: &Netns,
    netlink: &Handle,
    addresses: &BTreeSet<Ipv4Network>,
) -> Result<(), Error> {
    if link::get(netlink, IFNAME).await?.is_none() {
        let nobody = tap::Owner { uid: 0, gid: None };
        let create = move || tap::create(IFNAME, nobody, &Change::default());
        exists_is_done(netns.run_here(create))?;
    }
    let index = find(netlink, IFNAME).await?;
    for net in addresses.iter().copied() {
        exists_is_done(addr::add(netlink, addr::Addr { index, net }).await)?;
    }
    Ok(())
}

async fn detach(attach: &Attach, basis: &Basis) -> Result<(), Error> {
    let done = attach.runtime.del(&basis.network, &basis.attachment).await;
    done.map_err(|error| fault("detach from", &basis.network.name, error))
}

/// The configuration is found anew: what was seen a moment ago stood in no plan.
async fn write_new_intent(attach: &Attach, desired: &Desired) -> Result<(), Error> {
    let Some(name) = &desired.network else {
        return Err(Error::other("find", "the CNI network", "it has no name"));
    };
    let found = attach.runtime.find(name);
    let found = found.map_err(|error| fault("find", name, error))?;
    let network = attach.runtime.negotiate(&found).await;
    let network = network.map_err(|error| fault("use", name, error))?;
    let intent = Intent {
        digest: found.digest(),
        attachment: Attachment {
            args: arguments(desired, &network),
            ..desired.attachment()
        },
        network,
    };
    write_intent(desired, &intent)
}

fn write_intent(desired: &Desired, intent: &Intent) -> Result<(), Error> {
    let dir = desired.vm_dir();
    let path = dir.join(INTENT);
    let bytes = serde_json::to_vec(intent)
        .map_err(|error| Error::other("write", path.display().to_string(), error))?;
    fs::make_dir(&dir, 0o700)?;
    // It describes what no power cut outlives.
    fs::write(&path, &bytes, 0o600, Durability::Process)
}

/// `tc-redirect-tap` is told what its TAP is to be like. Others don't hear of it: a plugin that does not know an argument may
/// refuse it, unless it is told to ignore what it does not know.
fn arguments(desired: &Desired, network: &Network) -> Vec<(String, String)> {
    let Some(want) = desired.want.as_ref().filter(|_| tap_plugin(network)) else {
        return Vec::new();
    };
    let mut arguments = vec![
        ("IgnoreUnknown".to_owned(), "1".to_owned()),
        ("TC_REDIRECT_TAP_NAME".to_owned(), TAP.to_owned()),
        (
            "TC_REDIRECT_TAP_UID".to_owned(),
            want.tap_owner.uid.to_string(),
        ),
    ];
    if let Some(gid) = want.tap_owner.gid {
        arguments.push(("TC_REDIRECT_TAP_GID".to_owned(), gid.to_string()));
    }
    arguments
}

/// By the intent on the disk, which is what will be undone.
async fn add(attach: &Attach, desired: &Desired) -> Result<(), Error> {
    let path = desired.vm_dir().join(INTENT);
    let bytes = fs::read(&path)?.unwrap_or_default();
    let Intent {
        network,
        attachment,
        ..
    } = serde_json::from_slice(&bytes)
        .map_err(|error| Error::other("read", path.display().to_string(), error))?;
    // What was made just now needs no check.
    attach.check.store(false, Ordering::Relaxed);
    let failed = match attach.runtime.add(&network, &attachment).await {
        Ok(result) => match guest::unfit(&result, &attachment) {
            None => return Ok(()),
            Some(why) => {
                let network = format!("CNI network `{}`", network.name);
                Error::other("use", network, why)
            }
        },
        // Another's attachment, so to say: nothing was asked, nothing is to be undone here.
        Err(error @ CniError::AddedBefore { .. }) => {
            return Err(fault("attach to", &network.name, error));
        }
        Err(error) => fault("attach to", &network.name, error),
    };
    // At once, so that nothing half made waits out a backoff. If this fails, too, the intent stays and says so.
    match attach.runtime.del(&network, &attachment).await {
        Ok(()) => fs::remove(&path)?,
        Err(error) => {
            tracing::warn!(network = network.name, %error, "cannot undo a CNI ADD that failed");
        }
    }
    Err(failed)
}

async fn create_tap(
    attach: &Attach,
    desired: &Desired,
    owner: TapOwner,
    mtu: u32,
) -> Result<(), Error> {
    let owner = tap::Owner {
        uid: owner.uid,
        gid: owner.gid,
    };
    let born = Change {
        mac: Some(desired.place().names().tap_mac.0),
        mtu: Some(mtu),
        ipv6_addresses: Some(Ipv6Addresses::Bare),
        ..Change::default()
    };
    let create = move || tap::create(TAP, owner, &born);
    exists_is_done(attach.door.inside()?.netns.run_here(create))
}

async fn delete_tap(attach: &Attach) -> Result<(), Error> {
    let netlink = attach.door.inside()?.netlink;
    match link::get(&netlink, TAP).await? {
        None => Ok(()),
        Some(found) => absent_is_done(link::delete(&netlink, found.index).await),
    }
}

async fn change(attach: &Attach, name: &str, change: Change) -> Result<(), Error> {
    let netlink = attach.door.inside()?.netlink;
    let index = find(&netlink, name).await?;
    link::set(&netlink, index, &change).await
}

async fn find(netlink: &Handle, name: &str) -> Result<u32, Error> {
    let found = link::get(netlink, name).await?;
    found.map(|found| found.index).ok_or_else(|| {
        let gone = std::io::Error::from_raw_os_error(libc::ENODEV);
        Error::io("find link", name, gone)
    })
}
