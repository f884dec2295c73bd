//! The settings of a VM's namespace, written before any link in it is up.
//! Not here: `ip_forward`, which is the gate and the Firewall rung's.

use std::collections::BTreeMap;

use crate::host::netns::Netns;
use crate::host::{Error, cttimeout};
use crate::reconcile::limits;

/// Key and value. `default` is what a new link starts with, `all` is joined with each link's own
/// (Documentation/networking/ip-sysctl.rst).
const SETTINGS: [(&str, &str); 14] = [
    // No IPv6 at all: nothing to filter, nothing to forget.
    ("net.ipv6.conf.all.disable_ipv6", "1"),
    ("net.ipv6.conf.default.disable_ipv6", "1"),
    // A guest must not re-route its own gateway, nor be told to.
    ("net.ipv4.conf.all.accept_redirects", "0"),
    ("net.ipv4.conf.default.accept_redirects", "0"),
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.conf.default.send_redirects", "0"),
    ("net.ipv4.conf.all.accept_source_route", "0"),
    ("net.ipv4.conf.default.accept_source_route", "0"),
    ("net.ipv4.conf.all.route_localnet", "0"),
    ("net.ipv4.conf.default.route_localnet", "0"),
    // The host's end of the veth has the gateway's address, too: its "fragmentation needed" and "time exceeded" come from an
    // address that is local here. Sources are judged by the rules, not by the routes.
    ("net.ipv4.conf.all.accept_local", "1"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    // The guest is asked for by its one address only, on the link that has it.
    ("net.ipv4.conf.all.arp_ignore", "1"),
];

/// Writes them all. A kernel without IPv6 has no IPv6 to switch off.
pub(super) fn write_all(netns: &Netns) -> Result<(), Error> {
    // `all.disable_ipv6` sets `default` as well (`addrconf_disable_ipv6`, net/ipv6/addrconf.c).
    let unset = SETTINGS
        .iter()
        .filter(|(key, _)| *key != "net.ipv6.conf.default.disable_ipv6");
    netns.write_sysctls(&unset.copied().collect::<Vec<_>>())?;
    // One message instead of a file for each.
    netns.run_here(|| cttimeout::set_defaults(&limits::timeouts()))
}

/// Those that differ, with the value they should have.
pub(super) fn strayed(netns: &Netns) -> Result<BTreeMap<String, String>, Error> {
    let found = netns.read_sysctls(&SETTINGS.map(|(key, _)| key))?;
    let differ = SETTINGS
        .iter()
        .zip(found)
        .filter(|((_, value), found)| found.as_ref().is_some_and(|found| found != value));
    let mut strayed: BTreeMap<String, String> = differ
        .map(|((key, value), _)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let timeouts = netns.run_here(cttimeout::defaults)?;
    for (state, attribute, seconds) in limits::TIMEOUTS {
        // There is no sysctl for simultaneous opening.
        if state != "syn_sent2"
            && timeouts
                .get(&attribute)
                .is_some_and(|found| *found != seconds)
        {
            let key = format!("net.netfilter.nf_conntrack_tcp_timeout_{state}");
            strayed.insert(key, seconds.to_string());
        }
    }
    Ok(strayed)
}
