//! Debian's own plugins in a private kernel, and the configurations that we ship.
//! Out of scope: plugins of ours.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use slicectl::cni::{Attachment, CniResult, Error, Network, Outcome, Runtime, Version};

use test_support::kernel::{self, Canaries, Neighbour};

/// Where the private kernel keeps what the real one keeps there, too.
const STATE: &str = "/var/lib/cni";

/// A runtime with the usual places, over empty folders of the private kernel, and the configurations that we ship.
fn settle_in() -> Runtime {
    kernel::run("mount -t tmpfs t /var/lib; mkdir -p /run/conf");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/cni");
    kernel::run(&format!("cp {}/*.conflist /run/conf", shipped.display()));
    let mut runtime = Runtime::new();
    runtime.conf_dir = "/run/conf".into();
    assert_eq!(runtime.cache_dir, Path::new(STATE));
    runtime
}

fn container(name: &str) -> (Neighbour, Attachment) {
    let space = Neighbour::alone(name);
    let attachment = Attachment::new(format!("vm-{name}"), space.path(), "eth0");
    (space, attachment)
}

fn address(result: &CniResult) -> String {
    result.ips[0].address.ip().to_string()
}

/// The addresses that host-local has reserved in a network.
fn reserved(network: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(PathBuf::from(STATE).join("networks").join(network)) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
        .collect();
    names.sort();
    names
}

fn records() -> usize {
    fs::read_dir(PathBuf::from(STATE).join("slice/results")).map_or(0, Iterator::count)
}

fn veths() -> usize {
    kernel::ip("link show type veth").as_array().unwrap().len()
}

/// The kernel takes a deleted namespace apart in its own time.
fn wait_for_no_veths() {
    for _ in 0..500 {
        if veths() == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// All rules that mention a text.
fn rules(text: &str) -> Vec<String> {
    let tables = ["filter", "nat"].into_iter();
    let all = tables.flat_map(kernel::rules);
    all.filter(|rule| rule.contains(text)).collect()
}

fn assert_nothing_left(network: &str, addresses: &[String]) {
    assert_eq!(reserved(network), Vec::<String>::new());
    wait_for_no_veths();
    assert_eq!((records(), veths()), (0, 0));
    for address in addresses {
        assert_eq!(rules(address), Vec::<String>::new());
    }
}

fn write(network: &str, config: &serde_json::Value) {
    fs::write(format!("/run/conf/{network}.conflist"), config.to_string()).unwrap();
}

#[test]
fn the_bridge_network_that_we_ship_connects_containers_and_leaves_nothing() {
    kernel::private(async {
        let runtime = settle_in();
        let canaries = Canaries::release();
        let found = runtime.find("slicer").unwrap();
        let network = runtime.negotiate(&found).await.unwrap();
        assert_eq!(network.cni_version, Version::V1_0_0);
        let (one, first) = container("one");
        let (two, second) = container("two");
        let (a, b) = tokio::join!(
            runtime.add(&network, &first),
            runtime.add(&network, &second)
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        let inside = a.interface_of(&a.ips[0]).unwrap();
        assert_eq!(inside.name, "eth0");
        assert_eq!(inside.sandbox.as_deref(), one.path().to_str());
        let seen = one.ip("addr show dev eth0");
        assert_eq!(seen[0]["address"].as_str(), inside.mac.as_deref());
        assert_eq!(seen[0]["addr_info"][0]["local"], address(&a));
        assert_eq!(reserved("slicer").len(), 2);
        one.run(&format!("ping -c1 -W2 {}", address(&b)));
        two.run(&format!("ping -c1 -W2 {}", a.ips[0].gateway.unwrap()));
        assert!(!rules(&address(&a)).is_empty(), "firewall and masquerade");
        for attachment in [&first, &second] {
            let outcome = runtime.check(&network, attachment).await.unwrap();
            assert_eq!(outcome, Outcome::Done);
        }
        one.run("ip route del default");
        let error = runtime.check(&network, &first).await.unwrap_err();
        assert!(matches!(error, Error::Plugin(_)), "{error}");
        for attachment in [&first, &second] {
            runtime.del(&network, attachment).await.unwrap();
            runtime.del(&network, attachment).await.unwrap();
        }
        assert_nothing_left("slicer", &[address(&a), address(&b)]);
        canaries.assert_alive();
    });
}

#[test]
fn the_ptp_network_that_we_ship_reaches_the_lan_by_masquerade_and_leaves_nothing() {
    kernel::private(async {
        let runtime = settle_in();
        let lan = Neighbour::join("lan0", "192.168.7.1/24", "192.168.7.10/24");
        lan.run("ip route del default");
        let network = runtime.find("slicer-ptp").unwrap();
        let (one, attachment) = container("one");
        let result = runtime.add(&network, &attachment).await.unwrap();
        // Only a masqueraded packet is answered: the neighbour knows no way to the container.
        one.run("ping -c1 -W2 192.168.7.10");
        let outcome = runtime.check(&network, &attachment).await.unwrap();
        assert_eq!(outcome, Outcome::Done);
        runtime.del(&network, &attachment).await.unwrap();
        // The neighbour's own.
        assert_eq!(veths(), 1);
        kernel::run("ip link del lan0");
        assert_nothing_left("slicer-ptp", &[address(&result)]);
    });
}

#[test]
fn a_published_port_goes_to_the_plugin_that_declares_the_capability() {
    kernel::private(async {
        let runtime = settle_in();
        let mut config: serde_json::Value =
            serde_json::from_str(runtime.find("slicer").unwrap().config()).unwrap();
        config["name"] = json!("ports");
        // The CHECK of portmap 1.1.1 looks for IPv6 rules that its ADD had no reason to make: what `disableCheck` is for.
        config["disableCheck"] = json!(true);
        let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        config["plugins"].as_array_mut().unwrap().push(portmap);
        write("ports", &config);
        let network = runtime.find("ports").unwrap();
        assert!(network.capabilities().contains("portMappings"));
        let lan = Neighbour::join("lan0", "192.168.7.1/24", "192.168.7.10/24");
        let (one, mut attachment) = container("one");
        attachment.capability_args =
            json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}], "bandwidth": {}})
                .as_object()
                .cloned()
                .unwrap();
        let result = runtime.add(&network, &attachment).await.unwrap();
        one.run("(echo hello | timeout 10 socat -u STDIN TCP-LISTEN:80) >/dev/null 2>&1 &");
        let received =
            lan.run("timeout 5 socat -u TCP:192.168.7.1:8080,retry=20,interval=0.1 STDOUT");
        assert_eq!(received, "hello\n");
        let outcome = runtime.check(&network, &attachment).await.unwrap();
        assert_eq!(outcome, Outcome::Disabled);
        // The caller forgot what he had asked for; the cache did not.
        attachment.capability_args.clear();
        runtime.del(&network, &attachment).await.unwrap();
        assert_eq!(rules("8080"), Vec::<String>::new());
        kernel::run("ip link del lan0");
        assert_nothing_left("ports", &[address(&result)]);
    });
}

#[test]
fn every_version_of_the_spec_works_with_the_real_plugins() {
    kernel::private(async {
        let runtime = settle_in();
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            let mut config: serde_json::Value =
                serde_json::from_str(runtime.find("slicer").unwrap().config()).unwrap();
            config["cniVersion"] = json!(version);
            config["name"] = json!("any");
            if version < "0.4.0" {
                // `firewall` speaks 0.4.0 and later.
                config["plugins"].as_array_mut().unwrap().pop();
            }
            write("any", &config);
            let network = runtime.find("any").unwrap();
            let (space, attachment) = container("one");
            let result = runtime.add(&network, &attachment).await.unwrap();
            assert_eq!(result.cni_version.as_str(), version);
            space.run(&format!("ping -c1 -W2 {}", result.ips[0].gateway.unwrap()));
            let outcome = runtime.check(&network, &attachment).await.unwrap();
            assert_eq!(outcome == Outcome::Done, version >= "0.4.0");
            runtime.del(&network, &attachment).await.unwrap();
            assert_nothing_left("any", &[address(&result)]);
            kernel::run("ip netns del one");
        }
    });
}

#[test]
fn a_network_ahead_of_the_plugins_is_settled_or_refused() {
    kernel::private(async {
        let runtime = settle_in();
        let mut config: serde_json::Value =
            serde_json::from_str(runtime.find("slicer").unwrap().config()).unwrap();
        config["name"] = json!("new");
        config["cniVersion"] = json!("1.1.0");
        write("new", &config);
        let network = runtime.find("new").unwrap();
        let (_space, attachment) = container("one");
        let error = runtime.add(&network, &attachment).await.unwrap_err();
        assert_eq!(error.code(), Some(1), "{error}");
        let error = runtime.negotiate(&network).await.unwrap_err();
        assert!(error.to_string().contains("`bridge`"), "{error}");
        config["cniVersions"] = json!(["0.4.0", "1.0.0"]);
        write("new", &config);
        let network = runtime.find("new").unwrap();
        let network = runtime.negotiate(&network).await.unwrap();
        let result = runtime.add(&network, &attachment).await.unwrap();
        runtime.del(&network, &attachment).await.unwrap();
        assert_nothing_left("new", &[address(&result)]);
    });
}

#[test]
fn a_container_whose_namespace_is_gone_is_deleted_as_far_as_the_plugins_can() {
    kernel::private(async {
        let runtime = settle_in();
        let network = runtime.find("slicer").unwrap();
        let (_space, mut attachment) = container("one");
        let result = runtime.add(&network, &attachment).await.unwrap();
        kernel::run("ip netns del one");
        attachment.netns = None;
        runtime.del(&network, &attachment).await.unwrap();
        assert_nothing_left("slicer", &[]);
        // bridge 1.1.1 reads the addresses to unmask off the interface inside.
        let left = rules(&address(&result));
        assert!(
            left.iter().all(|rule| rule.contains("POSTROUTING")),
            "{left:?}"
        );
    });
}

/// A chain that fails after its bridge has been made, and the network as a caller would have kept it.
fn failing(runtime: &Runtime) -> Network {
    kernel::run(
        "mkdir -p /run/bin; printf '#!/bin/sh\\nexit 1\\n' >/run/bin/broken; chmod +x /run/bin/broken",
    );
    let mut config: serde_json::Value =
        serde_json::from_str(runtime.find("slicer").unwrap().config()).unwrap();
    config["name"] = json!("broken");
    let plugins = config["plugins"].as_array_mut().unwrap();
    plugins.push(json!({"type": "broken"}));
    write("broken", &config);
    runtime.find("broken").unwrap()
}

#[test]
fn an_add_that_failed_half_way_is_undone_with_the_network_that_was_kept() {
    kernel::private(async {
        let mut runtime = settle_in();
        runtime.bin_dirs.push("/run/bin".into());
        let kept = failing(&runtime);
        let (_space, attachment) = container("one");
        runtime.add(&kept, &attachment).await.unwrap_err();
        assert_eq!((reserved("broken").len(), records(), veths()), (1, 0, 1));
        let address = reserved("broken");
        kernel::run("rm /run/conf/broken.conflist; printf '#!/bin/sh\\n' >/run/bin/broken");
        runtime.del(&kept, &attachment).await.unwrap();
        assert_nothing_left("broken", &address);
    });
}

#[test]
fn a_reservation_that_outlived_its_container_is_swept_and_a_strangers_is_not() {
    kernel::private(async {
        let runtime = settle_in();
        let network = runtime.find("slicer").unwrap();
        let (_one, ours) = container("one");
        let (_two, theirs) = container("two");
        runtime.add(&network, &ours).await.unwrap();
        let kept = runtime.add(&network, &theirs).await.unwrap();
        kernel::run("ip netns del one");
        runtime.remove_records("slicer", &ours).unwrap();
        let removed = runtime
            .sweep_host_local(&network, || |id: &str| id == "vm-one")
            .await;
        assert_eq!(removed.unwrap().len(), 1);
        assert_eq!(reserved("slicer"), [address(&kept)]);
        let check = runtime.check(&network, &theirs).await.unwrap();
        assert_eq!(check, Outcome::Done);
    });
}

#[test]
fn an_empty_pool_is_an_error_with_the_message_of_the_plugin() {
    kernel::private(async {
        let runtime = settle_in();
        let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/30"}]]});
        let config = json!({
            "cniVersion": "1.0.0", "name": "small",
            "plugins": [{"type": "bridge", "bridge": "small0", "isGateway": true, "ipam": ipam}]
        });
        write("small", &config);
        let network = runtime.find("small").unwrap();
        let (_one, first) = container("one");
        let (_two, second) = container("two");
        runtime.add(&network, &first).await.unwrap();
        let error = runtime.add_or_undo(&network, &second).await.unwrap_err();
        assert!(
            error.to_string().contains("no IP addresses available"),
            "{error}"
        );
        runtime.del(&network, &first).await.unwrap();
        runtime.add(&network, &second).await.unwrap();
        runtime.del(&network, &second).await.unwrap();
        assert_nothing_left("small", &[]);
    });
}
