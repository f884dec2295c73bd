//! What groups and VMs made on demand request from CNI plugins, what a VM name keeps, and the errors for requests that are not met.
//! Out of scope: the Net stage alone (`tests/cni_stages`), the syntax of manifests (`tests/manifests`).

use std::time::Duration;

use serde_json::{Value, json};

use super::cni::assert_reaches_its_gateway;
use super::cni_faults::{begin_another_boot, lose_the_run_directory};
use crate::support::house::{House, slots};
use crate::support::kernel::run;
use crate::support::plugs::{self, Plugs, at, guest, inhabited, is_ready, left, message, pod};

/// Configures a bridge network with plugins for port mappings and for bandwidth limits.
fn able(plugs: &Plugs) {
    plugs.configure(&json!([
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": plugs::ipam("10.77.0.0/24")},
        {"type": "portmap", "capabilities": {"portMappings": true}},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}},
    ]));
}

fn asking(count: u32, asked: &str) -> String {
    format!("{}      cni: {asked}\n", pod(count))
}

/// UID, address and MAC.
fn identity(house: &House, vm: &str) -> (Value, Value, Value) {
    let found = house.get(&format!("vm {vm}"));
    let network = &found["status"]["network"];
    (
        found["metadata"]["uid"].clone(),
        network["ip"].clone(),
        network["mac"].clone(),
    )
}

#[test]
fn what_a_group_asks_for_is_shown_as_it_was_written_and_a_change_of_it_replaces_its_vms() {
    inhabited(|house, plugs| {
        able(&plugs);
        let asked = |rate: &str| {
            format!(
                "{{port_mappings: [{{host_port: 8080, guest_port: 80}}], bandwidth: {{ingress_rate: {rate}, ingress_burst: 1M}}, args: {{K8S_POD_NAME: pod}}, ips: [10.77.0.77], mac: \"02:00:00:00:00:77\"}}"
            )
        };
        house.apply(&asking(1, &asked("10M")));
        let shown = |rate: u64| {
            json!({
                "port_mappings": [{"host_port": 8080, "guest_port": 80, "protocol": "tcp"}],
                "bandwidth": {"ingress_rate": rate, "ingress_burst": 1_000_000},
                "args": {"K8S_POD_NAME": "pod"},
                "ips": ["10.77.0.77"],
                "mac": "02:00:00:00:00:77",
            })
        };
        let spec = |what: &str, path: &str| house.get(what).pointer(path).cloned().unwrap();
        assert_eq!(
            spec("hg pod", "/spec/template/network/cni"),
            shown(10_000_000)
        );
        assert_eq!(spec("vm pod-1", "/spec/network/cni"), shown(10_000_000));
        let yaml = house.ctl("get vm pod-1 -o yaml");
        for line in [
            "host_port: 8080",
            "ingress_rate: 10000000",
            "- 10.77.0.77",
            "mac: 02:00:00:00:00:77",
        ] {
            assert!(yaml.contains(line), "{line} is not in {yaml}");
        }
        let described = house.ctl("describe vm/pod-1");
        for line in [
            "8080:80/tcp",
            "ingress_rate=10000000",
            "K8S_POD_NAME=pod",
            "10.77.0.77",
        ] {
            assert!(described.contains(line), "{line} is not in {described}");
        }
        let (uid, ip, mac) = identity(&house, "pod-1");
        assert_eq!(
            (&ip, &mac),
            (&json!("10.77.0.77"), &json!("02:00:00:00:00:77"))
        );
        assert_reaches_its_gateway(&guest(&house, "pod-1"));
        let limit = |rate: &str| {
            let link = spec("vm pod-1", "/status/network/host_link");
            let shaped = run(&format!("tc qdisc show dev {}", link.as_str().unwrap()));
            assert!(shaped.contains(rate), "{shaped}");
        };
        limit("10Mbit");

        let same = house.write("same.yaml", &asking(1, &asked("10000k")));
        assert!(house.ctl(&format!("apply -f {same}")).contains("unchanged"));
        let other = house.write("other.yaml", &asking(1, &asked("20M")));
        let output = house.try_ctl(&format!("diff -f {other}"));
        let diff = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(diff.contains("create it again"), "{diff}");
        house.apply(&asking(1, &asked("20M")));
        house.until("pod-1 is replaced", || {
            (identity(&house, "pod-1").0 != uid && is_ready(&house, "pod-1").is_some())
                .then_some(())
        });
        assert_eq!(spec("vm pod-1", "/spec/network/cni"), shown(20_000_000));
        limit("20Mbit");
        let (_, same_ip, same_mac) = identity(&house, "pod-1");
        assert_eq!((same_ip, same_mac), (ip, mac));
        house.ctl("delete hg pod --wait=20s");
        assert_eq!(left(&house.run), [""; 0]);
    });
}

#[test]
fn addresses_that_a_group_lists_are_its_vms_in_order_and_only_who_moves_is_replaced() {
    inhabited(|house, plugs| {
        plugs.bridge("cni0", "10.77.0.0/24");
        house.apply(&asking(2, "{ips: [10.77.0.50, 10.77.0.51]}"));
        let ips = || ["pod-1", "pod-2"].map(|vm| identity(&house, vm).1);
        assert_eq!(ips(), ["10.77.0.50", "10.77.0.51"]);
        let uids = || ["pod-1", "pod-2"].map(|vm| identity(&house, vm).0);
        let before = uids();
        // The address of the second VM changes.
        let file = house.write("m.yaml", &asking(2, "{ips: [10.77.0.50, 10.77.0.61]}"));
        house.ctl(&format!("apply -f {file}"));
        house.until("pod-2 has its new address", || {
            (ips()[1] == "10.77.0.61" && is_ready(&house, "pod-2").is_some()).then_some(())
        });
        let after = uids();
        assert_eq!(
            (&after[0], ips()[0].as_str()),
            (&before[0], Some("10.77.0.50"))
        );
        assert_ne!(after[1], before[1]);
        house.stays(Duration::from_secs(1), uids);
        // An added VM gets its listed address. A VM keeps an address that is no longer listed.
        house.apply(&asking(3, "{ips: [10.77.0.50, 10.77.0.61, 10.77.0.52]}"));
        assert_eq!(identity(&house, "pod-3").1, "10.77.0.52");
        house.apply(&pod(3));
        assert_eq!(
            (uids(), identity(&house, "pod-3").1),
            (after, json!("10.77.0.52"))
        );
    });
}

#[test]
fn a_vm_made_on_demand_asks_for_its_own_and_shares_nothing_that_only_one_can_have() {
    inhabited(|house, plugs| {
        able(&plugs);
        let group = asking(
            1,
            "{port_mappings: [{host_port: 8080, guest_port: 80}], bandwidth: {egress_rate: 5M, egress_burst: 1M}, ips: [10.77.0.50], mac: \"02:00:00:00:00:50\"}",
        );
        house.apply(&group);
        house.ctl("vm add pod --name plain --wait");
        house.ctl(
            "vm add pod --name own --ip 10.77.0.99 --mac 02:00:00:00:00:99 --cni-arg K8S_POD_NAME=own --port-mapping 127.0.0.1:8053:53/udp --port-mapping 8081:80 --bandwidth ingress_rate=8M,ingress_burst=1M --wait",
        );
        let network = |vm: &str| house.get(&format!("vm {vm}"))["spec"]["network"]["cni"].clone();
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
        let (_, ip, mac) = identity(&house, "own");
        assert_eq!((ip, mac), (json!("10.77.0.99"), json!("02:00:00:00:00:99")));
        assert_ne!(identity(&house, "plain").1, "10.77.0.50");
        assert_reaches_its_gateway(&guest(&house, "own"));
        assert!(
            house
                .ctl("describe vm/own")
                .contains("with own port mappings")
        );
        assert!(run("iptables-save -t nat").contains("--to-destination 10.77.0.99:80"));

        // The VM keeps its options when it is re-created.
        let before = identity(&house, "own");
        let file = house.write("m.yaml", &group.replace("ram_mb: 128", "ram_mb: 256"));
        house.ctl(&format!("apply -f {file}"));
        house.until("own is replaced", || {
            let now = identity(&house, "own");
            (now.0 != before.0 && is_ready(&house, "own").is_some()).then_some(())
        });
        let after = identity(&house, "own");
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
            let refusal = house.refused(&format!("vm add pod --name no {arguments}"), status);
            assert!(refusal.contains(expected), "{arguments}: {refusal}");
        }
        house.apply(&slots(1, ""));
        let refusal = house.refused("vm add sandbox --name no --ip 10.77.0.5", 1);
        assert!(
            refusal.contains("its group is in mode isolated"),
            "{refusal}"
        );
    });
}

#[test]
fn a_vm_of_the_same_name_has_the_same_address_and_mac_after_a_replacement() {
    inhabited(|house, plugs| {
        for chain in ["bridge", "ptp"] {
            match chain {
                "bridge" => plugs.bridge("cni0", "10.77.0.0/24"),
                _ => plugs.ptp("10.78.0.0/24"),
            }
            house.apply(&pod(3));
            let all = || ["pod-1", "pod-2", "pod-3"].map(|vm| identity(&house, vm));
            let before = all();
            house.apply(&pod(3).replace("ram_mb: 128", "ram_mb: 256"));
            house.until("all VMs are replaced", || {
                let vms = ["pod-1", "pod-2", "pod-3"];
                let ready = vms.iter().all(|vm| is_ready(&house, vm).is_some());
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
            house.ctl("delete hg pod --wait=20s");
            assert_eq!(left(&house.run), [""; 0]);
        }
    });
}

#[test]
fn a_vm_of_the_same_name_has_the_same_address_and_mac_after_a_reboot() {
    inhabited(|mut house, plugs| {
        plugs.bridge("cni0", "10.77.0.0/24");
        // The addresses are not in the order in which the plugin allocates them.
        house.apply(&pod(3));
        house.ctl("delete vm/pod-1 --wait=20s");
        house.ctl("wait hg/pod --for ready --timeout 20s");
        let before = ["pod-1", "pod-2", "pod-3"].map(|vm| identity(&house, vm));
        house.kill();
        lose_the_run_directory(&house);
        begin_another_boot();
        house.start();
        for vm in ["pod-1", "pod-2", "pod-3"] {
            house.until("the VM is ready", || is_ready(&house, vm));
        }
        let after = ["pod-1", "pod-2", "pod-3"].map(|vm| identity(&house, vm));
        assert_eq!(after, before);
    });
}

/// Status, reason and message of the condition `Net`.
fn condition(house: &House) -> (Value, Value, String) {
    let vm = house.get("vm pod-1");
    let mut conditions = vm["status"]["conditions"].as_array().into_iter().flatten();
    let net = conditions.find(|condition| condition["type"] == "Net");
    let net = net.cloned().unwrap_or_default();
    let message = message(house, "pod-1", "Net");
    (net["status"].clone(), net["reason"].clone(), message)
}

#[test]
fn an_add_that_only_another_configuration_can_mend_waits_for_one_and_is_not_repeated() {
    inhabited(|house, plugs| {
        let file = house.write("m.yaml", &pod(1));
        for code in [7, 2] {
            plugs.recorders("10.78.0.0/24");
            plugs.fail("two", "ADD", code);
            house.ctl(&format!("apply -f {file}"));
            house.until("the condition reports it", || {
                let (status, reason, message) = condition(&house);
                let reported =
                    message.contains(&format!("code {code}")) && message.contains("`two`");
                (status == "False" && reason == "Invalid" && reported).then_some(())
            });
            std::thread::sleep(Duration::from_secs(1));
            plugs.heard();
            std::thread::sleep(Duration::from_secs(5));
            assert_eq!(plugs.heard(), [""; 0], "{code}");
            plugs.unsay();
            // The file is saved again.
            plugs.recorders("10.78.0.0/24");
            house.within(Duration::from_secs(3), "ADD is retried", || {
                is_ready(&house, "pod-1")
            });
            house.ctl("delete hg pod --wait=20s");
        }
        // A capability that no plugin declares.
        house.write(
            "m.yaml",
            &asking(1, "{port_mappings: [{host_port: 80, guest_port: 80}]}"),
        );
        house.ctl(&format!("apply -f {file}"));
        house.until("the condition reports it", || {
            let (_, reason, message) = condition(&house);
            let reported = message.contains("cni.port_mappings needs the capability portMappings")
                && message.contains("(one, two, three)");
            (reason == "Invalid" && reported).then_some(())
        });
        able(&plugs);
        house.within(Duration::from_secs(3), "the VM is ready", || {
            is_ready(&house, "pod-1")
        });
        house.ctl("delete hg pod --wait=20s");
        assert_eq!(left(&house.run), [""; 0]);
    });
}

#[test]
fn a_network_that_cannot_serve_is_a_condition_in_the_plugins_words_and_passes() {
    inhabited(|house, plugs| {
        plugs.recorders("10.78.0.0/24");
        // By default the recorders behave like Debian's plugins, which do not support 1.1.0.
        let versions = json!({"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]});
        for plugin in ["one", "two", "three"] {
            plugs.say(plugin, "VERSION", &versions.to_string(), 0);
            plugs.say(plugin, "STATUS", "", 0);
            let answer = json!({"cniVersion": "1.1.0", "interfaces": [], "ips": []});
            plugs.say(plugin, "ADD", &answer.to_string(), 0);
            plugs.say(plugin, "DEL", "", 0);
        }
        for code in [50, 51] {
            // Each case uses another network, because a STATUS success is cached for a moment.
            plugs.recorders(&format!("10.78.{code}.0/24"));
            let list = std::fs::read_to_string(at("conf/10-net.conflist")).unwrap();
            std::fs::write(at("conf/10-net.conflist"), list.replace("1.0.0", "1.1.0")).unwrap();
            plugs.heard();
            plugs.fail("two", "STATUS", code);
            let file = house.write("m.yaml", &pod(1));
            house.ctl(&format!("apply -f {file}"));
            house.until("the condition reports it", || {
                let (status, _, message) = condition(&house);
                let expected = format!(
                    "`two` failed STATUS with code {code}: configured to fail (by the test)"
                );
                (status == "False" && message.contains(&expected)).then_some(())
            });
            assert!(!plugs.heard().iter().any(|heard| heard.starts_with("ADD")));
            let doctor = house.try_ctl("doctor");
            let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
            assert!(
                doctor.contains(&format!("STATUS with code {code}")),
                "{doctor}"
            );
            plugs.say("two", "STATUS", "", 0);
            // The daemon retries by itself. The result contains no address, which is the next message.
            house.until("STATUS is called again", || {
                message(&house, "pod-1", "Net")
                    .contains("no IPv4 address")
                    .then_some(())
            });
            house.ctl("delete hg pod --wait=20s");
        }
    });
}

#[test]
fn a_result_that_the_interface_does_not_bear_out_is_told_and_not_asked_for_all_the_time() {
    inhabited(|house, plugs| {
        plugs.recorders("10.78.0.0/24");
        let plugin = "#!/bin/sh
[ \"$CNI_COMMAND\" = VERSION ] || echo \"$CNI_COMMAND one\" >>\"$(dirname \"$0\")/../heard\"
out=$(/usr/lib/cni/ptp) || { echo \"$out\"; exit 1; }
echo \"$out\" | sed 's=\"10.78.0.2/24\"=\"10.78.0.9/24\"='
";
        std::fs::write(at("bin/one"), plugin).unwrap();
        let file = house.write("m.yaml", &pod(1));
        house.ctl(&format!("apply -f {file}"));
        house.until("the condition reports it", || {
            let expected = "the result assigns 10.78.0.9/24 to eth0, which has ";
            condition(&house).2.contains(expected).then_some(())
        });
        plugs.heard();
        std::thread::sleep(Duration::from_secs(10));
        let adds = plugs
            .heard()
            .iter()
            .filter(|heard| *heard == "ADD one")
            .count();
        assert!(adds <= 6, "{adds} in 10 s");
        plugs.recorder("one");
        house.until("the VM is ready", || is_ready(&house, "pod-1"));
    });
}
