//! What differs between the versions of the spec.
//! Out of scope: what is the same in all.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use slicectl::cni::{CniResult, Error, Network, Outcome, Version};

use crate::cni::stage::{Stage, blue, result};

const ALL: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[tokio::test]
async fn every_version_does_what_it_knows_and_no_more() {
    for version in ALL {
        let stage = Stage::new();
        let network = stage.chain(version, &["one", "two"]);
        let runtime = &stage.runtime;
        let answer = runtime.add(&network, &blue()).await.unwrap();
        assert_eq!(answer.cni_version.as_str(), version);
        let add = stage.calls();
        assert_eq!(add[1].stdin()["prevResult"], result(version, "one"));
        stage.hush();
        let check = runtime.check(&network, &blue()).await.unwrap();
        let gc = runtime.gc(&network, || Ok(Vec::new())).await.unwrap();
        let status = runtime.status(&network).await.unwrap();
        runtime.del(&network, &blue()).await.unwrap();
        let mut desired = Vec::new();
        let mut ask = |outcome: Outcome, known: bool, command: &str| {
            match known {
                true => {
                    assert_eq!(outcome, Outcome::Done);
                    desired.extend([format!("{command} one"), format!("{command} two")]);
                }
                false => assert_eq!(outcome, Outcome::Unsupported),
            };
        };
        ask(check, version >= "0.4.0", "CHECK");
        ask(gc, version >= "1.1.0", "GC");
        ask(status, version >= "1.1.0", "STATUS");
        desired.extend(["DEL two".to_owned(), "DEL one".to_owned()]);
        assert_eq!(stage.order(), desired, "{version}");
        for call in stage.calls() {
            let stdin = call.stdin();
            assert_eq!(stdin["cniVersion"], version);
            if call.command == "DEL" {
                let reported = version >= "0.4.0";
                assert_eq!(stdin.get("prevResult").is_some(), reported, "{version}");
            }
        }
        assert!(stage.records().is_empty());
    }
}

#[tokio::test]
async fn a_network_may_forbid_check_and_gc() {
    let stage = Stage::new();
    let network = stage.chain("1.1.0", &["one"]);
    stage.runtime.add(&network, &blue()).await.unwrap();
    stage.hush();
    let config = json!({"cniVersion": "1.1.0", "name": "net", "disableCheck": true, "disableGC": true, "plugins": [{"type": "one"}]});
    stage.conf("10-net.conflist", &config);
    let network = stage.runtime.find("net").unwrap();
    let check = stage.runtime.check(&network, &blue()).await.unwrap();
    let gc = stage.runtime.gc(&network, || Ok(Vec::new())).await.unwrap();
    assert_eq!((check, gc), (Outcome::Disabled, Outcome::Disabled));
    assert!(stage.order().is_empty());
}

#[test]
fn the_highest_version_that_both_sides_speak_goes() {
    let cases = [
        (json!({"cniVersion": "0.4.0"}), Some(Version::V0_4_0)),
        (
            json!({"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.1.0", "1.0.0"]}),
            Some(Version::V1_1_0),
        ),
        (
            json!({"cniVersion": "1.0.0", "cniVersions": ["0.3.1", "2.0.0"]}),
            Some(Version::V1_0_0),
        ),
        (json!({"cniVersions": ["1.0.0"]}), Some(Version::V1_0_0)),
        (json!({"cniVersion": "0.3.0"}), Some(Version::V0_3_0)),
        (
            json!({"cniVersion": "0.3.0", "cniVersions": ["0.3.1"]}),
            Some(Version::V0_3_1),
        ),
        (json!({"cniVersion": "2.0.0"}), None),
        (json!({"cniVersion": "0.2.0"}), None),
        (json!({"cniVersion": "one"}), None),
        (json!({"cniVersions": []}), None),
        (json!({}), None),
    ];
    for (mut config, desired) in cases {
        config["name"] = json!("net");
        config["plugins"] = json!([{"type": "one"}]);
        match (Network::parse(Path::new("f"), &config.to_string()), desired) {
            (Ok(network), Some(version)) => assert_eq!(network.cni_version, version),
            (Err(Error::UnsupportedVersion { expected, .. }), None) => assert_eq!(expected, ALL),
            (other, _) => panic!("{config}: {other:?}"),
        }
    }
}

fn speaks(stage: &Stage, plugin: &str, versions: &[&str]) {
    let answer = json!({"cniVersion": "1.1.0", "supportedVersions": versions});
    stage.say(plugin, "VERSION.out", &answer.to_string());
}

#[tokio::test]
async fn the_version_is_settled_with_the_plugins_for_good() {
    let stage = Stage::new();
    for plugin in ["one", "two"] {
        stage.plugin(plugin);
    }
    let config = json!({
        "cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.0.0", "1.1.0"], "name": "net",
        "plugins": [{"type": "one"}, {"type": "two"}, {"type": "one"}]
    });
    stage.conf("10.conflist", &config);
    speaks(&stage, "two", &["0.3.1", "0.4.0", "1.0.0", "9.9.9"]);
    let found = stage.runtime.find("net").unwrap();
    assert_eq!(found.cni_version, Version::V1_1_0);
    let settled = stage.runtime.negotiate(&found).await.unwrap();
    assert_eq!(settled.cni_version, Version::V1_0_0);
    assert_eq!(settled.plugins, found.plugins);
    assert_eq!(settled.digest(), found.digest());
    let back = serde_json::to_string(&settled).unwrap();
    let back: Network = serde_json::from_str(&back).unwrap();
    assert_eq!(back.cni_version, Version::V1_0_0);
    assert_eq!(stage.order(), ["VERSION one", "VERSION two"]);
    speaks(&stage, "one", &["0.1.0", "0.2.0"]);
    // The program is as it was: not asked again.
    stage.runtime.negotiate(&found).await.unwrap();
    assert_eq!(stage.order().len(), 2);
    let program = fs::File::options()
        .append(true)
        .open(stage.path("bin/one"))
        .unwrap();
    program
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    drop(program);
    let error = stage.runtime.negotiate(&found).await.unwrap_err();
    assert!(matches!(error, Error::UnsupportedVersion { .. }));
    let text = error.to_string();
    assert!(
        text.contains("`one`") && text.contains("0.1.0, 0.2.0"),
        "{text}"
    );
}

#[tokio::test]
async fn a_plugin_that_cannot_report_its_versions_is_reported() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    stage.say("one", "VERSION.out", "{}");
    let error = stage.runtime.negotiate(&network).await.unwrap_err();
    assert!(matches!(error, Error::InvalidOutput { .. }), "{error}");
    fs::remove_file(stage.path("bin/one")).unwrap();
    let error = stage.runtime.negotiate(&network).await.unwrap_err();
    assert!(matches!(error, Error::PluginNotFound { .. }), "{error}");
}

#[test]
fn results_are_brought_from_any_version_to_any_other_and_lose_nothing() {
    for from in ALL {
        for to in Version::ALL {
            let mut written = result(from, "eth0");
            written["odd"] = json!(1);
            let read = CniResult::parse(&written.to_string(), to).unwrap();
            let mut desired = result(to.as_str(), "eth0");
            desired["odd"] = json!(1);
            let raw: Value = serde_json::from_str(read.raw()).unwrap();
            assert_eq!(raw, desired, "{from} to {to}");
            assert_eq!(read.cni_version, to);
        }
    }
    let six = json!({"cniVersion": "1.0.0", "ips": [{"address": "fd00::5/64"}]});
    let read = CniResult::parse(&six.to_string(), Version::V0_4_0).unwrap();
    let raw: Value = serde_json::from_str(read.raw()).unwrap();
    assert_eq!(raw["ips"][0]["version"], "6");
}

#[test]
fn a_result_is_read_whole() {
    let text = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "cni0", "mac": "00:11:22:33:44:55", "mtu": 1450, "sandbox": ""},
            {"name": "eth0", "sandbox": "/run/netns/blue", "socketPath": "/s", "pciID": "0000:00:01.0"}
        ],
        "ips": [
            {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
            {"address": "fd00::5/64", "gateway": ""}
        ],
        "routes": [
            {"dst": "0.0.0.0/0"},
            {"dst": "10.9.0.0/16", "gw": "10.1.0.2", "mtu": 1400, "advmss": 1360, "priority": 5, "table": 100, "scope": 253}
        ],
        "dns": {"nameservers": ["10.1.0.1"], "domain": "a.example", "search": ["b.example"], "options": ["ndots:2"]}
    });
    let read = CniResult::parse(&text.to_string(), Version::V1_1_0).unwrap();
    let [bridge, eth0] = &read.interfaces[..] else {
        panic!("{read:?}");
    };
    assert_eq!((bridge.mtu, &bridge.sandbox), (Some(1450), &None));
    assert_eq!(bridge.mac.as_deref(), Some("00:11:22:33:44:55"));
    assert_eq!(eth0.sandbox.as_deref(), Some("/run/netns/blue"));
    assert_eq!(eth0.socket_path.as_deref(), Some("/s"));
    assert_eq!(eth0.pci_id.as_deref(), Some("0000:00:01.0"));
    let ip = &read.ips[0];
    assert_eq!(
        (ip.address.ip().to_string(), ip.address.prefix()),
        ("10.1.0.5".into(), 16)
    );
    assert_eq!(
        ip.gateway.map(|it| it.to_string()).as_deref(),
        Some("10.1.0.1")
    );
    assert_eq!(read.interface_of(ip), Some(eth0));
    assert_eq!(
        (read.ips[1].gateway, read.interface_of(&read.ips[1])),
        (None, None)
    );
    let route = &read.routes[1];
    assert_eq!((route.mtu, route.advmss), (Some(1400), Some(1360)));
    assert_eq!(
        (route.priority, route.table, route.scope),
        (Some(5), Some(100), Some(253))
    );
    assert_eq!(read.dns.domain.as_deref(), Some("a.example"));
    assert_eq!(read.dns.search, ["b.example"]);
    assert_eq!(read.dns.options, ["ndots:2"]);
    let kept = serde_json::to_string(&read).unwrap();
    assert_eq!(serde_json::from_str::<CniResult>(&kept).unwrap(), read);
}

#[test]
fn what_go_writes_for_nothing_is_nothing() {
    let text = r#"{"interfaces":null,"ips":null,"routes":null,"dns":{"nameservers":null}}"#;
    let read = CniResult::parse(text, Version::V1_0_0).unwrap();
    assert!(read.interfaces.is_empty() && read.ips.is_empty() && read.routes.is_empty());
    assert_eq!(read.cni_version, Version::V1_0_0);
    let raw: Value = serde_json::from_str(read.raw()).unwrap();
    assert_eq!(raw["cniVersion"], "1.0.0");
}
