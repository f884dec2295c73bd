//! What a VM requests from the real plugins: addresses, a MAC, port mappings, limits; and requests that they cannot meet.
//! Out of scope: the format of the requests (`src/reconcile/net/cni/request.rs`), manifests.

use std::path::Path;

use serde_json::{Value, json};
use slicectl::api::cni::CniOptions;
use slicectl::reconcile::net::cni::{DataPath, GuestIdentity};

use crate::cni_stages::fixture::{Fixture, ping};
use test_support::cni_networks::plugin_dirs;
use test_support::kernel;

pub fn want(fixture: &mut Fixture) -> &mut DataPath {
    fixture.desired.data_path.as_mut().unwrap()
}

pub fn options(text: &Value) -> CniOptions {
    serde_json::from_value(text.clone()).unwrap()
}

/// Returns a chain of the bridge plugin that declares these capabilities.
fn bridge(fixture: &Fixture, capabilities: &Value) -> Value {
    let mut plugins = fixture.bridge_plugins();
    plugins[0]["capabilities"] = capabilities.clone();
    plugins
}

#[test]
fn an_address_and_a_mac_are_had_by_capability_or_by_argument() {
    for dir in plugin_dirs() {
        are_had(&dir);
    }
}

fn are_had(dir: &Path) {
    let asked = json!({"ips": ["10.77.0.77"], "mac": "02:00:00:00:00:77"});
    for capabilities in [
        json!({}),
        json!({"ips": true}),
        json!({"mac": true}),
        json!({"ips": true, "mac": true}),
    ] {
        kernel::private(async {
            let mut fixture = Fixture::with_plugins(dir);
            fixture.configure("1.0.0", &bridge(&fixture, &capabilities));
            want(&mut fixture).requested = options(&asked);
            let (connection, _) = fixture.up().await.unwrap();
            assert_eq!(
                connection.ip,
                std::net::Ipv4Addr::new(10, 77, 0, 77),
                "{capabilities}"
            );
            assert_eq!(
                connection.mac.to_string(),
                "02:00:00:00:00:77",
                "{capabilities}"
            );
            ping(&connection);
            assert_eq!(fixture.up().await.unwrap(), (connection, vec![]));
            fixture.down().await.unwrap();
        });
    }
    // An IPAM plugin without a subnet of its own assigns all requested addresses.
    kernel::private(async {
        let mut fixture = Fixture::with_plugins(dir);
        let plugin = json!({"type": "bridge", "bridge": "cni0", "capabilities": {"ips": true},
                            "ipam": {"type": "static"}});
        fixture.configure("1.0.0", &json!([plugin]));
        want(&mut fixture).requested = options(&json!({"ips": ["10.77.0.7/24", "10.79.0.7/24"]}));
        let (connection, _) = fixture.up().await.unwrap();
        assert_eq!(connection.ip, std::net::Ipv4Addr::new(10, 77, 0, 7));
        assert_eq!(connection.addresses, ["10.79.0.7/24".parse().unwrap()]);
        fixture.down().await.unwrap();
    });
}

#[test]
fn an_incomplete_result_of_the_plugins_is_no_attachment_and_is_reported() {
    let cases = [
        // ptp ignores a requested MAC.
        (
            json!({"type": "ptp"}),
            json!({"mac": "02:00:00:00:00:77"}),
            "cni.mac requests 02:00:00:00:00:77",
        ),
        // The error of the IPAM plugin.
        (
            json!({"type": "bridge", "bridge": "cni0", "isGateway": true}),
            json!({"ips": ["10.99.0.7"]}),
            "10.99.0.7",
        ),
        (
            json!({"type": "bridge", "bridge": "cni0", "isGateway": true}),
            json!({"ips": ["10.77.0.1"]}),
            "10.77.0.1",
        ),
    ];
    for (mut plugin, asked, expected) in cases {
        kernel::private(async {
            let mut fixture = Fixture::new();
            plugin["ipam"] = fixture.ipam("10.77.0.0/24");
            fixture.configure("1.0.0", &json!([plugin]));
            want(&mut fixture).requested = options(&asked);
            let error = fixture.up().await.unwrap_err().to_string();
            assert!(error.contains(expected), "{expected} is not in {error}");
            let left = fixture.left();
            assert!(left.contains("0 veths"), "{left:?}");
            fixture.down().await.unwrap();
        });
    }
}

#[test]
fn what_no_plugin_declares_is_refused_with_the_plugins_name_before_anything_is_made() {
    let port = json!({"port_mappings": [{"host_port": 8080, "guest_port": 80}]});
    let limit = json!({"bandwidth": {"ingress_rate": 1_000_000, "ingress_burst": 1_000_000}});
    let cases = [
        (
            json!([]),
            &port,
            "cni.port_mappings needs the capability portMappings",
            "such as `portmap`",
        ),
        // The chain contains the plugin, which does not declare the capability.
        (
            json!([{"type": "portmap"}]),
            &port,
            "in the configuration of `portmap`",
            "\"portMappings\": true",
        ),
        (
            json!([{"type": "portmap", "capabilities": {"portMappings": false}}]),
            &port,
            "in the configuration of `portmap`",
            "(bridge, firewall, portmap)",
        ),
        (
            json!([]),
            &limit,
            "cni.bandwidth needs the capability bandwidth",
            "such as `bandwidth`",
        ),
        (
            json!([{"type": "bandwidth"}]),
            &limit,
            "in the configuration of `bandwidth`",
            "\"bandwidth\": true",
        ),
        (
            json!([]),
            &json!({"aliases": ["a"]}),
            "cni.aliases needs the capability aliases",
            "such as `dnsname`",
        ),
    ];
    for (more, asked, expected, remedy) in cases {
        kernel::private(async {
            let mut fixture = Fixture::new();
            let mut plugins = fixture.bridge_plugins();
            let chain = plugins.as_array_mut().unwrap();
            chain.extend(more.as_array().unwrap().clone());
            fixture.configure("1.0.0", &plugins);
            let before = fixture.left();
            want(&mut fixture).requested = options(asked);
            let error = fixture.up().await.unwrap_err();
            assert!(error.is_permanent(), "{error}");
            let error = error.to_string();
            assert!(
                error.contains(expected) && error.contains(remedy),
                "{error}"
            );
            let mut left = fixture.left();
            // Only the VM's record is left.
            left.retain(|left| !left.ends_with("record.json"));
            assert_eq!(left, before);
        });
    }
}

#[test]
fn ports_limits_and_arguments_reach_the_plugins_that_declare_them() {
    for dir in plugin_dirs() {
        reach_the_plugins(&dir);
    }
}

fn reach_the_plugins(dir: &Path) {
    kernel::private(async {
        let mut fixture = Fixture::with_plugins(dir);
        let mut plugins = fixture.bridge_plugins();
        plugins.as_array_mut().unwrap().extend([
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        ]);
        fixture.configure("1.0.0", &plugins);
        want(&mut fixture).requested = options(&json!({
            "port_mappings": [{"host_port": 8080, "guest_port": 80},
                              {"host_port": 8053, "guest_port": 53, "protocol": "udp", "host_ip": "127.0.0.1"}],
            "bandwidth": {"ingress_rate": 8_000_000, "ingress_burst": 1_600_000},
            "args": {"K8S_POD_NAME": "web-1"},
        }));
        let (connection, _) = fixture.up().await.unwrap();
        let rules = kernel::run("iptables-save -t nat");
        let to = |port: u16| format!("--to-destination {}:{port}", connection.ip);
        assert!(
            rules.contains(&to(80)) && rules.contains(&to(53)),
            "{rules}"
        );
        assert!(rules.contains("127.0.0.1/32 -p udp"), "{rules}");
        let link = connection.host_link.clone().unwrap();
        let shaped = kernel::run(&format!("tc qdisc show dev {link}"));
        assert!(
            shaped.contains("tbf") && shaped.contains("8Mbit"),
            "{shaped}"
        );
        ping(&connection);
        // `portmap` 1.1.1 fails CHECK of what it has just added.
        let at_rest = fixture.up_unasked().await.unwrap();
        assert_eq!(at_rest, (connection, vec![]));
        fixture.down().await.unwrap();
        let rules = kernel::run("iptables-save -t nat");
        assert!(!rules.contains("--to-destination"), "{rules}");
    });
}

#[test]
fn what_a_guest_had_is_had_again_where_the_plugins_can_and_any_other_where_they_cannot() {
    for dir in plugin_dirs() {
        is_had_again(&dir);
    }
}

fn is_had_again(dir: &Path) {
    let keep = |ip: [u8; 4]| GuestIdentity {
        ip: ip.into(),
        mac: "02:00:00:00:00:77".to_owned().try_into().unwrap(),
    };
    type Chain = fn(&Fixture) -> Value;
    /// Name, chain, the address that the guest had, the address that it gets, and whether it keeps its MAC.
    type Case = (&'static str, Chain, [u8; 4], [u8; 4], bool);
    let plain: Chain = |fixture| json!([fixture.bridge_plugins()[0]]);
    let ptp: Chain = |fixture| json!([{"type": "ptp", "ipam": fixture.ipam("10.77.0.0/24")}]);
    let fixed: Chain = |_| {
        json!([{"type": "bridge", "bridge": "cni0",
                "ipam": {"type": "static", "addresses": [{"address": "10.77.0.9/24", "gateway": "10.77.0.1"}]}}])
    };
    let cases: [Case; 5] = [
        ("bridge", plain, [10, 77, 0, 50], [10, 77, 0, 50], true),
        // The plugin gives the veth another MAC; the guest keeps its own.
        ("ptp", ptp, [10, 77, 0, 50], [10, 77, 0, 50], true),
        (
            "an address outside of the subnet",
            plain,
            [10, 99, 0, 50],
            [10, 77, 0, 2],
            true,
        ),
        (
            "the gateway's address",
            plain,
            [10, 77, 0, 1],
            [10, 77, 0, 2],
            false,
        ),
        ("static", fixed, [10, 77, 0, 50], [10, 77, 0, 9], true),
    ];
    for (name, chain, had, has, keeps_mac) in cases {
        kernel::private(async move {
            // The bridge plugin up to 1.5 cannot use a bridge that it has created and that has lost its only port.
            kernel::run(
                "ip link add cni0 type bridge; ip addr add 10.77.0.1/24 dev cni0; ip link set cni0 up",
            );
            let mut fixture = Fixture::with_plugins(dir);
            let plugins = chain(&fixture);
            fixture.configure("1.0.0", &plugins);
            want(&mut fixture).identity = Some(keep(had));
            let (connection, _) = fixture.up().await.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(connection.ip.octets(), has, "{name}");
            assert_eq!(connection.mac == keep(had).mac, keeps_mac, "{name}");
            fixture.down().await.unwrap();
        });
    }
    // Another container has the address.
    kernel::private(async {
        let mut fixture = Fixture::bridge();
        std::fs::create_dir_all(fixture.path("data/net")).unwrap();
        std::fs::write(fixture.path("data/net/10.77.0.50"), "somebody\r\neth0").unwrap();
        want(&mut fixture).identity = Some(keep([10, 77, 0, 50]));
        let (connection, _) = fixture.up().await.unwrap();
        assert_ne!(connection.ip.octets(), [10, 77, 0, 50]);
        ping(&connection);
        // An address in the spec is requested even if another container has it.
        fixture.down().await.unwrap();
        want(&mut fixture).requested = options(&json!({"ips": ["10.77.0.50"]}));
        let error = fixture.up().await.unwrap_err().to_string();
        assert!(error.contains("10.77.0.50"), "{error}");
        fixture.down().await.unwrap();
    });
}
