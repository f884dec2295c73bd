//! The settings of a VM's namespace, written before any link in it is up.
//! Out of scope: `ip_forward`, which is the forwarding switch and belongs to the Firewall stage.

use std::collections::BTreeMap;

use crate::host::link::Link;
use crate::host::netns::Netns;
use crate::host::{Error, cttimeout};
use crate::reconcile::limits;

/// Key and value. `default` is what a new link starts with, `all` is joined with each link's own
/// (Documentation/networking/ip-sysctl.rst).
const SETTINGS: [(&str, &str); 26] = [
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
    // A new namespace copies these of the first one (`devinet_init_net`, unless `net.core.devconf_inherit_init_net` is set
    // otherwise): nobody but the gateway answers ARP, broadcasts are not forwarded, a guest makes no neighbours and no log.
    ("net.ipv4.conf.all.proxy_arp", "0"),
    ("net.ipv4.conf.default.proxy_arp", "0"),
    ("net.ipv4.conf.all.proxy_arp_pvlan", "0"),
    ("net.ipv4.conf.default.proxy_arp_pvlan", "0"),
    ("net.ipv4.conf.all.arp_filter", "0"),
    ("net.ipv4.conf.default.arp_filter", "0"),
    ("net.ipv4.conf.all.arp_accept", "0"),
    ("net.ipv4.conf.default.arp_accept", "0"),
    ("net.ipv4.conf.all.bc_forwarding", "0"),
    ("net.ipv4.conf.default.bc_forwarding", "0"),
    ("net.ipv4.conf.all.log_martians", "0"),
    ("net.ipv4.conf.default.log_martians", "0"),
];

/// The first of [`SETTINGS`] that a namespace has right unless the first namespace's owner changed it.
const INHERITED: usize = 14;

/// The forwarding switch of [`crate::reconcile::firewall`]. A write sets `forwarding` of every link, and only the link's own has an effect.
const GATE: &str = "net.ipv4.conf.all.forwarding";

/// Whether a key is one link's own.
pub(super) fn is_of_a_link(key: &str) -> bool {
    let link = key.strip_prefix("net.ipv4.conf.");
    link.is_some_and(|rest| !rest.starts_with("all.") && !rest.starts_with("default."))
}

/// Writes them all. A kernel without IPv6 has no IPv6 to switch off.
pub(super) fn write_all(netns: &Netns) -> Result<(), Error> {
    // `all.disable_ipv6` sets `default` as well (`addrconf_disable_ipv6`, net/ipv6/addrconf.c).
    let unset = SETTINGS[..INHERITED]
        .iter()
        .filter(|(key, _)| *key != "net.ipv6.conf.default.disable_ipv6");
    let found = netns.read_sysctls(&SETTINGS.map(|(key, _)| key)[INHERITED..])?;
    let inherited = SETTINGS[INHERITED..].iter().zip(found);
    let inherited = inherited
        .filter(|((_, value), found)| found.as_ref().is_some_and(|found| found != value))
        .map(|(setting, _)| setting);
    netns.write_sysctls(&unset.chain(inherited).copied().collect::<Vec<_>>())?;
    // One message instead of a file for each.
    netns.run_here(|| cttimeout::set_defaults(&limits::timeouts()))
}

/// Those that differ, with the value they should have; of each of our links, too, where `all` does not decide.
pub(super) fn strayed(
    netns: &Netns,
    links: &[Option<&Link>],
) -> Result<BTreeMap<String, String>, Error> {
    let mut keys = SETTINGS.map(|(key, _)| key).to_vec();
    keys.push(GATE);
    let look = || Ok((netns.read_sysctls(&keys)?, cttimeout::defaults()?));
    let (mut found, timeouts) = netns.run_here(look)?;
    let gate = found.pop().flatten();
    let differ = SETTINGS
        .iter()
        .zip(found)
        .filter(|((_, value), found)| found.as_ref().is_some_and(|found| found != value));
    let mut strayed: BTreeMap<String, String> = differ
        .map(|((key, value), _)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    for link in links.iter().flatten() {
        let Some(ipv4) = link.ipv4 else { continue };
        let mut differs = |key: &str, found: i32, right: &str| {
            if found.to_string() != right {
                let key = format!("net.ipv4.conf.{}.{key}", link.name);
                strayed.insert(key, right.to_owned());
            }
        };
        differs("proxy_arp", ipv4.proxy_arp, "0");
        if let Some(gate) = &gate {
            differs("forwarding", ipv4.forwarding, gate);
        }
    }
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
