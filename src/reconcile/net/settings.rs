//! The settings of a VM's namespace, written before any link in it is up.
//! Out of scope: `ip_forward`, which is the forwarding switch and belongs to the Firewall stage.

use std::collections::BTreeMap;

use crate::host::link::{Ipv4, Link};
use crate::host::netns::Netns;
use crate::host::{Error, cttimeout};
use crate::reconcile::limits;

/// Key and value. New links start with `default`; `all` is combined with each link's own value (Documentation/networking/ip-sysctl.rst).
const SETTINGS: [(&str, &str); 27] = [
    // IPv6 is off completely, so there is nothing to filter.
    ("net.ipv6.conf.all.disable_ipv6", "1"),
    ("net.ipv6.conf.default.disable_ipv6", "1"),
    // A guest must not change the route of its gateway, nor receive redirects.
    ("net.ipv4.conf.all.accept_redirects", "0"),
    ("net.ipv4.conf.default.accept_redirects", "0"),
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.conf.default.send_redirects", "0"),
    ("net.ipv4.conf.all.accept_source_route", "0"),
    ("net.ipv4.conf.default.accept_source_route", "0"),
    ("net.ipv4.conf.all.route_localnet", "0"),
    ("net.ipv4.conf.default.route_localnet", "0"),
    // The host's end of the veth also has the gateway's address: its "fragmentation needed" and "time exceeded" come from an address that
    // is local here. Sources are checked by the rules, not by the routes.
    ("net.ipv4.conf.all.accept_local", "1"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    // ARP requests are answered only for the address of the link that they arrive on.
    ("net.ipv4.conf.all.arp_ignore", "1"),
    // A new namespace copies these from the first one (`devinet_init_net`, unless `net.core.devconf_inherit_init_net` differs). With these
    // values only the gateway answers ARP requests, broadcasts are not forwarded, and a guest creates no neighbours and no log messages.
    ("net.ipv4.conf.default.arp_ignore", "0"),
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

/// The settings from this index on are right in a new namespace, unless the owner of the first namespace has changed them.
const INHERITED: usize = 14;

/// The forwarding switch of [`crate::reconcile::firewall`]. A write sets `forwarding` of every link, and only the link's own value has an
/// effect.
const FORWARDING: &str = "net.ipv4.conf.all.forwarding";

/// Reads a setting.
type Value = fn(&Ipv4) -> i32;

/// A link's own values, all 0, of settings that the kernel combines with `all` or reads from the link alone (`IN_DEV_ORCONF`,
/// `IN_DEV_MAXCONF`, `IN_DEV_ANDCONF` in linux/inetdevice.h). They are read with the link, so that `default` matters only if a link is to
/// be created.
const LINK_SETTINGS: [(&str, Value); 12] = [
    ("accept_redirects", |ipv4| ipv4.accept_redirects),
    ("send_redirects", |ipv4| ipv4.send_redirects),
    ("accept_source_route", |ipv4| ipv4.accept_source_route),
    ("route_localnet", |ipv4| ipv4.route_localnet),
    ("rp_filter", |ipv4| ipv4.rp_filter),
    ("arp_ignore", |ipv4| ipv4.arp_ignore),
    ("proxy_arp", |ipv4| ipv4.proxy_arp),
    ("proxy_arp_pvlan", |ipv4| ipv4.proxy_arp_pvlan),
    ("arp_filter", |ipv4| ipv4.arp_filter),
    ("arp_accept", |ipv4| ipv4.arp_accept),
    ("bc_forwarding", |ipv4| ipv4.bc_forwarding),
    ("log_martians", |ipv4| ipv4.log_martians),
];

/// Whether a key belongs to a single link.
pub(super) fn is_link_setting(key: &str) -> bool {
    let link = key
        .strip_prefix("net.ipv4.conf.")
        .or(key.strip_prefix("net.ipv6.conf."));
    link.is_some_and(|rest| !rest.starts_with("all.") && !rest.starts_with("default."))
}

/// Writes all settings. A kernel without IPv6 has no IPv6 settings.
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
    // One message instead of one file per timeout.
    netns.run_here(|| cttimeout::set_defaults(&limits::timeouts()))
}

/// Returns the settings that differ, with the value that they should have; also those of each of our links if `all` does not decide.
pub(super) fn drifted(
    netns: &Netns,
    links: &[Option<&Link>],
) -> Result<BTreeMap<String, String>, Error> {
    let complete = links.iter().all(Option::is_some);
    let is_default = |key: &str| key.contains(".conf.default.");
    let settings = SETTINGS
        .iter()
        .filter(|(key, _)| !(complete && is_default(key)));
    let mut keys: Vec<&str> = settings.clone().map(|(key, _)| *key).collect();
    keys.push(FORWARDING);
    let read = || Ok((netns.read_sysctls(&keys)?, cttimeout::defaults()?));
    let (mut found, timeouts) = netns.run_here(read)?;
    let forwarding = found.pop().flatten();
    let differences = settings
        .zip(found)
        .filter(|((_, value), found)| found.as_ref().is_some_and(|found| found != value));
    let mut drifted: BTreeMap<String, String> = differences
        .map(|((key, value), _)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    for link in links.iter().flatten() {
        drifted.extend(link_differences(link, forwarding.as_deref()));
    }
    for (state, attribute, seconds) in limits::TIMEOUTS {
        // There is no sysctl for simultaneous open.
        if state != "syn_sent2"
            && timeouts
                .get(&attribute)
                .is_some_and(|found| *found != seconds)
        {
            let key = format!("net.netfilter.nf_conntrack_tcp_timeout_{state}");
            drifted.insert(key, seconds.to_string());
        }
    }
    Ok(drifted)
}

/// A link's own settings that differ. `expected_forwarding`: the namespace's forwarding switch.
fn link_differences(link: &Link, expected_forwarding: Option<&str>) -> BTreeMap<String, String> {
    let mut differences = BTreeMap::new();
    let mut add = |family: &str, key: &str, expected: &str| {
        let key = format!("net.{family}.conf.{}.{key}", link.name);
        differences.insert(key, expected.to_owned());
    };
    if let Some(ipv4) = link.ipv4 {
        for (key, value) in LINK_SETTINGS {
            if value(&ipv4) != 0 {
                add("ipv4", key, "0");
            }
        }
        if let Some(expected_forwarding) = expected_forwarding
            .filter(|expected_forwarding| *expected_forwarding != ipv4.forwarding.to_string())
        {
            add("ipv4", "forwarding", expected_forwarding);
        }
    }
    // The kernel reads the link's value alone (`ipv6_rcv`); `all` is copied to the links when it is written.
    if link.ipv6.is_some_and(|ipv6| !ipv6.disabled) {
        add("ipv6", "disable_ipv6", "1");
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::link::Ipv6;

    type Mutation = fn(&mut Ipv4);

    #[test]
    fn each_wrong_setting_of_a_link_is_detected() {
        let expected = Link {
            name: "tap0".into(),
            ipv4: Some(Ipv4 {
                forwarding: 1,
                ..Ipv4::default()
            }),
            ipv6: Some(Ipv6 {
                disabled: true,
                configurable: true,
                no_autogenerated_address: false,
            }),
            ..Link::default()
        };
        assert!(link_differences(&expected, Some("1")).is_empty());
        assert_eq!(link_differences(&expected, Some("0")).len(), 1);
        let changes: [(&str, Mutation); 13] = [
            ("forwarding", |ipv4| ipv4.forwarding = 0),
            ("accept_redirects", |ipv4| ipv4.accept_redirects = 1),
            ("send_redirects", |ipv4| ipv4.send_redirects = 1),
            ("accept_source_route", |ipv4| ipv4.accept_source_route = 1),
            ("route_localnet", |ipv4| ipv4.route_localnet = 1),
            ("rp_filter", |ipv4| ipv4.rp_filter = 1),
            ("arp_ignore", |ipv4| ipv4.arp_ignore = 8),
            ("proxy_arp", |ipv4| ipv4.proxy_arp = 1),
            ("proxy_arp_pvlan", |ipv4| ipv4.proxy_arp_pvlan = 1),
            ("arp_filter", |ipv4| ipv4.arp_filter = 1),
            ("arp_accept", |ipv4| ipv4.arp_accept = 1),
            ("bc_forwarding", |ipv4| ipv4.bc_forwarding = 1),
            ("log_martians", |ipv4| ipv4.log_martians = 1),
        ];
        for (key, change) in changes {
            let mut link = expected.clone();
            change(link.ipv4.as_mut().expect("IPv4"));
            let found: Vec<String> = link_differences(&link, Some("1")).into_keys().collect();
            assert_eq!(found, [format!("net.ipv4.conf.tap0.{key}")]);
        }
        let mut link = expected;
        link.ipv6.as_mut().expect("IPv6").disabled = false;
        let found: Vec<String> = link_differences(&link, Some("1")).into_keys().collect();
        assert_eq!(found, ["net.ipv6.conf.tap0.disable_ipv6"]);
    }
}
