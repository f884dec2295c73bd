//! One step of a data path that CNI plugins make.
//! Out of scope: which steps, and in which order.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use ipnetwork::Ipv4Network;

use super::super::files;
use super::super::place::Room;
use super::plan::{Action, Basis};
use super::routes::Route;
use super::state::{Desired, Intent};
use super::{Attach, IFNAME, INTENT, fault, guest, not_found, observe, one_line, request};
use crate::api::network::TapOwner;
use crate::cni::{CniResult, Error as CniError, Network};
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
        Action::Detach(basis) => detach(attach, desired, basis).await,
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
        Action::RestoreIntent(intent) => {
            let routes = observe::routes(&attach.door.inside()?).await?;
            let intent = Intent {
                routes,
                ..(**intent).clone()
            };
            write_intent(desired, &intent)
        }
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

async fn detach(attach: &Attach, desired: &Desired, basis: &Basis) -> Result<(), Error> {
    let name = &basis.network.name;
    let Err(error) = attach.runtime.del(&basis.network, &basis.attachment).await else {
        return Ok(());
    };
    // What was wrong first is what a person has to mend.
    match read_intent(desired)
        .ok()
        .and_then(|intent| intent.add_failed)
    {
        None => Err(fault("detach from", name, error)),
        Some(why) => {
            let words = format!("{}; it is undone because {why}", one_line(&error));
            let network = format!("CNI network `{name}`");
            Err(Error::other("detach from", network, words))
        }
    }
}

/// The configuration is found anew: what was seen a moment ago stood in no plan. Before anything is made, the plugins are asked
/// whether they could serve an ADD (STATUS).
async fn write_new_intent(attach: &Attach, desired: &Desired) -> Result<(), Error> {
    let Some(name) = &desired.network else {
        return Err(Error::other("find", "the CNI network", "it has no name"));
    };
    let found = attach.runtime.find(name);
    let found = found.map_err(|error| not_found(name, error))?;
    let network = attach.runtime.negotiate(&found).await;
    let network = network.map_err(|error| fault("use", name, error))?;
    let taken = keeps_anothers(attach, desired, &network);
    let attachment = request::attachment(desired, &network, taken);
    let attachment = attachment.map_err(|error| fault("use", name, error))?;
    let serves = attach.runtime.serves(&network).await;
    serves.map_err(|error| fault("attach to", name, error))?;
    let intent = Intent {
        digest: found.digest(),
        attachment,
        network,
        routes: None,
        add_failed: None,
    };
    write_intent(desired, &intent)
}

/// Whether somebody else has the address that the guest had. To ask for it would be of no use, and might do harm: a bridge that the
/// bridge plugin up to 1.5 has made for an ADD that then fails is of no more use to it ("could not set bridge's mac").
fn keeps_anothers(attach: &Attach, desired: &Desired, network: &Network) -> bool {
    let keep = desired.want.as_ref().and_then(|want| want.keep);
    let holder = keep.and_then(|keep| attach.runtime.holder_of(network, keep.ip.into()));
    holder.is_some_and(|holder| holder != desired.attachment().container_id)
}

fn read_intent(desired: &Desired) -> Result<Intent, Error> {
    let path = desired.vm_dir().join(INTENT);
    let bytes = fs::read(&path)?.unwrap_or_default();
    let intent = serde_json::from_slice(&bytes);
    intent.map_err(|error| Error::other("read", path.display().to_string(), error))
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

/// By the intent on the disk, which is what will be undone.
///
/// When the plugins refuse what the guest had before, because somebody else has it or there is no such address in their network any
/// more, they are asked for any: a guest that is started anew is better than one that is cut off.
async fn add(attach: &Attach, desired: &Desired) -> Result<(), Error> {
    let mut intent = read_intent(desired)?;
    // What was made just now needs no check.
    attach.check.store(false, Ordering::Relaxed);
    let name = intent.network.name.clone();
    let is_preference = |(key, _): &(String, String)| {
        let want = desired.want.as_ref();
        want.is_some_and(|want| request::is_preference(want, key))
    };
    let prefers = intent.attachment.args.iter().any(is_preference);
    let added = match add_once(attach, desired, &mut intent).await {
        Err(Failed::Refused(refusal)) if prefers && !refusal.waits_for_a_change() => {
            tracing::info!(network = name, %refusal, "asking for any address");
            let args = &mut intent.attachment.args;
            args.retain(|argument| !is_preference(argument));
            write_intent(desired, &intent)?;
            add_once(attach, desired, &mut intent).await
        }
        added => added,
    };
    added.map_err(|failed| match failed {
        Failed::Refused(error) => fault("attach to", &name, error),
        Failed::Otherwise(error) => error,
    })
}

/// Why there is no attachment.
enum Failed {
    /// A plugin said no, and all was undone: it may say yes to something else.
    Refused(CniError),
    Otherwise(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Otherwise(error)
    }
}

async fn add_once(attach: &Attach, desired: &Desired, intent: &mut Intent) -> Result<(), Failed> {
    let (network, attachment) = (&intent.network, &intent.attachment);
    let failed = match attach.runtime.add(network, attachment).await {
        Ok(result) => match look_at_what_was_added(attach, desired, intent, &result).await {
            Ok(routes) => {
                intent.routes = routes;
                return Ok(write_intent(desired, intent)?);
            }
            Err(error) => Failed::Otherwise(error),
        },
        // Another's attachment, so to say: nothing was asked, nothing is to be undone here.
        Err(error @ CniError::AddedBefore { .. }) => {
            return Err(fault("attach to", &network.name, error).into());
        }
        Err(error @ CniError::Plugin(_)) => Failed::Refused(error),
        Err(error) => fault("attach to", &network.name, error).into(),
    };
    // At once, so that nothing half made waits out a backoff. If this fails, too, the intent stays and says so.
    match attach.runtime.del(network, attachment).await {
        Ok(()) => {
            fs::remove(&desired.vm_dir().join(INTENT))?;
            Err(failed)
        }
        Err(error) => {
            tracing::warn!(network = network.name, %error, "cannot undo a CNI ADD that failed");
            let failed = match failed {
                Failed::Refused(error) => fault("attach to", &network.name, error),
                Failed::Otherwise(error) => error,
            };
            let why = failed.source.get_ref().map(ToString::to_string);
            let noted = Intent {
                add_failed: why,
                ..intent.clone()
            };
            write_intent(desired, &noted)?;
            Err(failed.into())
        }
    }
}

/// A result that no guest can use, that is not what was asked for, or that the interface does not bear out, is none: to attach
/// again and again would not make it true. Returns the routes that the plugins made.
async fn look_at_what_was_added(
    attach: &Attach,
    desired: &Desired,
    Intent {
        network,
        attachment,
        ..
    }: &Intent,
    result: &CniResult,
) -> Result<Option<Vec<Route>>, Error> {
    let cannot = |why: String| Error::other("use", format!("CNI network `{}`", network.name), why);
    if let Some(why) = guest::unfit(result, attachment) {
        return Err(cannot(why));
    }
    let want = desired.want.as_ref();
    if let Some(why) = want.and_then(|want| request::unmet(want, result, attachment)) {
        return Err(fault("use", &network.name, CniError::Unmet(why)));
    }
    let room = attach.door.inside()?;
    let inside = observe::look_inside(&room, guest::tap(result, attachment)).await?;
    if let Some(why) = guest::disagreement(result, attachment, &inside) {
        return Err(cannot(why));
    }
    observe::routes(&room).await
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
