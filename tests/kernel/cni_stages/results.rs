//! What a guest gets from a result: routes, addresses, host link; and results that do not match the interface.
//! Out of scope: passing it to the guest (`tests/vmm`), parsing of results (`src/reconcile/net/cni/tests.rs`).

use std::path::Path;

use serde_json::{Value, json};

use crate::cni_stages::fixture::{Fixture, ping};
use test_support::cni_networks::{calico, plugin_dirs};
use test_support::kernel;

fn words(connection: &slicectl::api::network::Connection) -> Vec<String> {
    let route = |(dst, hop): &(ipnetwork::Ipv4Network, Option<std::net::Ipv4Addr>)| match hop {
        None => dst.to_string(),
        Some(hop) => format!("{dst} via {hop}"),
    };
    connection.routes.iter().map(route).collect()
}

#[test]
fn a_guest_has_the_ways_out_that_the_real_plugins_made() {
    for dir in plugin_dirs() {
        has_the_ways_out(&dir);
    }
}

fn has_the_ways_out(dir: &Path) {
    type Case = (&'static str, fn(&Fixture) -> Value, &'static [&'static str]);
    let cases: [Case; 5] = [
        ("bridge", Fixture::bridge_plugins, &[]),
        // The subnet is routed through the gateway, so that VMs in it reach each other.
        (
            "ptp",
            |fixture| json!([{"type": "ptp", "ipam": fixture.ipam("10.77.0.0/24")}]),
            &["10.77.0.1/32", "10.77.0.0/24 via 10.77.0.1"],
        ),
        (
            "routes without a next hop go through the gateway",
            |fixture| {
                let mut plugins = fixture.bridge_plugins();
                plugins[0]["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "10.96.0.0/12"}, {"dst": "10.5.0.0/16", "gw": "10.77.0.9"}]);
                plugins
            },
            &["10.5.0.0/16 via 10.77.0.9", "10.96.0.0/12 via 10.77.0.1"],
        ),
        (
            "bandwidth",
            |fixture| {
                let mut plugins = fixture.bridge_plugins();
                let limits = json!({"type": "bandwidth", "ingressRate": 1_000_000, "ingressBurst": 1_000_000,
                                    "egressRate": 1_000_000, "egressBurst": 1_000_000});
                plugins.as_array_mut().unwrap().push(limits);
                plugins
            },
            &[],
        ),
        (
            "a /32",
            |fixture| {
                fixture.plugin("calico", &calico(&["10.9.0.2/32"]));
                json!([{"type": "calico"}])
            },
            &["169.254.1.1/32", "0.0.0.0/0 via 169.254.1.1"],
        ),
    ];
    for (name, plugins, expected) in cases {
        kernel::private(async move {
            let fixture = Fixture::with_plugins(dir);
            let plugins = plugins(&fixture);
            fixture.configure("1.0.0", &plugins);
            let (connection, _) = fixture.up().await.unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut found = words(&connection);
            found.sort_by_key(|route| route.contains(" via "));
            assert_eq!(found, expected, "{name}");
            assert_eq!(connection.warnings, Vec::<String>::new(), "{name}");
            ping(&connection);
            let link = connection.host_link.clone().expect("a host link");
            let seen = kernel::ip(&format!("link show dev {link}"));
            assert_eq!(seen[0]["linkinfo"]["info_kind"], "veth", "{name}: {link}");

            // A later change of the routes does not change the connection.
            fixture.inside("ip link set eth0 down");
            let (again, taken) = fixture.up_unasked().await.unwrap();
            assert_eq!(again, connection, "{name}");
            assert!(
                taken.contains(&"bring eth0 up".to_owned()),
                "{name}: {taken:?}"
            );
            fixture.down().await.unwrap();

            // A lost intent does not change it either, as long as the routes exist.
            let (connection, _) = fixture.up().await.unwrap();
            std::fs::remove_file(fixture.desired.vm_dir().join("cni.json")).unwrap();
            assert_eq!(fixture.up_unasked().await.unwrap().0, connection, "{name}");
            fixture.down().await.unwrap();
        });
    }
}

#[test]
fn two_guests_of_one_point_to_point_network_reach_each_other_by_the_routes_that_they_are_given() {
    kernel::private(async {
        let fixture = Fixture::ptp();
        let (one, _) = fixture.up().await.unwrap();
        let mut other = Fixture::ptp();
        other.configure("0.4.0", &json!([{"type": "ptp", "ipMasq": true, "mtu": 1400, "ipam": fixture.ipam("10.78.0.0/24")}]));
        let uid = "7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a45".parse().unwrap();
        let name = "web-2".parse().unwrap();
        other.desired.label = crate::cni_stages::fixture::instance().vm_label(&name, uid);
        let (two, _) = other.up().await.unwrap();
        assert_ne!(one.ip, two.ip);
        let net = "10.78.0.0/24".parse().unwrap();
        for connection in [&one, &two] {
            assert!(
                connection.routes.contains(&(net, connection.gateway)),
                "{connection:?}"
            );
        }
        // The packets pass the gateway, as these routes require.
        kernel::run("sysctl -qw net.ipv4.ip_forward=1");
        crate::cni_stages::fixture::reaches(&one, &two);
    });
}

#[test]
fn several_addresses_reach_the_guest_and_what_cannot_is_named() {
    for dir in plugin_dirs() {
        several_addresses(&dir);
    }
}

fn several_addresses(dir: &Path) {
    kernel::private(async {
        // The plugin assigns at most one address per family to a bridge.
        kernel::run(
            "ip link add cni0 type bridge; ip addr add 10.77.0.1/24 dev cni0; ip link set cni0 up",
        );
        let fixture = Fixture::with_plugins(dir);
        let range = |subnet: &str| json!([{"subnet": subnet}]);
        let ipam = json!({"type": "host-local", "dataDir": fixture.path("data"),
            "ranges": [range("10.77.0.0/24"), range("10.79.0.0/24"), range("fd00:77::/64")],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
        let dns = json!({"nameservers": ["10.77.0.53", "fd00::53"], "domain": "x.example", "search": ["y.example"]});
        fixture.configure(
            "1.0.0",
            &json!([
                {"type": "bridge", "bridge": "cni0", "ipam": ipam, "dns": dns}
            ]),
        );
        let (connection, _) = fixture.up().await.unwrap();
        assert_eq!(connection.addresses, ["10.79.0.2/24".parse().unwrap()]);
        assert_eq!(connection.gateway, Some([10, 77, 0, 1].into()));
        ping(&connection);
        let named = connection.warnings.join("\n");
        for what in [
            "fd00:77::2/64",
            "::/0",
            "fd00::53",
            "x.example",
            "y.example",
        ] {
            assert!(named.contains(what), "{what} is not in {named}");
        }
        fixture.down().await.unwrap();
    });
}

/// Runs `bridge`, and after an ADD the script `after`, which has the result in `$out`.
fn liar(after: &str) -> String {
    format!(
        r#"#!/bin/sh
[ "$CNI_COMMAND" = VERSION ] || echo "$CNI_COMMAND" >>"$(dirname "$0")/../asked"
out=$(/usr/lib/cni/bridge) || {{ echo "$out"; exit 1; }}
[ "$CNI_COMMAND" = ADD ] || {{ echo "$out"; exit 0; }}
inside() {{ nsenter --net="$CNI_NETNS" "$@"; }}
{after}
"#
    )
}

#[test]
fn a_result_that_the_interface_does_not_bear_out_is_reported_and_undone_and_asked_for_once() {
    let cases = [
        (
            r#"echo "$out" | sed 's/"mac": "[^"]*"/"mac": "02:00:00:00:00:99"/'"#,
            "assigns the MAC 02:00:00:00:00:99 to eth0, which has ",
        ),
        (
            "echo \"$out\" | sed 's=10.77.0.2/24=10.77.0.200/24='",
            "assigns 10.77.0.200/24 to eth0, which has 10.77.0.2/24",
        ),
        (
            r#"inside ip addr flush dev eth0; echo "$out""#,
            "assigns 10.77.0.2/24 to eth0, which has none",
        ),
        (
            r#"inside ip link del eth0; echo "$out""#,
            "lists eth0, which does not exist",
        ),
        (
            r#"inside ip link set eth0 down; inside ip link set eth0 name eth7; echo "$out""#,
            "lists eth0, which does not exist",
        ),
    ];
    for (after, expected) in cases {
        kernel::private(async move {
            let fixture = Fixture::new();
            fixture.plugin("liar", &liar(after));
            let mut plugins = fixture.bridge_plugins();
            plugins[0]["type"] = json!("liar");
            plugins[0]["ipMasq"] = json!(false);
            fixture.configure("1.0.0", &json!([plugins[0]]));
            let error = fixture.up().await.unwrap_err().to_string();
            assert!(error.contains("cannot use CNI network `net`"), "{error}");
            assert!(error.contains(expected), "{expected} is not in {error}");
            let asked = std::fs::read_to_string(fixture.path("asked")).unwrap();
            assert_eq!(asked, "ADD\nDEL\n");
            let left = fixture.left();
            let held = |left: &&String| left.contains("10.77.0.2") || left.contains("cni.json");
            assert_eq!(left.iter().find(held), None, "{after}");
            fixture.down().await.unwrap();
        });
    }
}
