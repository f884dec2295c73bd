//! What groups and VMs made on demand request from CNI plugins, what a VM name keeps, and the errors for requests that are not met.
//! Out of scope: the Net stage alone (`tests/kernel/cni_stages`), the syntax of manifests (`tests/pure/manifests`).

use std::time::Duration;

use serde_json::{Value, json};

use super::cni::assert_reaches_its_gateway;
use super::cni_faults::{begin_another_boot, lose_the_run_directory};
use test_support::cni_networks::{
    self, CniNetworks, at, guest, is_ready, left, message, pod, with_daemon,
};
use test_support::harness::{Harness, slots};
use test_support::kernel::run;

/// Configures a bridge network with plugins for port mappings and for bandwidth limits.
fn able(cni_networks: &CniNetworks) {
    cni_networks.configure(&json!([
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": cni_networks::ipam("10.77.0.0/24")},
        {"type": "portmap", "capabilities": {"portMappings": true}},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}},
    ]));
}

fn asking(count: u32, asked: &str) -> String {
    format!("{}      cni: {asked}\n", pod(count))
}

/// UID, address and MAC.
fn identity(harness: &Harness, vm: &str) -> (Value, Value, Value) {
    let found = harness.get(&format!("vm {vm}"));
    let network = &found["status"]["network"];
    (
        found["metadata"]["uid"].clone(),
        network["ip"].clone(),
        network["mac"].clone(),
    )
}

#[test]
fn what_a_group_requests_is_shown_as_it_was_written_and_a_change_of_it_replaces_its_vms() {
    with_daemon(|harness, cni_networks| {
        able(&cni_networks);
        let asked = |rate: &str| {
            format!(
                "{{port_mappings: [{{host_port: 8080, guest_port: 80}}], bandwidth: {{ingress_rate: {rate}, ingress_burst: 1M}}, args: {{K8S_POD_NAME: pod}}, ips: [10.77.0.77], mac: \"02:00:00:00:00:77\"}}"
            )
        };
        harness.apply(&asking(1, &asked("10M")));
        let shown = |rate: u64| {
            json!({
                "port_mappings": [{"host_port": 8080, "guest_port": 80, "protocol": "tcp"}],
                "bandwidth": {"ingress_rate": rate, "ingress_burst": 1_000_000},
                "args": {"K8S_POD_NAME": "pod"},
                "ips": ["10.77.0.77"],
                "mac": "02:00:00:00:00:77",
            })
        };
        let spec = |what: &str, path: &str| harness.get(what).pointer(path).cloned().unwrap();
        assert_eq!(
            spec("hg pod", "/spec/template/network/cni"),
            shown(10_000_000)
        );
        assert_eq!(spec("vm pod-1", "/spec/network/cni"), shown(10_000_000));
        let yaml = harness.ctl("get vm pod-1 -o yaml");
        for line in [
            "host_port: 8080",
            "ingress_rate: 10000000",
            "- 10.77.0.77",
            "mac: 02:00:00:00:00:77",
        ] {
            assert!(yaml.contains(line), "{line} is not in {yaml}");
        }
        let described = harness.ctl("describe vm/pod-1");
        for line in [
            "8080:80/tcp",
            "ingress_rate=10000000",
            "K8S_POD_NAME=pod",
            "10.77.0.77",
        ] {
            assert!(described.contains(line), "{line} is not in {described}");
        }
        let (uid, ip, mac) = identity(&harness, "pod-1");
        assert_eq!(
            (&ip, &mac),
            (&json!("10.77.0.77"), &json!("02:00:00:00:00:77"))
        );
        assert_reaches_its_gateway(&guest(&harness, "pod-1"));
        let limit = |rate: &str| {
            let link = spec("vm pod-1", "/status/network/host_link");
            let shaped = run(&format!("tc qdisc show dev {}", link.as_str().unwrap()));
            assert!(shaped.contains(rate), "{shaped}");
        };
        limit("10Mbit");

        let same = harness.write("same.yaml", &asking(1, &asked("10000k")));
        assert!(
            harness
                .ctl(&format!("apply -f {same}"))
                .contains("unchanged")
        );
        let other = harness.write("other.yaml", &asking(1, &asked("20M")));
        let output = harness.try_ctl(&format!("diff -f {other}"));
        let diff = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(diff.contains("vm/pod-1: replace"), "{diff}");
        harness.apply(&asking(1, &asked("20M")));
        harness.until("pod-1 is replaced", || {
            (identity(&harness, "pod-1").0 != uid && is_ready(&harness, "pod-1").is_some())
                .then_some(())
        });
        assert_eq!(spec("vm pod-1", "/spec/network/cni"), shown(20_000_000));
        limit("20Mbit");
        let (_, same_ip, same_mac) = identity(&harness, "pod-1");
        assert_eq!((same_ip, same_mac), (ip, mac));
        harness.ctl("delete hg pod --wait=20s");
        assert_eq!(left(&harness.run), [""; 0]);
    });
}

#[test]
fn addresses_that_a_group_lists_are_its_vms_in_order_and_only_who_moves_is_replaced() {
    with_daemon(|harness, cni_networks| {
        cni_networks.bridge("cni0", "10.77.0.0/24");
        harness.apply(&asking(2, "{ips: [10.77.0.50, 10.77.0.51]}"));
        let ips = || ["pod-1", "pod-2"].map(|vm| identity(&harness, vm).1);
        assert_eq!(ips(), ["10.77.0.50", "10.77.0.51"]);
        let uids = || ["pod-1", "pod-2"].map(|vm| identity(&harness, vm).0);
        let before = uids();
        // The address of the second VM changes.
        let file = harness.write("m.yaml", &asking(2, "{ips: [10.77.0.50, 10.77.0.61]}"));
        harness.ctl(&format!("apply -f {file}"));
        harness.until("pod-2 has its new address", || {
            (ips()[1] == "10.77.0.61" && is_ready(&harness, "pod-2").is_some()).then_some(())
        });
        let after = uids();
        assert_eq!(
            (&after[0], ips()[0].as_str()),
            (&before[0], Some("10.77.0.50"))
        );
        assert_ne!(after[1], before[1]);
        harness.stays(Duration::from_secs(1), uids);
        // An added VM gets its listed address. A VM keeps an address that is no longer listed.
        harness.apply(&asking(3, "{ips: [10.77.0.50, 10.77.0.61, 10.77.0.52]}"));
        assert_eq!(identity(&harness, "pod-3").1, "10.77.0.52");
        harness.apply(&pod(3));
        assert_eq!(
            (uids(), identity(&harness, "pod-3").1),
            (after, json!("10.77.0.52"))
        );
    });
}

#[test]
fn a_vm_made_on_demand_asks_for_its_own_and_shares_nothing_that_only_one_can_have() {
    with_daemon(|harness, cni_networks| {
        able(&cni_networks);
        let group = asking(
            1,
            "{port_mappings: [{host_port: 8080, guest_port: 80}], bandwidth: {egress_rate: 5M, egress_burst: 1M}, ips: [10.77.0.50], mac: \"02:00:00:00:00:50\"}",
        );
        harness.apply(&group);
        harness.ctl("vm add pod --name plain --wait");
        harness.ctl(
            "vm add pod --name own --ip 10.77.0.99 --mac 02:00:00:00:00:99 --cni-arg K8S_POD_NAME=own --port-mapping 127.0.0.1:8053:53/udp --port-mapping 8081:80 --bandwidth ingress_rate=8M,ingress_burst=1M --wait",
        );
        let network = |vm: &str| harness.get(&format!("vm {vm}"))["spec"]["network"]["cni"].clone();
        let limits = json!({"egress_rate": 5_000_000, "egress_burst": 1_000_000});
        assert_eq!(network("plain"), json!({"bandwidth": limits}));
        assert_eq!(
            network("own"),
            json!({
                "port_mappings": [{"host_port": 8053, "guest_port": 53, "protocol": "udp", "host_ip": "127.0.0.1"},
                                  {"host_port": 8081, "guest_port": 80, "protocol": "tcp"}],
                "bandwidth": {"ingress_rate": 8_000_000, "ingress_burst": 1_000_000},
                "args": {"K8S_POD_NAME": "own"},
                "ips": ["10.77.0.99"],
                "mac": "02:00:00:00:00:99",
            })
        );
        let (_, ip, mac) = identity(&harness, "own");
        assert_eq!((ip, mac), (json!("10.77.0.99"), json!("02:00:00:00:00:99")));
        assert_ne!(identity(&harness, "plain").1, "10.77.0.50");
        assert_reaches_its_gateway(&guest(&harness, "own"));
        assert!(
            harness
                .ctl("describe vm/own")
                .contains("with own port mappings")
        );
        assert!(run("iptables-save -t nat").contains("--to-destination 10.77.0.99:80"));

        // The VM keeps its options when it is re-created.
        let before = identity(&harness, "own");
        let file = harness.write("m.yaml", &group.replace("ram_mb: 128", "ram_mb: 256"));
        harness.ctl(&format!("apply -f {file}"));
        harness.until("own is replaced", || {
            let now = identity(&harness, "own");
            (now.0 != before.0 && is_ready(&harness, "own").is_some()).then_some(())
        });
        let after = identity(&harness, "own");
        assert_eq!((after.1, after.2), (before.1, before.2));

        for (arguments, status, expected) in [
            ("--mac 01:00:5e:00:00:01", 1, "cannot have cni.mac"),
            (
                "--ip 10.77.0.5 --ip 10.77.0.5",
                1,
                "10.77.0.5 is listed twice",
            ),
            (
                "--bandwidth ingress_rate=8M",
                1,
                "cni.bandwidth.ingress_burst: is missing",
            ),
            ("--cni-arg IP=10.77.0.5", 1, "belongs in cni.ips"),
            (
                "--port-mapping 80:80 --port-mapping 80:81",
                1,
                "host port 80/tcp is already mapped",
            ),
            (
                "--port-mapping 8080:81",
                1,
                "has a port mapping that conflicts with 8080:80/tcp of its group",
            ),
            (
                "--port-mapping 8081:81",
                1,
                "host port 8081/tcp is already mapped by vm/own",
            ),
            ("--port-mapping 80", 2, "invalid port mapping"),
            ("--bandwidth fast", 2, "expected KEY=BITS"),
            ("--mac 7", 2, "invalid MAC address"),
            ("--ip fd00::1", 2, "expected a unicast IPv4 address"),
            ("--cni-arg a", 2, "expected KEY=VALUE"),
        ] {
            let refusal = harness.refused(&format!("vm add pod --name no {arguments}"), status);
            assert!(refusal.contains(expected), "{arguments}: {refusal}");
        }
        harness.apply(&slots(1, ""));
        let refusal = harness.refused("vm add sandbox --name no --ip 10.77.0.5", 1);
        assert!(
            refusal.contains("its group is in mode isolated"),
            "{refusal}"
        );
    });
}

#[test]
fn a_vm_of_the_same_name_has_the_same_address_and_mac_after_a_replacement() {
    with_daemon(|harness, cni_networks| {
        for chain in ["bridge", "ptp"] {
            match chain {
                "bridge" => cni_networks.bridge("cni0", "10.77.0.0/24"),
                _ => cni_networks.ptp("10.78.0.0/24"),
            }
            harness.apply(&pod(3));
            let all = || ["pod-1", "pod-2", "pod-3"].map(|vm| identity(&harness, vm));
            let before = all();
            harness.apply(&pod(3).replace("ram_mb: 128", "ram_mb: 256"));
            harness.until("all VMs are replaced", || {
                let vms = ["pod-1", "pod-2", "pod-3"];
                let ready = vms.iter().all(|vm| is_ready(&harness, vm).is_some());
                let now = all();
                let replaced = now
                    .iter()
                    .zip(&before)
                    .all(|(now, before)| now.0 != before.0);
                (ready && replaced).then_some(())
            });
            for (now, before) in all().iter().zip(&before) {
                assert_eq!(now.1, before.1, "{chain}");
                assert_eq!(now.2, before.2, "{chain}");
            }
            harness.ctl("delete hg pod --wait=20s");
            assert_eq!(left(&harness.run), [""; 0]);
        }
    });
}

#[test]
fn a_vm_of_the_same_name_has_the_same_address_and_mac_after_a_reboot() {
    with_daemon(|mut harness, cni_networks| {
        cni_networks.bridge("cni0", "10.77.0.0/24");
        // The addresses are not in the order in which the plugin allocates them.
        harness.apply(&pod(3));
        harness.ctl("delete vm/pod-1 --wait=20s");
        harness.ctl("wait hg/pod --for ready --timeout 20s");
        let before = ["pod-1", "pod-2", "pod-3"].map(|vm| identity(&harness, vm));
        harness.kill();
        lose_the_run_directory(&harness);
        begin_another_boot();
        harness.start();
        for vm in ["pod-1", "pod-2", "pod-3"] {
            harness.until("the VM is ready", || is_ready(&harness, vm));
        }
        let after = ["pod-1", "pod-2", "pod-3"].map(|vm| identity(&harness, vm));
        assert_eq!(after, before);
    });
}

/// Status, reason and message of the condition `Net`.
fn condition(harness: &Harness) -> (Value, Value, String) {
    let vm = harness.get("vm pod-1");
    let mut conditions = vm["status"]["conditions"].as_array().into_iter().flatten();
    let net = conditions.find(|condition| condition["type"] == "Net");
    let net = net.cloned().unwrap_or_default();
    let message = message(harness, "pod-1", "Net");
    (net["status"].clone(), net["reason"].clone(), message)
}

#[test]
fn an_add_that_only_another_configuration_can_mend_waits_for_one_and_is_not_repeated() {
    with_daemon(|harness, cni_networks| {
        let file = harness.write("m.yaml", &pod(1));
        for code in [7, 2] {
            cni_networks.recorders("10.78.0.0/24");
            cni_networks.fail("two", "ADD", code);
            harness.ctl(&format!("apply -f {file}"));
            harness.until("the condition reports it", || {
                let (status, reason, message) = condition(&harness);
                let reported =
                    message.contains(&format!("code {code}")) && message.contains("`two`");
                (status == "False" && reason == "Invalid" && reported).then_some(())
            });
            std::thread::sleep(Duration::from_secs(1));
            cni_networks.calls();
            std::thread::sleep(Duration::from_secs(5));
            assert_eq!(cni_networks.calls(), [""; 0], "{code}");
            cni_networks.unsay();
            // The file is saved again.
            cni_networks.recorders("10.78.0.0/24");
            harness.within(Duration::from_secs(3), "ADD is retried", || {
                is_ready(&harness, "pod-1")
            });
            harness.ctl("delete hg pod --wait=20s");
        }
        // A capability that no plugin declares.
        harness.write(
            "m.yaml",
            &asking(1, "{port_mappings: [{host_port: 80, guest_port: 80}]}"),
        );
        harness.ctl(&format!("apply -f {file}"));
        harness.until("the condition reports it", || {
            let (_, reason, message) = condition(&harness);
            let reported = message.contains("cni.port_mappings needs the capability portMappings")
                && message.contains("(one, two, three)");
            (reason == "Invalid" && reported).then_some(())
        });
        able(&cni_networks);
        harness.within(Duration::from_secs(3), "the VM is ready", || {
            is_ready(&harness, "pod-1")
        });
        harness.ctl("delete hg pod --wait=20s");
        assert_eq!(left(&harness.run), [""; 0]);
    });
}

#[test]
fn a_network_that_cannot_serve_is_a_condition_in_the_plugins_words_and_passes() {
    with_daemon(|harness, cni_networks| {
        cni_networks.recorders("10.78.0.0/24");
        // By default the recorders behave like Debian's plugins, which do not support 1.1.0.
        let versions = json!({"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]});
        for plugin in ["one", "two", "three"] {
            cni_networks.say(plugin, "VERSION", &versions.to_string(), 0);
            cni_networks.say(plugin, "STATUS", "", 0);
            let answer = json!({"cniVersion": "1.1.0", "interfaces": [], "ips": []});
            cni_networks.say(plugin, "ADD", &answer.to_string(), 0);
            cni_networks.say(plugin, "DEL", "", 0);
        }
        for code in [50, 51] {
            // Each case uses another network, because a STATUS success is cached for a moment.
            cni_networks.recorders(&format!("10.78.{code}.0/24"));
            let list = std::fs::read_to_string(at("conf/10-net.conflist")).unwrap();
            std::fs::write(at("conf/10-net.conflist"), list.replace("1.0.0", "1.1.0")).unwrap();
            cni_networks.calls();
            cni_networks.fail("two", "STATUS", code);
            let file = harness.write("m.yaml", &pod(1));
            harness.ctl(&format!("apply -f {file}"));
            harness.until("the condition reports it", || {
                let (status, _, message) = condition(&harness);
                let expected = format!(
                    "`two` failed STATUS with code {code}: configured to fail (by the test)"
                );
                (status == "False" && message.contains(&expected)).then_some(())
            });
            assert!(
                !cni_networks
                    .calls()
                    .iter()
                    .any(|received| received.starts_with("ADD"))
            );
            let doctor = harness.try_ctl("doctor");
            let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
            assert!(
                doctor.contains(&format!("STATUS with code {code}")),
                "{doctor}"
            );
            cni_networks.say("two", "STATUS", "", 0);
            // The daemon retries by itself. The result contains no address, which is the next message.
            harness.until("STATUS is called again", || {
                message(&harness, "pod-1", "Net")
                    .contains("no IPv4 address")
                    .then_some(())
            });
            harness.ctl("delete hg pod --wait=20s");
        }
    });
}

#[test]
fn a_result_that_the_interface_does_not_bear_out_is_reported_and_not_asked_for_all_the_time() {
    with_daemon(|harness, cni_networks| {
        cni_networks.recorders("10.78.0.0/24");
        let plugin = "#!/bin/sh
[ \"$CNI_COMMAND\" = VERSION ] || echo \"$CNI_COMMAND one\" >>\"$(dirname \"$0\")/../received\"
out=$(/usr/lib/cni/ptp) || { echo \"$out\"; exit 1; }
echo \"$out\" | sed 's=\"10.78.0.2/24\"=\"10.78.0.9/24\"='
";
        std::fs::write(at("bin/one"), plugin).unwrap();
        let file = harness.write("m.yaml", &pod(1));
        harness.ctl(&format!("apply -f {file}"));
        harness.until("the condition reports it", || {
            let expected = "the result assigns 10.78.0.9/24 to eth0, which has ";
            condition(&harness).2.contains(expected).then_some(())
        });
        cni_networks.calls();
        std::thread::sleep(Duration::from_secs(10));
        let adds = cni_networks
            .calls()
            .iter()
            .filter(|received| *received == "ADD one")
            .count();
        assert!(adds <= 6, "{adds} in 10 s");
        cni_networks.recorder("one");
        harness.until("the VM is ready", || is_ready(&harness, "pod-1"));
    });
}
