//! Executes one step of a data path that CNI plugins make.
//! Out of scope: which steps are executed, and in which order (`plan`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::files;
use super::plan::{Action, Basis};
use super::routes::{MAX_ROUTES, Route};
use super::state::{Desired, Intent, Keep};
use super::{
    Attach, IFNAME, INTENT, detach, fault, guest, not_found, observe, one_line, request,
    waits_for_a_change,
};
use crate::api::network::TapOwner;
use crate::cni::{CniResult, Error as CniError, Network};
use crate::host::error::{absent_is_done, exists_is_done};
use crate::host::fs::Durability;
use crate::host::link::{Change, Ipv6Addresses, State};
use crate::host::netlink::Handle;
use crate::host::{Error, fs, link, netns, tap};
use crate::owner::TAP;

/// How long the kernel may need to clean up a network namespace (`cleanup_net`).
const CLEANUP: Duration = Duration::from_millis(300);

pub(super) async fn act(attach: &Attach, desired: &Desired, action: &Action) -> Result<(), Error> {
    match action {
        Action::WriteRecord => match &desired.want {
            Some(want) => files::write_record(&desired.vm_dir(), &want.record),
            None => Ok(()),
        },
        Action::Detach(basis) => {
            if desired.want.is_some() {
                attach.await_repair().await;
            }
            detach::detach(attach, desired, basis).await
        }
        Action::Abandon(basis) => detach::abandon(attach, desired, basis).await,
        Action::Forget(network) => attach
            .runtime
            .forget(network, &desired.attachment())
            .map_err(|error| fault("remove the cache record of", network, error)),
        Action::RemoveIntent => fs::remove(&desired.vm_dir().join(INTENT)),
        Action::CreateNetns => {
            // The plugins configure its content.
            match desired.place().create_netns(|_| Ok(())).await? {
                Some(netns) => attach.door.enter(netns).await.map(drop),
                None => Ok(()),
            }
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

/// Reads the configuration again, because the plan does not contain the one that was observed. STATUS is called before anything is
/// created, because the plugins may be unable to serve an ADD.
async fn write_new_intent(attach: &Attach, desired: &Desired) -> Result<(), Error> {
    let Some(name) = &desired.network else {
        return Err(Error::other(
            "find",
            "the CNI network",
            "its name is not known",
        ));
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
    write_intent(desired, &Intent::new(found.digest(), network, attachment))
}

/// Whether another container has the address that the guest had. A request for it would fail, and the failure can be permanent: the
/// bridge plugin up to 1.5 cannot use a bridge that it has created for an ADD that then failed ("could not set bridge's mac").
fn keeps_anothers(attach: &Attach, desired: &Desired, network: &Network) -> bool {
    others_holder(attach, desired, network).is_some()
}

/// The other container that has the address that the guest had.
fn others_holder(attach: &Attach, desired: &Desired, network: &Network) -> Option<String> {
    let keep = desired.want.as_ref()?.keep?;
    let holder = attach.runtime.holder_of(network, keep.ip.into())?;
    (holder != desired.attachment().container_id).then_some(holder)
}

pub(super) fn read_intent(desired: &Desired) -> Result<Intent, Error> {
    let path = desired.vm_dir().join(INTENT);
    let bytes = fs::read(&path)?.unwrap_or_default();
    let intent = serde_json::from_slice(&bytes);
    intent.map_err(|error| Error::other("read", path.display().to_string(), error))
}

pub(super) fn write_intent(desired: &Desired, intent: &Intent) -> Result<(), Error> {
    let dir = desired.vm_dir();
    let path = dir.join(INTENT);
    let bytes = serde_json::to_vec(intent)
        .map_err(|error| Error::other("write", path.display().to_string(), error))?;
    fs::make_dir(&dir, 0o700)?;
    // The attachment that it describes does not survive a power failure either.
    fs::write(&path, &bytes, 0o600, Durability::Process)
}

/// Runs ADD with the intent on the disk, which DEL uses as well.
///
/// The plugins refuse the guest's address or MAC if another container has it, or if the network does not contain the address any more.
/// ADD is then run without both: a guest that is restarted with another address is better than a guest without a network. Before that,
/// ADD is retried once after [`CLEANUP`]: when a namespace has lost its last user, its interface keeps the MAC until the kernel runs
/// `cleanup_net`, and a second macvlan with the same MAC is refused.
async fn add(attach: &Attach, desired: &Desired) -> Result<(), Error> {
    let mut intent = read_intent(desired)?;
    // A new attachment needs no CHECK in this run.
    attach.check.store(false, Ordering::Relaxed);
    let is_preference = |(key, _): &(String, String)| {
        let want = desired.want.as_ref();
        want.is_some_and(|want| request::is_preference(want, key))
    };
    let may_pass_later = |added: &Result<CniResult, Failed>| match added {
        Err(Failed::Refused(refusal)) => !refusal.waits_for_a_change(),
        Ok(_) | Err(Failed::Otherwise(_)) => false,
    };
    let mut why = None;
    let mut added = add_once(attach, desired, &mut intent).await;
    if intent.attachment.args.iter().any(is_preference) {
        if may_pass_later(&added) {
            tokio::time::sleep(CLEANUP).await;
            write_intent(desired, &intent)?;
            added = add_once(attach, desired, &mut intent).await;
        }
        if let Err(Failed::Refused(refusal)) = &added {
            why = Some(one_line(refusal));
            let args = &mut intent.attachment.args;
            args.retain(|argument| !is_preference(argument));
            write_intent(desired, &intent)?;
            added = add_once(attach, desired, &mut intent).await;
        }
    }
    match added {
        Ok(result) => {
            tell_change(attach, desired, &intent, &result, why.as_deref());
            Ok(())
        }
        Err(Failed::Refused(error)) => Err(fault("attach to", &intent.network.name, error)),
        Err(Failed::Otherwise(error)) => Err(error),
    }
}

/// Why an ADD failed.
enum Failed {
    /// A plugin returned an error, and the ADD was undone. An ADD with other arguments may succeed.
    Refused(CniError),
    Otherwise(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Otherwise(error)
    }
}

async fn add_once(
    attach: &Attach,
    desired: &Desired,
    intent: &mut Intent,
) -> Result<CniResult, Failed> {
    let (network, attachment) = (&intent.network, &intent.attachment);
    let failed = match attach.runtime.add(network, attachment).await {
        Ok(result) => match look_at_what_was_added(attach, desired, intent, &result).await {
            Ok(routes) => {
                attach.added.store(true, Ordering::Relaxed);
                intent.routes = routes;
                intent.adding = false;
                write_intent(desired, intent)?;
                return Ok(result);
            }
            Err(error) => Failed::Otherwise(error),
        },
        // There is an attachment already: no plugin was run, and there is nothing to undo.
        Err(error @ CniError::AddedBefore { .. }) => {
            return Err(fault("attach to", &network.name, error).into());
        }
        Err(error @ CniError::Plugin(_)) => Failed::Refused(error),
        Err(error) => fault("attach to", &network.name, error).into(),
    };
    // A partial attachment is undone at once and not after the backoff. If this fails, too, the intent on the disk records it.
    let basis = Basis {
        network: network.clone(),
        attachment: attachment.clone(),
        addresses_lost: true,
    };
    match detach::release(&attach.runtime, &basis).await {
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
            // The DEL has to be repeated, whether or not the ADD waits for a change.
            let failed = match (waits_for_a_change(&failed), &why) {
                (true, Some(why)) => {
                    let network = format!("CNI network `{}`", network.name);
                    Error::other("attach to", network, why.clone())
                }
                (true, None) | (false, _) => failed,
            };
            let noted = Intent {
                add_failed: why,
                ..intent.clone()
            };
            write_intent(desired, &noted)?;
            Err(failed.into())
        }
    }
}

/// Checks the result before it is used: a guest must be able to use it, it must contain what was requested, and the interface must agree
/// with it. Another ADD would not change any of these. Returns the routes that the plugins created.
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
    let room = attach.door.inside()?;
    let inside = observe::look_inside(&room, guest::tap(result, attachment)).await?;
    if let Some(why) = want.and_then(|want| request::unmet(want, result, attachment, &inside)) {
        return Err(fault("use", &network.name, CniError::Unmet(why)));
    }
    if let Some(why) = guest::disagreement(result, attachment, &inside) {
        return Err(cannot(why));
    }
    let routes = observe::routes(&room).await?;
    match routes.as_ref().map_or(0, Vec::len) {
        ..=MAX_ROUTES => Ok(routes),
        many => Err(cannot(format!(
            "the plugins created {many} routes for {IFNAME}, the maximum is {MAX_ROUTES}"
        ))),
    }
}

/// Reports that the guest gets another address, before the guest is restarted with it.
fn tell_change(
    attach: &Attach,
    desired: &Desired,
    intent: &Intent,
    result: &CniResult,
    why: Option<&str>,
) {
    let Some(Keep { ip, .. }) = desired.want.as_ref().and_then(|want| want.keep) else {
        return;
    };
    let given = guest::addresses(result, &intent.attachment);
    if let Some((given, _)) = given.first().filter(|(given, _)| given.ip() != ip) {
        let why = why.map(str::to_owned).or_else(|| {
            let holder = others_holder(attach, desired, &intent.network)?;
            Some(format!("{ip} is not available: {holder} has it"))
        });
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        let message = format!(
            "CNI network {} assigned {} instead of {ip}, so the guest is restarted{why}",
            intent.network.name,
            given.ip()
        );
        attach.tell("AddressChanged", message);
    }
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
