//! Observes the filter at a VM's TAP and whether the TAP is up.
//! Out of scope: what is desired.

use super::Gate;
use super::plan::{Desired, Observed, TapSeen};
use crate::host::tc::{self, Filter, What};
use crate::host::{self, link};
use crate::reconcile::firewall::antispoof;

/// `ETH_P_ALL` of `include/uapi/linux/if_ether.h`: our program filters every frame.
const EVERY_PROTOCOL: u16 = 3;

pub(super) async fn observe(gate: &Gate, desired: &Desired) -> Result<Observed, host::Error> {
    let Some(tap) = link::get(&gate.netlink, &desired.tap).await? else {
        // Forwarding is to be off: a missing TAP is equivalent. Otherwise the stage below has to create it.
        return match desired.pass {
            None => Ok(Observed::default()),
            Some(_) => Err(host::Error::io(
                "find link",
                &desired.tap,
                std::io::Error::from_raw_os_error(libc::ENODEV),
            )),
        };
    };
    let seen = TapSeen {
        alias: tap.alias,
        up: tap.up,
    };
    let filters = match desired.pass {
        None => Vec::new(),
        Some(_) => tc::list(&gate.netlink, tap.index).await?,
    };
    let ours = filters.iter().find(|filter| is_ours(filter));
    let in_the_way = filters.iter().find(|filter| is_in_the_way(filter));
    Ok(Observed {
        tap: Some(seen),
        program: ours.map(name),
        in_the_way: in_the_way.map(describe),
    })
}

/// Our filter is identified by its priority, protocol, chain and number.
pub(crate) fn is_ours(filter: &Filter) -> bool {
    let place = (filter.priority, filter.protocol, filter.chain);
    place == (tc::PRIORITY, EVERY_PROTOCOL, 0)
        && filter.number() == tc::NUMBER
        && matches!(filter.what, What::Program(_))
}

/// All filters of one priority have the same kind and protocol (`tcf_chain_tp_find`, net/sched/cls_api.c).
fn is_in_the_way(filter: &Filter) -> bool {
    let at_our_priority = filter.priority == tc::PRIORITY && filter.chain == 0;
    let beside = filter.protocol == EVERY_PROTOCOL && kind(filter) == "bpf";
    at_our_priority && !beside
}

fn name(filter: &Filter) -> String {
    match &filter.what {
        What::Program(program) => antispoof::digest(program),
        What::Redirect(_) | What::Other(_) => kind(filter).to_owned(),
    }
}

fn describe(filter: &Filter) -> String {
    format!("a filter of kind {} at priority 1", kind(filter))
}

fn kind(filter: &Filter) -> &str {
    match &filter.what {
        What::Program(_) => "bpf",
        What::Redirect(_) => "u32",
        What::Other(kind) => kind,
    }
}
