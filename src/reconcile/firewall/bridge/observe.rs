//! Observes the filter at a VM's TAP and whether the TAP is up.
//! Out of scope: what is desired.

use super::BridgeFirewall;
use super::plan::{Desired, Observed, TapSeen};
use crate::host::tc::{self, Filter, What};
use crate::host::{self, link};
use crate::reconcile::firewall::antispoof;

/// `ETH_P_ALL` of `include/uapi/linux/if_ether.h`: our program filters every frame.
const EVERY_PROTOCOL: u16 = 3;

pub(super) async fn observe(
    firewall: &BridgeFirewall,
    desired: &Desired,
) -> Result<Observed, host::Error> {
    let Some(tap) = link::get(&firewall.netlink, &desired.tap).await? else {
        // Forwarding is to be off: a missing TAP is equivalent. Otherwise the stage below has to create it.
        return match desired.allowed {
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
    let filters = match desired.allowed {
        None => Vec::new(),
        Some(_) => tc::list(&firewall.netlink, tap.index).await?,
    };
    let ours = filters.iter().find(|filter| is_ours(filter));
    let foreign_filter = filters
        .iter()
        .find(|filter| is_foreign_at_our_priority(filter));
    Ok(Observed {
        tap: Some(seen),
        program: ours.map(name),
        foreign_filter: foreign_filter.map(describe),
    })
}

/// Our filter is identified by its priority, protocol, chain and number.
pub(crate) fn is_ours(filter: &Filter) -> bool {
    let place = (filter.priority, filter.protocol, filter.chain);
    place == (tc::PRIORITY, EVERY_PROTOCOL, 0)
        && filter.number() == tc::NUMBER
        && matches!(filter.action, What::Program(_))
}

/// All filters of one priority have the same kind and protocol (`tcf_chain_tp_find`, net/sched/cls_api.c).
fn is_foreign_at_our_priority(filter: &Filter) -> bool {
    let at_our_priority = filter.priority == tc::PRIORITY && filter.chain == 0;
    let can_coexist = filter.protocol == EVERY_PROTOCOL && kind(filter) == "bpf";
    at_our_priority && !can_coexist
}

fn name(filter: &Filter) -> String {
    match &filter.action {
        What::Program(program) => antispoof::digest(program),
        What::Redirect(_) | What::Other(_) => kind(filter).to_owned(),
    }
}

fn describe(filter: &Filter) -> String {
    format!("a filter of kind {} at priority 1", kind(filter))
}

fn kind(filter: &Filter) -> &str {
    match &filter.action {
        What::Program(_) => "bpf",
        What::Redirect(_) => "u32",
        What::Other(kind) => kind,
    }
}
