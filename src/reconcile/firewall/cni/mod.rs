//! The Firewall stage in CNI mode: redirects all packets between the plugins' interface and the TAP; then sets the TAP up.
//! Out of scope: the interface and the TAP (the Net stage).
//!
//! # Why
//! Redirected packets bypass the namespace's netfilter and its addresses, so the guest takes the place of the plugins' interface on the
//! network: it has its MAC and its address. Filters of other programs are not changed; ours are identified by priority and number.

mod plan;

use crate::host::error::{absent_is_done, exists_is_done};
use crate::host::link::{Change, Link, State};
use crate::host::netlink::Handle;
use crate::host::netns::Netns;
use crate::host::tc::{self, NUMBER, PRIORITY, What};
use crate::host::{Error, Kind, link};

use crate::reconcile::{Conflict, OnHost, Reconcile};

pub use plan::{Action, Desired, Direction, End, Filter, Observed, TapLink};

/// The reconciler of the Firewall stage in CNI mode.
#[derive(Clone, Copy, Debug, Default)]
pub struct CniFirewall;

impl Reconcile for CniFirewall {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        plan::plan(desired, observed)
    }
}

impl OnHost for CniFirewall {
    async fn observe(&self, desired: &Desired) -> Result<Observed, Error> {
        let netns = match Netns::open(&desired.netns) {
            Ok(netns) => netns,
            // Nothing is desired. Otherwise the stage below has to create the namespace.
            Err(error) if error.kind == Kind::Absent && desired.tap_link.is_none() => {
                return Ok(Observed::default());
            }
            Err(error) => return Err(error),
        };
        let netlink = netns.netlink()?;
        let lo = link::get(&netlink, "lo").await?;
        let label = lo.and_then(|lo| lo.alias).unwrap_or_default();
        let mut observed = Observed {
            netns: Some(label),
            ..Observed::default()
        };
        match &desired.tap_link {
            None => {
                let tap = link::get(&netlink, &desired.tap).await?;
                observed.tap = tap.map(|tap| without_filter(&tap));
            }
            Some(TapLink::Chain) => {
                observed.tap = Some(without_filter(&find(&netlink, &desired.tap).await?))
            }
            Some(TapLink::Redirect(eth)) => {
                observed.eth = Some(end(&netlink, eth).await?);
                observed.tap = Some(end(&netlink, &desired.tap).await?);
            }
        }
        Ok(observed)
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), Error> {
        match act(desired, action).await {
            // Without its namespace or its link, forwarding is off.
            Err(error) if error.kind == Kind::Absent && *action == Action::DisableForwarding => {
                Ok(())
            }
            done => done,
        }
    }
}

async fn act(desired: &Desired, action: &Action) -> Result<(), Error> {
    let netlink = Netns::open(&desired.netns)?.netlink()?;
    let tap = find(&netlink, &desired.tap).await?.index;
    let ends = async |direction: Direction| -> Result<Option<(u32, u32)>, Error> {
        let Some(TapLink::Redirect(eth)) = &desired.tap_link else {
            return Ok(None);
        };
        let eth = find(&netlink, eth).await?.index;
        Ok(Some(match direction {
            Direction::In => (eth, tap),
            Direction::Out => (tap, eth),
        }))
    };
    match action {
        Action::DisableForwarding => set(&netlink, tap, State::Down).await,
        Action::EnableForwarding => set(&netlink, tap, State::Up).await,
        Action::RemoveRedirect(way) => match ends(*way).await? {
            Some((from, _)) => unredirect(&netlink, from).await,
            None => Ok(()),
        },
        Action::Redirect(way) => match ends(*way).await? {
            Some((from, to)) => {
                exists_is_done(tc::add_hook(&netlink, from).await)?;
                exists_is_done(tc::add_redirect(&netlink, from, to).await)
            }
            None => Ok(()),
        },
    }
}

async fn set(netlink: &Handle, index: u32, state: State) -> Result<(), Error> {
    let change = Change {
        state: Some(state),
        ..Change::default()
    };
    link::set(netlink, index, &change).await
}

async fn unredirect(netlink: &Handle, index: u32) -> Result<(), Error> {
    let filters = tc::list(netlink, index).await?;
    for filter in filters.iter().filter(|filter| is_ours(filter)) {
        absent_is_done(tc::delete(netlink, index, filter).await)?;
    }
    Ok(())
}

async fn find(netlink: &Handle, name: &str) -> Result<Link, Error> {
    let found = link::get(netlink, name).await?;
    found.ok_or_else(|| {
        let not_found = std::io::Error::from_raw_os_error(libc::ENODEV);
        Error::io("find link", name, not_found)
    })
}

fn without_filter(link: &Link) -> End {
    End {
        index: link.index,
        up: link.up,
        filter: Filter::Absent,
    }
}

async fn end(netlink: &Handle, name: &str) -> Result<End, Error> {
    let link = find(netlink, name).await?;
    let filters = tc::list(netlink, link.index).await?;
    let mut ours = filters.into_iter().filter(is_ours);
    let filter = match (ours.next(), ours.next()) {
        (None, _) => Filter::Absent,
        (Some(only), None) => match only.action {
            What::Redirect(to) => Filter::To(to),
            What::Program(_) | What::Other(_) => Filter::Wrong,
        },
        (Some(_), Some(_)) => Filter::Wrong,
    };
    Ok(End {
        filter,
        ..without_filter(&link)
    })
}

fn is_ours(filter: &tc::Filter) -> bool {
    filter.priority == PRIORITY && filter.number() == NUMBER && filter.chain == 0
}
