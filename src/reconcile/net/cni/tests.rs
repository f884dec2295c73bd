//! Converts results of every version to the guest's connection.
//! Out of scope: plans (`tests/pure/plans.rs`, `tests/pure/laws`).

mod bounds;

use super::guest::{chain_tap, connection, disagreement, expected};
use super::routes::{Route, guest_routes};
use super::state::{Eth, Inside};
use crate::api::network::Connection;
use crate::cni::{Attachment, CniResult, Version};

const NETNS: &str = "/run/slice/netns/slice-abc";

fn attachment() -> Attachment {
    Attachment::new("slice-vm", NETNS, "eth0")
}

fn eth() -> Eth {
    Eth {
        mac: "02:00:00:00:00:0e".to_owned().try_into().unwrap(),
        veth: true,
        up: true,
        mtu: 1450,
        addresses: ["10.22.0.5/16".parse().unwrap()].into(),
    }
}

/// The result of the bridge plugin; before 1.0.0 addresses have a `version`.
fn bridge(version: Version) -> CniResult {
    let family = match version.has_ip_version() {
        true => r#""version": "4", "#,
        false => "",
    };
    result(
        version,
        &format!(
            r#"{{"interfaces": [
                {{"name": "cni0", "mac": "02:00:00:00:00:01"}},
                {{"name": "veth123", "mac": "02:00:00:00:00:02"}},
                {{"name": "eth0", "mac": "02:00:00:00:00:0e", "sandbox": "{NETNS}"}}],
             "ips": [{{{family}"address": "10.22.0.5/16", "gateway": "10.22.0.1", "interface": 2}}],
             "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "10.96.0.9/12", "gw": "10.22.0.3"}},
                        {{"dst": "192.168.0.0/24"}}, {{"dst": "fd00::/8"}}],
             "dns": {{"nameservers": ["fd00::53", "10.22.0.53", "1.1.1.1", "8.8.8.8"]}}}}"#
        ),
    )
}

fn result(version: Version, text: &str) -> CniResult {
    CniResult::parse(text, version).unwrap()
}

fn connected(result: &CniResult) -> Connection {
    connection(result, &attachment(), &eth(), None).expect("fit")
}

fn route(text: &str) -> Route {
    match text.split_once(" via ") {
        None => (text.parse().unwrap(), None),
        Some((dst, hop)) => (dst.parse().unwrap(), Some(hop.parse().unwrap())),
    }
}

fn routes(words: &[&str]) -> Vec<Route> {
    words.iter().map(|words| route(words)).collect()
}

#[test]
fn a_result_of_the_bridge_plugin_is_read_in_every_version() {
    for version in Version::ALL {
        let found = connected(&bridge(version));
        let expected_value = Connection {
            netns: Some(NETNS.into()),
            tap: "tap0".to_owned(),
            host_link: Some("veth123".to_owned()),
            mac: eth().mac,
            ip: [10, 22, 0, 5].into(),
            prefix_len: 16,
            gateway: Some([10, 22, 0, 1].into()),
            addresses: vec![],
            // A route without a next hop uses the gateway.
            routes: routes(&["10.96.0.0/12 via 10.22.0.3", "192.168.0.0/24 via 10.22.0.1"]),
            mtu: 1450,
            dns: vec![
                [10, 22, 0, 53].into(),
                [1, 1, 1, 1].into(),
                [8, 8, 8, 8].into(),
            ],
            warnings: ["the IPv6 route to fd00::/8", "the name server fd00::53"]
                .map(|what| {
                    format!("the CNI network provides {what}, which is not passed to the guest")
                })
                .to_vec(),
        };
        assert_eq!(found, expected_value, "{version}");
        let expected = expected(&bridge(version), &attachment());
        assert_eq!(expected.mac, Some(eth().mac));
        assert_eq!(expected.addresses, eth().addresses);
    }
}

#[test]
fn the_gateway_may_be_specified_by_the_default_route_alone() {
    let text = format!(
        r#"{{"interfaces": [{{"name": "veth9", "mac": "02:00:00:00:00:02"}},
                            {{"name": "eth0", "sandbox": "{NETNS}"}}],
             "ips": [{{"address": "fd00::5/64", "interface": 1}},
                     {{"address": "10.22.0.5/16", "interface": 1}}],
             "routes": [{{"dst": "::/0", "gw": "fd00::1"}}, {{"dst": "0.0.0.0/0", "gw": "10.22.0.9"}}]}}"#
    );
    let found = connected(&result(Version::V1_1_0, &text));
    assert_eq!(found.gateway, Some([10, 22, 0, 9].into()));
    assert_eq!(found.host_link.as_deref(), Some("veth9"));
    // The result does not contain it; the interface has it.
    assert_eq!(found.mac, eth().mac);
    assert_eq!((found.routes, found.dns), (vec![], vec![]));
}

#[test]
fn a_result_without_a_gateway_yields_none() {
    let text = r#"{"ips": [{"address": "10.22.0.5/16"}]}"#;
    let found = connected(&result(Version::V1_0_0, text));
    assert_eq!((found.gateway, found.host_link), (None, None));
    assert_eq!(found.ip, std::net::Ipv4Addr::new(10, 22, 0, 5));
}

#[test]
fn a_chain_that_creates_a_tap_also_lists_the_guests_interface() {
    let text = format!(
        r#"{{"interfaces": [
                {{"name": "veth9"}},
                {{"name": "eth0", "mac": "02:00:00:00:00:0e", "sandbox": "{NETNS}"}},
                {{"name": "tap7", "mac": "02:00:00:00:00:07", "sandbox": "{NETNS}"}},
                {{"name": "tap7", "mac": "02:00:00:00:00:aa", "sandbox": "slice-vm"}}],
             "ips": [{{"version": "4", "address": "10.22.0.5/16", "gateway": "10.22.0.1", "interface": 1}},
                     {{"version": "4", "address": "10.22.0.6/16", "gateway": "10.22.0.2", "interface": 3}}]}}"#
    );
    for version in [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0] {
        let result = result(version, &text);
        assert_eq!(chain_tap(&result, &attachment()), Some("tap7"));
        let found = connected(&result);
        assert_eq!(found.tap, "tap7");
        assert_eq!(found.mac.to_string(), "02:00:00:00:00:aa");
        assert_eq!(found.ip, std::net::Ipv4Addr::new(10, 22, 0, 6));
        assert_eq!(found.gateway, Some([10, 22, 0, 2].into()));
        let expected = expected(&result, &attachment());
        assert_eq!(expected.addresses, eth().addresses);
    }
}

#[test]
fn an_interface_of_another_sandbox_is_not_the_tap_of_the_chain() {
    for sandbox in ["/run/netns/other", "slice-other"] {
        let text = format!(
            r#"{{"interfaces": [{{"name": "tap7", "sandbox": "{NETNS}"}}, {{"name": "tap7", "sandbox": "{sandbox}"}}],
                 "ips": [{{"address": "10.22.0.5/16"}}]}}"#
        );
        let result = result(Version::V1_0_0, &text);
        assert_eq!(chain_tap(&result, &attachment()), None, "{sandbox}");
        assert_eq!(connected(&result).tap, "tap0");
    }
}

/// Addresses of the guest, routes that its plugins created, gateway and additional routes of the guest.
type Case = (
    &'static [&'static str],
    &'static [&'static str],
    Option<&'static str>,
    &'static [&'static str],
);

#[test]
fn a_guest_gets_the_routes_of_its_namespace() {
    let cases: [Case; 14] = [
        // bridge: the subnet is on the link and contains the gateway.
        (
            &["10.1.0.5/24"],
            &["10.1.0.0/24", "0.0.0.0/0 via 10.1.0.1"],
            Some("10.1.0.1"),
            &[],
        ),
        // ptp: only the gateway is on the link, and VMs reach each other through it.
        (
            &["10.1.0.5/24"],
            &[
                "0.0.0.0/0 via 10.1.0.1",
                "10.1.0.0/24 via 10.1.0.1",
                "10.1.0.1/32",
            ],
            Some("10.1.0.1"),
            &["10.1.0.1/32", "10.1.0.0/24 via 10.1.0.1"],
        ),
        // The same without the on-link route to the gateway in the kernel's list.
        (
            &["10.1.0.5/24"],
            &["0.0.0.0/0 via 10.1.0.1", "10.1.0.0/24 via 10.1.0.1"],
            Some("10.1.0.1"),
            &["10.1.0.1/32", "10.1.0.0/24 via 10.1.0.1"],
        ),
        // Calico.
        (
            &["10.7.0.2/32"],
            &["169.254.1.1/32", "0.0.0.0/0 via 169.254.1.1"],
            Some("169.254.1.1"),
            &["169.254.1.1/32", "0.0.0.0/0 via 169.254.1.1"],
        ),
        // Cilium.
        (
            &["10.7.0.2/32"],
            &["0.0.0.0/0 via 10.7.0.200", "10.7.0.200/32"],
            Some("10.7.0.200"),
            &["10.7.0.200/32", "0.0.0.0/0 via 10.7.0.200"],
        ),
        // `onlink`: no other route covers the gateway.
        (
            &["10.7.0.2/32"],
            &["0.0.0.0/0 via 10.9.0.1"],
            Some("10.9.0.1"),
            &["10.9.0.1/32", "0.0.0.0/0 via 10.9.0.1"],
        ),
        (
            &["10.1.0.5/24"],
            &["10.1.0.0/24", "0.0.0.0/0 via 10.9.0.1"],
            Some("10.9.0.1"),
            &["10.9.0.1/32", "0.0.0.0/0 via 10.9.0.1"],
        ),
        // Every destination is on the link.
        (&["10.7.0.2/32"], &["0.0.0.0/0"], None, &["0.0.0.0/0"]),
        (&["10.1.0.5/24"], &["10.1.0.0/24"], None, &[]),
        (&["10.7.0.2/32"], &[], None, &[]),
        // Additional routes, also through the subnet of an additional address.
        (
            &["10.1.0.5/24", "10.2.0.5/24"],
            &[
                "10.1.0.0/24",
                "10.2.0.0/24",
                "10.5.0.0/16 via 10.2.0.9",
                "0.0.0.0/0 via 10.1.0.1",
            ],
            Some("10.1.0.1"),
            &["10.5.0.0/16 via 10.2.0.9"],
        ),
        // The gateway is in the subnet of an additional address, which `ip=` does not contain.
        (
            &["10.1.0.5/24", "10.2.0.5/24"],
            &["10.1.0.0/24", "10.2.0.0/24", "0.0.0.0/0 via 10.2.0.1"],
            Some("10.2.0.1"),
            &["0.0.0.0/0 via 10.2.0.1"],
        ),
        // The peer address of a /31 is on the link.
        (
            &["10.1.0.4/31"],
            &["10.1.0.4/31", "0.0.0.0/0 via 10.1.0.5"],
            Some("10.1.0.5"),
            &[],
        ),
        // A duplicate route is added once.
        (
            &["10.1.0.5/24"],
            &[
                "10.1.0.0/24",
                "10.9.0.0/16 via 10.1.0.7",
                "10.9.0.0/16 via 10.1.0.7",
            ],
            None,
            &["10.9.0.0/16 via 10.1.0.7"],
        ),
    ];
    for (addresses, made, gateway, expected_value) in cases {
        let addresses: Vec<_> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let found = guest_routes(&addresses, &routes(made));
        let gateway = gateway.map(|gateway| gateway.parse().unwrap());
        assert_eq!(
            (found.gateway, &found.routes),
            (gateway, &routes(expected_value)),
            "{made:?}"
        );
        assert!(can_be_made(&addresses, &found.routes), "{:?}", found.routes);
    }
}

/// Whether every next hop is on the link before it is used, as the kernel requires.
fn can_be_made(addresses: &[ipnetwork::Ipv4Network], routes: &[Route]) -> bool {
    let mut on_link: Vec<_> = addresses
        .iter()
        .filter(|a| a.prefix() < 32)
        .copied()
        .collect();
    routes.iter().all(|(dst, hop)| {
        on_link.extend(hop.is_none().then_some(*dst));
        hop.is_none_or(|hop| on_link.iter().any(|net| net.contains(hop)))
    })
}

#[test]
fn routes_in_the_namespace_take_precedence_over_those_of_the_result() {
    let text = format!(
        r#"{{"interfaces": [{{"name": "cali1"}}, {{"name": "eth0", "sandbox": "{NETNS}"}}],
             "ips": [{{"address": "10.22.0.5/32", "interface": 1}}]}}"#
    );
    let result = result(Version::V1_0_0, &text);
    let eth = Eth {
        addresses: ["10.22.0.5/32".parse().unwrap()].into(),
        ..eth()
    };
    let made = routes(&["169.254.1.1/32", "0.0.0.0/0 via 169.254.1.1"]);
    let found = connection(&result, &attachment(), &eth, Some(&made)).unwrap();
    assert_eq!(found.gateway, Some([169, 254, 1, 1].into()));
    assert_eq!((found.routes, found.warnings), (made, vec![]));
    // Without any route the guest cannot reach another host, and a warning reports this.
    let found = connection(&result, &attachment(), &eth, Some(&[])).unwrap();
    assert_eq!(found.gateway, None);
    assert!(
        found.warnings[0].contains("cannot reach any other address"),
        "{:?}",
        found.warnings
    );
}

#[test]
fn a_warning_lists_what_is_not_passed_to_the_guest() {
    let text = format!(
        r#"{{"interfaces": [{{"name": "veth9"}}, {{"name": "eth0", "sandbox": "{NETNS}"}}, {{"name": "net1", "sandbox": "{NETNS}"}}],
             "ips": [{{"address": "10.22.0.5/16", "interface": 1}}, {{"address": "10.23.0.5/16", "interface": 1}},
                     {{"address": "fd00::5/64", "interface": 1}}, {{"address": "10.24.0.5/16", "interface": 2}},
                     {{"address": "10.22.0.1/16", "interface": 0}}],
             "routes": [{{"dst": "::/0"}}, {{"dst": "10.9.0.0/16", "gw": "10.22.0.2", "mtu": 1400, "priority": 5}},
                        {{"dst": "10.8.0.0/16", "gw": "10.22.0.2", "table": 100}}, {{"dst": "10.6.0.0/16", "gw": "10.22.0.2", "table": 254}}],
             "dns": {{"nameservers": ["fd00::53", "1.1.1.1"], "domain": "x.example", "search": ["y.example"], "options": ["ndots:5"]}}}}"#
    );
    let found = connected(&result(Version::V1_1_0, &text));
    assert_eq!(found.addresses, ["10.23.0.5/16".parse().unwrap()]);
    assert_eq!(
        found.routes,
        routes(&["10.9.0.0/16 via 10.22.0.2", "10.6.0.0/16 via 10.22.0.2"])
    );
    let expected_value = [
        "the IPv6 address fd00::5/64",
        "the address 10.24.0.5/16 of net1",
        "the IPv6 route to ::/0",
        "mtu 1400 of the route to 10.9.0.0/16",
        "priority 5 of the route to 10.9.0.0/16",
        "the route to 10.8.0.0/16 of table 100",
        "the name server fd00::53",
        "the DNS domain x.example",
        "the DNS search domain y.example",
        "the DNS option ndots:5",
    ];
    let expected_warnings = expected_value
        .map(|what| format!("the CNI network provides {what}, which is not passed to the guest"));
    assert_eq!(found.warnings, expected_warnings);
}

#[test]
fn the_host_link_is_the_guests_and_not_one_of_a_later_plugin() {
    let eth0 = format!(r#"{{"name": "eth0", "sandbox": "{NETNS}"}}"#);
    for (before, after, expected_value) in [
        // bridge, without and with bandwidth.
        (vec!["cni0", "veth1"], vec![], Some("veth1")),
        (vec!["cni0", "veth1"], vec!["bwp1"], Some("veth1")),
        (vec!["cni0", "veth1"], vec!["bwp1", "other"], Some("veth1")),
        // ptp.
        (vec!["veth1"], vec!["bwp1"], Some("veth1")),
        // The host's end follows the interface inside.
        (vec![], vec!["lxc1"], Some("lxc1")),
        (vec![], vec!["lxc1", "bwp1"], Some("lxc1")),
        // macvlan.
        (vec![], vec![], None),
    ] {
        let link = |name: &&str| format!(r#"{{"name": "{name}"}}"#);
        let all = before.iter().map(link).chain([eth0.clone()]);
        let all: Vec<String> = all.chain(after.iter().map(link)).collect();
        let text = format!(
            r#"{{"interfaces": [{}], "ips": [{{"address": "10.22.0.5/16"}}]}}"#,
            all.join(", ")
        );
        let found = connected(&result(Version::V1_0_0, &text));
        assert_eq!(found.host_link.as_deref(), expected_value, "{text}");
    }
    // Calico lists only its end on the host.
    let text = r#"{"interfaces": [{"name": "cali1"}], "ips": [{"address": "10.22.0.5/32"}]}"#;
    let found = connected(&result(Version::V1_0_0, text));
    assert_eq!(found.host_link.as_deref(), Some("cali1"));
}

#[test]
fn a_difference_between_the_result_and_the_interface_is_described() {
    let result = bridge(Version::V1_0_0);
    let of = |eth: Option<Eth>| disagreement(&result, &attachment(), &Inside { eth, tap: None });
    assert_eq!(of(Some(eth())), None);
    let other_mac = Eth {
        mac: "02:00:00:00:00:0f".to_owned().try_into().unwrap(),
        ..eth()
    };
    let other_address = Eth {
        addresses: ["10.22.0.6/16".parse().unwrap()].into(),
        ..eth()
    };
    let no_address = Eth {
        addresses: [].into(),
        ..eth()
    };
    for (eth, words) in [
        (None, "lists eth0, which does not exist"),
        (
            Some(other_mac),
            "the MAC 02:00:00:00:00:0e to eth0, which has 02:00:00:00:00:0f",
        ),
        (
            Some(other_address),
            "10.22.0.5/16 to eth0, which has 10.22.0.6/16",
        ),
        (Some(no_address), "10.22.0.5/16 to eth0, which has none"),
    ] {
        let reason = of(eth).expect(words);
        assert!(reason.contains(words), "{reason}");
    }
    // An address that the result does not list is accepted.
    let more = Eth {
        addresses: [
            "10.22.0.5/16".parse().unwrap(),
            "10.22.0.6/16".parse().unwrap(),
        ]
        .into(),
        ..eth()
    };
    assert_eq!(of(Some(more)), None);
}
