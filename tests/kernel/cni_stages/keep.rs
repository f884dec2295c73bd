//! What a guest is known by stays the same through every repair, and no CHECK alone takes its network away.
//! Out of scope: whether its VMM runs on (`tests/e2e`).

use serde_json::{Value, json};
use slicectl::reconcile::net::cni::GuestIdentity;

use crate::cni_stages::fixture::{Fixture, ping};
use test_support::cni_networks::plugin_dirs;
use test_support::kernel;

/// A chain, whether its first plugin can be asked for a MAC, and whether one of its plugins complains at CHECK of what it has
/// made itself a moment ago.
struct Chain {
    name: &'static str,
    plugins: fn(&Fixture) -> Value,
}

const CHAINS: [Chain; 8] = [
    Chain {
        name: "bridge and firewall",
        plugins: Fixture::bridge_plugins,
    },
    Chain {
        name: "ptp and firewall",
        plugins: |fixture| json!([ptp(fixture), {"type": "firewall"}]),
    },
    Chain {
        name: "bridge and sbr",
        plugins: |fixture| with(fixture, json!({"type": "sbr"})),
    },
    Chain {
        name: "bridge and portmap with a port",
        plugins: |fixture| {
            let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
            with(
                fixture,
                json!({"type": "portmap", "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": ports}}),
            )
        },
    },
    Chain {
        name: "bridge and tuning",
        plugins: |fixture| {
            with(
                fixture,
                json!({"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}),
            )
        },
    },
    Chain {
        name: "bridge and bandwidth",
        plugins: |fixture| {
            let rate = 8_000_000;
            with(
                fixture,
                json!({"type": "bandwidth", "ingressRate": rate, "ingressBurst": rate, "egressRate": rate, "egressBurst": rate}),
            )
        },
    },
    Chain {
        name: "ptp and tuning",
        plugins: |fixture| json!([ptp(fixture), {"type": "tuning", "mtu": 1400}]),
    },
    Chain {
        name: "macvlan",
        plugins: |fixture| json!([{"type": "macvlan", "master": "lan0", "mode": "bridge", "ipam": fixture.ipam("10.77.0.0/24")}]),
    },
];

fn ptp(fixture: &Fixture) -> Value {
    json!({"type": "ptp", "ipMasq": true, "ipam": fixture.ipam("10.78.0.0/24")})
}

fn with(fixture: &Fixture, plugin: Value) -> Value {
    let mut plugins = fixture.bridge_plugins();
    plugins.as_array_mut().unwrap().push(plugin);
    plugins
}

/// A chain with each set of real plugins, in a kernel of its own with a link `lan0`.
fn with_each(test: impl AsyncFn(&Fixture, &str) + Sync) {
    for dir in plugin_dirs() {
        for chain in &CHAINS {
            let (dir, test) = (&dir, &test);
            kernel::private_sync(|| {
                kernel::run(
                    "ip link add lan0 type veth peer name lan1; ip link set lan0 up; ip link set lan1 up",
                );
                let mut fixture = Fixture::new();
                fixture.runtime.bin_dirs[1] = dir.clone();
                fixture.configure("1.0.0", &(chain.plugins)(&fixture));
                let case = format!("{}: {}", dir.display(), chain.name);
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build().expect("a runtime");
                runtime.block_on(test(&fixture, &case));
            });
        }
    }
}

#[test]
fn an_attachment_that_nobody_touches_is_left_alone_through_ten_checks() {
    with_each(async |fixture, case| {
        let (connection, _) = fixture.up().await.unwrap_or_else(|e| panic!("{case}: {e}"));
        for check in 0..10 {
            let (same, taken) = fixture.up().await.unwrap();
            assert_eq!((&same, taken), (&connection, vec![]), "{case}, {check}");
        }
        let received = fixture.calls();
        let ignored = |received: &&String| received.starts_with("CheckIgnored: CNI plugin `");
        assert_eq!(
            received.iter().filter(ignored).count(),
            received.len(),
            "{case}"
        );
        assert!(received.len() <= 1, "{case}: {received:?}");
        let known = ["sbr", "portmap with", "and tuning"];
        assert!(
            received.is_empty() || known.iter().any(|it| case.contains(it)),
            "{case}: {received:?}"
        );
        fixture
            .down()
            .await
            .unwrap_or_else(|e| panic!("{case}: {e}"));
    });
}

/// What others do; each makes an attachment incomplete.
const DAMAGES: [(&str, &str); 6] = [
    (
        "its routes are lost",
        "nsenter --net=@NETNS ip route flush dev eth0",
    ),
    (
        "its interface is lost",
        "nsenter --net=@NETNS ip link del eth0",
    ),
    (
        "its address is lost",
        "nsenter --net=@NETNS ip addr flush dev eth0",
    ),
    (
        "iptables is flushed and its chains are removed",
        "iptables -F; iptables -X; iptables -t nat -F; iptables -t nat -X; nsenter --net=@NETNS ip link del eth0",
    ),
    (
        "nft flushes all rules",
        "nft flush ruleset; nsenter --net=@NETNS ip link del eth0",
    ),
    (
        "the host reboots",
        "umount @NETNS; rm @NETNS; rm -r @RUN; nft flush ruleset; ip link del cni0 2>/dev/null || true",
    ),
];

#[test]
fn a_repair_gives_the_guest_the_address_and_the_mac_that_it_had() {
    for (what, commands) in DAMAGES {
        with_each(async |fixture, case| {
            // It has moved the routes to a table of its own, where no CHECK misses them.
            if case.ends_with("sbr") && what == "its routes are lost" {
                return;
            }
            let case = format!("{case}: {what}");
            let (connection, _) = fixture.up().await.unwrap();
            // Somebody else has come and gone: the next free address is another one.
            std::fs::write(fixture.path("data/net/last_reserved_ip.0"), "10.77.0.99").unwrap();
            fixture.up().await.unwrap();
            let mut desired = fixture.desired.clone();
            desired.data_path.as_mut().unwrap().identity = Some(GuestIdentity {
                ip: connection.ip,
                mac: connection.mac,
            });
            let fixture = &fixture.with(desired);
            let commands = commands
                .replace("@NETNS", &fixture.netns().display().to_string())
                .replace("@RUN", &fixture.desired.vm_dir().display().to_string());
            kernel::run(&commands);
            fixture.calls();
            let (again, taken) = fixture.up().await.unwrap_or_else(|e| panic!("{case}: {e}"));
            assert!(!taken.is_empty(), "{case}: it was not noticed");
            // The host's end may have another name.
            let same = slicectl::api::network::Connection {
                host_link: connection.host_link.clone(),
                ..again
            };
            assert_eq!(same, connection, "{case}");
            let received = fixture.calls();
            assert!(
                !received.iter().any(|it| it.starts_with("AddressChanged")),
                "{case}: {received:?}"
            );
            if !case.contains("macvlan") {
                ping(&connection);
            }
            assert_eq!(fixture.up().await.unwrap().1, [""; 0], "{case}");
            fixture
                .down()
                .await
                .unwrap_or_else(|e| panic!("{case}: {e}"));
        });
    }
}

#[test]
fn rules_that_only_a_check_or_our_own_observation_misses_are_recreated_and_the_plugins_message_is_reported()
 {
    // What is lost, and a part of the message that reports it.
    let table = [
        ("iptables -t nat -F; iptables -t nat -X", "masquerades"),
        ("nft flush ruleset", "masquerades"),
        ("iptables -F CNI-FORWARD", "`firewall`"),
    ];
    for dir in plugin_dirs() {
        for (commands, word) in table {
            let dir = &dir;
            kernel::private(async move {
                let mut fixture = Fixture::bridge();
                fixture.runtime.bin_dirs[1] = dir.clone();
                let (connection, _) = fixture.up().await.unwrap();
                fixture.up().await.unwrap();
                let mut desired = fixture.desired.clone();
                desired.data_path.as_mut().unwrap().identity = Some(GuestIdentity {
                    ip: connection.ip,
                    mac: connection.mac,
                });
                let fixture = fixture.with(desired);
                kernel::run(commands);
                let (again, _) = fixture.up().await.unwrap();
                assert_eq!((again.ip, again.mac), (connection.ip, connection.mac));
                let received = fixture.calls().join("\n");
                assert!(
                    received.starts_with("CheckFailed: ") && received.contains(word),
                    "{commands}: {received}"
                );
                let rules = kernel::run("iptables-save");
                assert!(rules.contains("MASQUERADE"), "{rules}");
            });
        }
    }
}

#[test]
fn an_address_that_is_refused_is_released_and_reported_before_the_guest_has_another() {
    for dir in plugin_dirs() {
        // What of the network has changed meanwhile.
        for taken in [true, false] {
            let dir = &dir;
            kernel::private(async move {
                let mut fixture = Fixture::bridge();
                fixture.runtime.bin_dirs[1] = dir.clone();
                let (connection, _) = fixture.up().await.unwrap();
                let mut desired = fixture.desired.clone();
                desired.data_path.as_mut().unwrap().identity = Some(GuestIdentity {
                    ip: connection.ip,
                    mac: connection.mac,
                });
                fixture.down().await.unwrap();
                if taken {
                    let file = fixture.path("data/net").join(connection.ip.to_string());
                    std::fs::write(file, "somebody\r\neth0").unwrap();
                } else {
                    let mut plugins = fixture.bridge_plugins();
                    plugins[0]["ipam"]["subnet"] = "10.79.0.0/24".into();
                    plugins[0]["bridge"] = "cni1".into();
                    fixture.configure("1.0.0", &plugins);
                }
                let fixture = fixture.with(desired);
                let (again, _) = fixture.up().await.unwrap();
                assert_ne!(again.ip, connection.ip);
                ping(&again);
                let received = fixture.calls().join("\n");
                assert!(received.starts_with("AddressChanged: "), "{received}");
                for word in [
                    again.ip.to_string(),
                    connection.ip.to_string(),
                    if taken { "not available" } else { "" }.to_owned(),
                ] {
                    assert!(received.contains(&word), "{received}");
                }
                fixture.down().await.unwrap();
            });
        }
    }
}

#[test]
fn a_check_that_the_file_forbids_by_now_is_not_run_and_one_that_could_not_observe_reports_nothing()
{
    const MOODY: &str = r#"#!/bin/sh
case "$CNI_COMMAND" in
CHECK) [ -e "$(dirname "$0")/mood" ] || exit 0; cat "$(dirname "$0")/mood"; exit 1 ;;
*) exec /usr/lib/cni/tuning ;;
esac
"#;
    // The code at CHECK, whether the file disables CHECK by then, and whether the VM is attached again.
    for (code, forbidden, repaired) in [(7, true, false), (11, false, false), (7, false, true)] {
        kernel::private(async move {
            let fixture = Fixture::new();
            fixture.plugin("moody", MOODY);
            let plugins = with(&fixture, json!({"type": "moody"}));
            fixture.configure("1.0.0", &plugins);
            fixture.up().await.unwrap();
            fixture.up().await.unwrap();
            let error = json!({"cniVersion": "1.0.0", "code": code, "msg": "a mood"});
            std::fs::write(fixture.path("bin/mood"), error.to_string()).unwrap();
            let file = fixture.path("conf/10-net.conflist");
            let mut config: Value =
                serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
            config["disableCheck"] = forbidden.into();
            std::fs::write(file, config.to_string()).unwrap();
            let (_, taken) = fixture.up().await.unwrap();
            assert_eq!(!taken.is_empty(), repaired, "{code} {forbidden}: {taken:?}");
            let received = fixture.calls();
            assert_eq!(
                received.iter().any(|it| it.contains("a mood")),
                repaired,
                "{received:?}"
            );
            // CHECK still fails after the repair: this is the baseline of the new attachment.
            fixture.up().await.unwrap();
            assert_eq!(fixture.up().await.unwrap().1, [""; 0]);
        });
    }
}

/// The kernel takes a namespace apart some time after its last user has left, and not before. Until then the old veth has the route to the
/// guest's address (ADD of ptp accepts that the route exists) and answers for it (bridge).
#[test]
fn a_repair_is_not_disturbed_by_the_veth_of_a_lost_namespace_that_still_has_a_user() {
    with_each(async |fixture, case| {
        if case.contains("macvlan") {
            return;
        }
        let (connection, _) = fixture.up().await.unwrap();
        let mut desired = fixture.desired.clone();
        desired.data_path.as_mut().unwrap().identity = Some(GuestIdentity {
            ip: connection.ip,
            mac: connection.mac,
        });
        let fixture = &fixture.with(desired);
        kernel::run(&format!(
            "nsenter --net={0} sleep 20 >/dev/null 2>&1 & sleep 0.1; umount {0}; rm {0}; rm -r {1}",
            fixture.netns().display(),
            fixture.desired.vm_dir().display()
        ));
        let (again, _) = fixture.up().await.unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(
            (again.ip, again.mac),
            (connection.ip, connection.mac),
            "{case}"
        );
        let old = connection.host_link.expect("a host link");
        let links = kernel::run("ip -o link");
        assert!(
            !links.contains(&old),
            "{case}: {old} is still there: {links}"
        );
        ping(&again);
        fixture
            .down()
            .await
            .unwrap_or_else(|e| panic!("{case}: {e}"));
    });
}
