//! What a VM requests from the real plugins: addresses, a MAC, port mappings, limits; and requests that they cannot meet.
//! Out of scope: the format of the requests (`src/reconcile/net/cni/request.rs`), manifests.

use std::path::Path;

use serde_json::{Value, json};
use slicectl::api::cni::CniOptions;
use slicectl::reconcile::net::cni::{Keep, Want};

use crate::ground::{Ground, ping, plugin_dirs};
use crate::support::kernel;

fn want(ground: &mut Ground) -> &mut Want {
    ground.desired.want.as_mut().unwrap()
}

fn options(text: &Value) -> CniOptions {
    serde_json::from_value(text.clone()).unwrap()
}

/// Returns a chain of the bridge plugin that declares these capabilities.
fn bridge(ground: &Ground, capabilities: &Value) -> Value {
    let mut plugins = ground.bridge_plugins();
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
            let mut ground = Ground::with_plugins(dir);
            ground.configure("1.0.0", &bridge(&ground, &capabilities));
            want(&mut ground).asked = options(&asked);
            let (connection, _) = ground.up().await.unwrap();
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
            assert_eq!(ground.up().await.unwrap(), (connection, vec![]));
            ground.down().await.unwrap();
        });
    }
    // An IPAM plugin without a subnet of its own assigns all requested addresses.
    kernel::private(async {
        let mut ground = Ground::with_plugins(dir);
        let plugin = json!({"type": "bridge", "bridge": "cni0", "capabilities": {"ips": true},
                            "ipam": {"type": "static"}});
        ground.configure("1.0.0", &json!([plugin]));
        want(&mut ground).asked = options(&json!({"ips": ["10.77.0.7/24", "10.79.0.7/24"]}));
        let (connection, _) = ground.up().await.unwrap();
        assert_eq!(connection.ip, std::net::Ipv4Addr::new(10, 77, 0, 7));
        assert_eq!(connection.addresses, ["10.79.0.7/24".parse().unwrap()]);
        ground.down().await.unwrap();
    });
}

#[test]
fn what_the_plugins_do_not_give_is_no_attachment_and_says_so() {
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
    for (mut plugin, asked, wanted) in cases {
        kernel::private(async {
            let mut ground = Ground::new();
            plugin["ipam"] = ground.ipam("10.77.0.0/24");
            ground.configure("1.0.0", &json!([plugin]));
            want(&mut ground).asked = options(&asked);
            let error = ground.up().await.unwrap_err().to_string();
            assert!(error.contains(wanted), "{wanted} is not in {error}");
            let left = ground.left();
            assert!(left.contains("0 veths"), "{left:?}");
            ground.down().await.unwrap();
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
    for (more, asked, wanted, remedy) in cases {
        kernel::private(async {
            let mut ground = Ground::new();
            let mut plugins = ground.bridge_plugins();
            let chain = plugins.as_array_mut().unwrap();
            chain.extend(more.as_array().unwrap().clone());
            ground.configure("1.0.0", &plugins);
            let before = ground.left();
            want(&mut ground).asked = options(asked);
            let error = ground.up().await.unwrap_err();
            assert!(error.waits_for_a_change(), "{error}");
            let error = error.to_string();
            assert!(error.contains(wanted) && error.contains(remedy), "{error}");
            let mut left = ground.left();
            // Only the VM's record remains.
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
        let mut ground = Ground::with_plugins(dir);
        let mut plugins = ground.bridge_plugins();
        plugins.as_array_mut().unwrap().extend([
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        ]);
        ground.configure("1.0.0", &plugins);
        want(&mut ground).asked = options(&json!({
            "port_mappings": [{"host_port": 8080, "guest_port": 80},
                              {"host_port": 8053, "guest_port": 53, "protocol": "udp", "host_ip": "127.0.0.1"}],
            "bandwidth": {"ingress_rate": 8_000_000, "ingress_burst": 1_600_000},
            "args": {"K8S_POD_NAME": "web-1"},
        }));
        let (connection, _) = ground.up().await.unwrap();
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
        let at_rest = ground.up_unasked().await.unwrap();
        assert_eq!(at_rest, (connection, vec![]));
        ground.down().await.unwrap();
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
    let keep = |ip: [u8; 4]| Keep {
        ip: ip.into(),
        mac: "02:00:00:00:00:77".to_owned().try_into().unwrap(),
    };
    type Chain = fn(&Ground) -> Value;
    /// Name, chain, the address that the guest had, the address that it gets, and whether it keeps its MAC.
    type Case = (&'static str, Chain, [u8; 4], [u8; 4], bool);
    let plain: Chain = |ground| json!([ground.bridge_plugins()[0]]);
    let ptp: Chain = |ground| json!([{"type": "ptp", "ipam": ground.ipam("10.77.0.0/24")}]);
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
            let mut ground = Ground::with_plugins(dir);
            let plugins = chain(&ground);
            ground.configure("1.0.0", &plugins);
            want(&mut ground).keep = Some(keep(had));
            let (connection, _) = ground.up().await.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(connection.ip.octets(), has, "{name}");
            assert_eq!(connection.mac == keep(had).mac, keeps_mac, "{name}");
            ground.down().await.unwrap();
        });
    }
    // Another container has the address.
    kernel::private(async {
        let mut ground = Ground::bridge();
        std::fs::create_dir_all(ground.path("data/net")).unwrap();
        std::fs::write(ground.path("data/net/10.77.0.50"), "somebody\r\neth0").unwrap();
        want(&mut ground).keep = Some(keep([10, 77, 0, 50]));
        let (connection, _) = ground.up().await.unwrap();
        assert_ne!(connection.ip.octets(), [10, 77, 0, 50]);
        ping(&connection);
        // An address in the spec is requested even if another container has it.
        ground.down().await.unwrap();
        want(&mut ground).asked = options(&json!({"ips": ["10.77.0.50"]}));
        let error = ground.up().await.unwrap_err().to_string();
        assert!(error.contains("10.77.0.50"), "{error}");
        ground.down().await.unwrap();
    });
}

/// Fails a command if a file `fail.COMMAND` contains an error code, and otherwise runs `bridge`.
const TOLD: &str = r#"#!/bin/sh
root=$(dirname "$0")/..
[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' && exit 0
echo "$CNI_COMMAND" >>"$root/asked"
if [ -f "$root/fail.$CNI_COMMAND" ]; then
    echo "{\"cniVersion\":\"1.1.0\",\"code\":$(cat "$root/fail.$CNI_COMMAND"),\"msg\":\"the message of $CNI_COMMAND\"}"
    exit 1
fi
case $CNI_COMMAND in STATUS|GC) exit 0 ;; esac
sed 's/"cniVersion":"1.1.0"/"cniVersion":"1.0.0"/' | /usr/lib/cni/bridge | sed 's/"cniVersion": "1.0.0"/"cniVersion": "1.1.0"/'
"#;

fn told(ground: &Ground) {
    ground.plugin("told", TOLD);
    let mut plugins = ground.bridge_plugins();
    plugins[0]["type"] = json!("told");
    plugins[0]["ipMasq"] = json!(false);
    ground.configure("1.1.0", &json!([plugins[0]]));
}

fn asked(ground: &Ground) -> String {
    let asked = std::fs::read_to_string(ground.path("asked")).unwrap_or_default();
    let _ = std::fs::remove_file(ground.path("asked"));
    asked.replace('\n', " ").trim().to_owned()
}

#[test]
fn a_network_that_cannot_serve_is_not_added_to_and_its_words_are_told() {
    for code in [11, 50, 51, 100] {
        kernel::private(async move {
            let ground = Ground::new();
            told(&ground);
            std::fs::write(ground.path("fail.STATUS"), code.to_string()).unwrap();
            let error = ground.up().await.unwrap_err();
            assert!(!error.waits_for_a_change(), "the failure may be temporary");
            let error = error.to_string();
            let words = format!("`told` failed STATUS with code {code}: the message of STATUS");
            assert!(error.contains(&words), "{error}");
            assert_eq!(asked(&ground), "STATUS");
            std::fs::remove_file(ground.path("fail.STATUS")).unwrap();
            let (connection, _) = ground.up().await.unwrap();
            ping(&connection);
            assert_eq!(asked(&ground), "STATUS ADD");
            ground.down().await.unwrap();
        });
    }
}

#[test]
fn a_vm_that_is_attached_is_told_of_limits_and_of_nothing_else() {
    for (command, code, limited) in [
        ("STATUS", 51, true),
        ("STATUS", 50, false),
        ("STATUS", 11, false),
        ("CHECK", 11, false),
    ] {
        kernel::private(async move {
            let ground = Ground::new();
            told(&ground);
            let (connection, _) = ground.up().await.unwrap();
            std::fs::write(ground.path(format!("fail.{command}")), code.to_string()).unwrap();
            // Like a daemon that has just started, which has no cached STATUS.
            let mut ground = ground;
            let mut runtime = slicectl::cni::Runtime::new();
            runtime.conf_dir = ground.runtime.conf_dir.clone();
            runtime.bin_dirs = ground.runtime.bin_dirs.clone();
            runtime.cache_dir = ground.runtime.cache_dir.clone();
            ground.runtime = runtime;
            let (again, taken) = ground.up().await.unwrap();
            assert_eq!(
                (again, taken),
                (connection.clone(), vec![]),
                "{command} {code}"
            );
            let seen = ground.look().await;
            let words = seen.limited.unwrap_or_default();
            assert_eq!(
                words.contains("the message of STATUS"),
                limited,
                "{command} {code}: {words}"
            );
            ping(&connection);
            ground.down().await.unwrap();
        });
    }
}

#[test]
fn an_add_that_only_another_configuration_can_mend_waits_for_one() {
    for (code, waits) in [(2, true), (7, true), (11, false), (100, false)] {
        kernel::private(async move {
            let ground = Ground::new();
            told(&ground);
            std::fs::write(ground.path("fail.ADD"), code.to_string()).unwrap();
            let error = ground.up().await.unwrap_err();
            assert_eq!(error.waits_for_a_change(), waits, "{code}");
            assert!(error.to_string().contains("the message of ADD"), "{error}");
            assert_eq!(asked(&ground), "STATUS ADD DEL", "{code}");
        });
    }
}

#[test]
fn an_add_whose_undoing_failed_is_tried_again_whatever_the_add_waits_for() {
    for (add, del) in [(2, 100), (7, 100), (7, 11), (100, 100)] {
        kernel::private(async move {
            let ground = Ground::new();
            told(&ground);
            std::fs::write(ground.path("fail.ADD"), add.to_string()).unwrap();
            std::fs::write(ground.path("fail.DEL"), del.to_string()).unwrap();
            let error = ground.up().await.unwrap_err();
            assert!(!error.waits_for_a_change(), "{add} {del}");
            std::fs::remove_file(ground.path("fail.DEL")).unwrap();
            asked(&ground);
            let error = ground.up().await.unwrap_err();
            assert_eq!(error.waits_for_a_change(), add != 100, "{add} {del}");
            assert!(asked(&ground).starts_with("DEL"), "{add} {del}");
        });
    }
}

/// Refuses a requested address with the code in the file `fail`.
const REFUSING: &str = r#"#!/bin/sh
case "$CNI_COMMAND:$CNI_ARGS" in
ADD:*IP=*) echo "{\"cniVersion\":\"1.0.0\",\"code\":$(cat "$(dirname "$0")/../fail"),\"msg\":\"not in a range\"}"; exit 1 ;;
*) exec /usr/lib/cni/bridge ;;
esac
"#;

#[test]
fn a_kept_address_that_is_refused_with_any_code_is_replaced_by_another() {
    for code in [2, 7, 11, 100] {
        kernel::private(async move {
            let mut ground = Ground::new();
            ground.plugin("refusing", REFUSING);
            let mut plugins = ground.bridge_plugins();
            plugins[0]["type"] = json!("refusing");
            ground.configure("1.0.0", &json!([plugins[0]]));
            std::fs::write(ground.path("fail"), code.to_string()).unwrap();
            want(&mut ground).keep = Some(Keep {
                ip: [10, 77, 0, 50].into(),
                mac: "02:00:00:00:00:50".to_owned().try_into().unwrap(),
            });
            let up = ground.up().await;
            // Code 11 is no refusal: the same ADD is tried again later.
            if code == 11 {
                assert!(up.unwrap_err().to_string().contains("not in a range"));
                return;
            }
            let (connection, _) = up.unwrap_or_else(|e| panic!("{code}: {e}"));
            assert_ne!(connection.ip.octets(), [10, 77, 0, 50], "{code}");
            ping(&connection);
            ground.down().await.unwrap();
        });
    }
}

/// A result that does not contain the MAC.
const SILENT: &str = r#"#!/bin/sh
case "$CNI_COMMAND" in
ADD) /usr/lib/cni/ptp | sed -z 's/,[[:space:]]*"mac": "[^"]*"//g' ;;
*) exec /usr/lib/cni/ptp ;;
esac
"#;

#[test]
fn a_requested_mac_is_compared_with_the_interface_where_the_result_has_none() {
    kernel::private(async {
        let mut ground = Ground::new();
        ground.plugin("silent", SILENT);
        let plugins = json!([{"type": "silent", "ipam": ground.ipam("10.77.0.0/24")}]);
        ground.configure("1.0.0", &plugins);
        want(&mut ground).asked = options(&json!({"mac": "02:00:00:00:00:77"}));
        let error = ground.up().await.unwrap_err();
        assert!(error.waits_for_a_change(), "{error}");
        let error = error.to_string();
        assert!(
            error.contains("cni.mac requests 02:00:00:00:00:77"),
            "{error}"
        );
    });
}

#[test]
fn an_attachment_that_a_crash_left_before_its_result_was_checked_is_made_again() {
    kernel::private(async {
        let ground = Ground::new();
        told(&ground);
        let (connection, _) = ground.up().await.unwrap();
        asked(&ground);
        let path = ground.desired.vm_dir().join("cni.json");
        let mut intent: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        intent["adding"] = json!(true);
        intent.as_object_mut().unwrap().remove("routes");
        std::fs::write(&path, intent.to_string()).unwrap();
        let (again, _) = ground.up().await.unwrap();
        let calls = asked(&ground);
        assert!(calls.ends_with("DEL ADD"), "{calls}");
        ping(&again);
        assert_eq!(again.routes, connection.routes);
        ground.down().await.unwrap();
    });
}

#[test]
fn why_an_add_failed_is_said_as_long_as_it_cannot_be_undone() {
    kernel::private(async move {
        let ground = Ground::new();
        told(&ground);
        for command in ["ADD", "DEL"] {
            std::fs::write(ground.path(format!("fail.{command}")), "100").unwrap();
        }
        let error = ground.up().await.unwrap_err().to_string();
        assert!(error.contains("the message of ADD"), "{error}");
        for _ in 0..2 {
            let error = ground.up().await.unwrap_err().to_string();
            for words in [
                "the message of DEL",
                "the attachment is removed because",
                "the message of ADD",
            ] {
                assert!(error.contains(words), "{error}");
            }
        }
        for command in ["ADD", "DEL"] {
            std::fs::remove_file(ground.path(format!("fail.{command}"))).unwrap();
        }
        let (connection, _) = ground.up().await.unwrap();
        ping(&connection);
        std::fs::write(ground.path("fail.DEL"), "100").unwrap();
        let error = ground.down().await.unwrap_err().to_string();
        assert!(
            !error.contains("the attachment is removed because"),
            "{error}"
        );
        std::fs::remove_file(ground.path("fail.DEL")).unwrap();
        ground.down().await.unwrap();
    });
}
