//! The guest's connection out of results of every version.
//! Out of scope: plans (`tests/plans.rs`, `tests/laws`).

use super::guest::{chains_tap, connection, expected, unfit};
use super::state::Eth;
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

/// What the bridge plugin answers; before 1.0.0 addresses name their family.
fn bridge(version: Version) -> CniResult {
    let family = match version.names_family() {
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
    connection(result, &attachment(), &eth()).expect("fit")
}

#[test]
fn a_bridge_says_all_in_every_version() {
    for version in Version::ALL {
        let found = connected(&bridge(version));
        let wanted = Connection {
            netns: Some(NETNS.into()),
            tap: "tap0".to_owned(),
            host_link: Some("veth123".to_owned()),
            mac: eth().mac,
            ip: [10, 22, 0, 5].into(),
            prefix_len: 16,
            gateway: Some([10, 22, 0, 1].into()),
            routes: vec![
                ("10.96.0.0/12".parse().unwrap(), Some([10, 22, 0, 3].into())),
                ("192.168.0.0/24".parse().unwrap(), None),
            ],
            mtu: 1450,
            dns: vec![[10, 22, 0, 53].into(), [1, 1, 1, 1].into()],
        };
        assert_eq!(found, wanted, "{version}");
        let expected = expected(&bridge(version), &attachment());
        assert_eq!(expected.mac, Some(eth().mac));
        assert_eq!(expected.addresses, eth().addresses);
    }
}

#[test]
fn a_point_to_point_link_may_leave_the_gateway_to_its_route() {
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
    // The result does not say it; the interface has it.
    assert_eq!(found.mac, eth().mac);
    assert_eq!((found.routes, found.dns), (vec![], vec![]));
}

#[test]
fn without_any_gateway_there_is_none() {
    let text = r#"{"ips": [{"address": "10.22.0.5/16"}]}"#;
    let found = connected(&result(Version::V1_0_0, text));
    assert_eq!((found.gateway, found.host_link), (None, None));
    assert_eq!(found.ip, std::net::Ipv4Addr::new(10, 22, 0, 5));
}

#[test]
fn a_tap_of_the_chain_brings_the_guests_own_interface_with_it() {
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
        assert_eq!(chains_tap(&result, &attachment()), Some("tap7"));
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
fn an_interface_of_another_sandbox_is_no_tap_of_the_chain() {
    for sandbox in ["/run/netns/other", "slice-other"] {
        let text = format!(
            r#"{{"interfaces": [{{"name": "tap7", "sandbox": "{NETNS}"}}, {{"name": "tap7", "sandbox": "{sandbox}"}}],
                 "ips": [{{"address": "10.22.0.5/16"}}]}}"#
        );
        let result = result(Version::V1_0_0, &text);
        assert_eq!(chains_tap(&result, &attachment()), None, "{sandbox}");
        assert_eq!(connected(&result).tap, "tap0");
    }
}

#[test]
fn a_result_without_an_ipv4_address_of_the_guests_is_unfit() {
    let elsewhere = format!(
        r#"{{"interfaces": [{{"name": "veth9"}}, {{"name": "eth0", "sandbox": "{NETNS}"}}],
             "ips": [{{"address": "10.22.0.1/16", "interface": 0}}, {{"address": "fd00::5/64", "interface": 1}}]}}"#
    );
    for text in ["{}", r#"{"ips": [{"address": "fd00::5/64"}]}"#, &elsewhere] {
        let result = result(Version::V1_0_0, text);
        let why = unfit(&result, &attachment()).expect("unfit");
        assert!(why.contains("no IPv4 address"), "{why}");
        assert_eq!(connection(&result, &attachment(), &eth()), None);
    }
    assert_eq!(unfit(&bridge(Version::V1_0_0), &attachment()), None);
}
