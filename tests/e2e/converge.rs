//! From a manifest to what stands, and what scripts rely on.
//! Out of scope: changes (`reload`), packets.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::thread::LinkNameSpaceType;

use serde_json::Value;
use slicectl::host::Kind;
use slicectl::host::tap::Framing;

use test_support::guest_stack;
use test_support::harness::{Harness, slots, with_daemon};
use test_support::kernel::{ip, run};

#[test]
fn an_applied_slot_has_its_lease_namespace_tap_veth_routes_rules_and_no_process() {
    with_daemon(|harness| {
        let file = harness.write("m.yaml", &slots(2, "drop: [\"192.168.1.0/24\"]"));
        assert_eq!(
            harness.ctl(&format!("apply -f {file}")),
            "hostgroup/sandbox created\n"
        );
        harness.ctl("wait hostgroup/sandbox --for ready --timeout 30s");
        let place = harness.place("sandbox-1");
        let guest: Ipv4Addr = place.ip.parse().unwrap();
        let gateway: Ipv4Addr = place.gateway.parse().unwrap();
        assert_eq!(
            (guest.octets()[..3].to_vec(), guest.to_bits() & 3),
            (vec![169, 254, 100], 2)
        );
        assert_eq!(gateway.to_bits(), guest.to_bits() - 1);
        assert_eq!(harness.get("lease sandbox-1")["ip"], place.ip);
        let inside = |words: &str| run(&format!("ip netns exec {} {words}", place.name));
        let tap: Value = serde_json::from_str(&inside("ip -j -d addr show dev tap0")).unwrap();
        assert_eq!(tap[0]["linkinfo"]["info_data"]["type"], "tap");
        assert_eq!(tap[0]["addr_info"][0]["local"], place.gateway);
        assert_eq!(tap[0]["addr_info"][0]["prefixlen"], 30);
        assert!(inside("ip route show default").contains("dev up0"));
        assert!(inside("iptables -S").contains("192.168.1.0/24"));
        assert_eq!(inside("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
        let link = ip(&format!("addr show dev {}", place.link));
        assert_eq!(link[0]["linkinfo"]["info_kind"], "veth");
        let label = format!("/vm/sandbox-1@{}", place.uid);
        assert!(link[0]["ifalias"].as_str().unwrap().ends_with(&label));
        assert!(run("iptables-save -t nat").contains("-s 169.254.100.0/22"));
        let vm = harness.get("vm sandbox-1");
        assert_eq!(vm["status"]["vmm"]["state"], "none");
        assert_eq!(vm["status"]["vmm"]["pid"], Value::Null);
    });
}

#[test]
fn a_file_dropped_into_the_folder_is_converged_to() {
    with_daemon(|harness| {
        harness.save("sandbox.yml", &slots(1, ""));
        std::fs::create_dir(harness.conf().join("below")).unwrap();
        std::fs::write(
            harness.conf().join("below/no.yaml"),
            slots(1, "").replace("sandbox", "below"),
        )
        .unwrap();
        harness.within(Duration::from_secs(1), "one slot", || {
            (harness.get("vm sandbox-1")["status"]["ready"] == true).then_some(())
        });
        assert!(
            harness.get("hg below").is_null(),
            "the folder is not read below it"
        );
    });
}

#[test]
fn the_documented_minimal_form_works_where_the_vmm_is_none() {
    with_daemon(|harness| {
        harness.apply("config:\n  hypervisor: none\n  host_groups:\n    - name: small\n      network: {mode: isolated, drop: [10.0.0.0/8]}\n");
        let vm = harness.get("vm small-1");
        assert_eq!(
            (&vm["spec"]["vcpu"], &vm["spec"]["ram_bytes"]),
            (&2.into(), &(4_u64 << 30).into())
        );
        assert_eq!(harness.vms(), ["small-1"]);
    });
}

#[test]
fn standard_input_is_applied_too() {
    with_daemon(|harness| {
        let file = harness.write("m.yaml", &slots(1, ""));
        let output = run(&format!(
            "{} --socket {} apply -f - < {file}",
            env!("CARGO_BIN_EXE_slicectl"),
            harness.run.join("sliced.sock").display()
        ));
        assert_eq!(output, "hostgroup/sandbox created\n");
    });
}

/// Every key path of a value; the members of a list are one.
fn keys(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let at = format!("{at}.{key}");
                keys(value, &at, found);
                found.insert(at);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| keys(item, &format!("{at}[]"), found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn the_json_of_a_vm_has_the_documented_keys_and_reads_the_same_twice() {
    with_daemon(|harness| {
        harness.apply(&slots(1, "drop: [\"192.168.1.0/24\"]"));
        let vm = harness.get("vm sandbox-1");
        let mut found = BTreeSet::new();
        keys(&vm, "", &mut found);
        let documented = "
            .kind .metadata .metadata.name .metadata.uid .metadata.generation .metadata.group .metadata.created_at
            .metadata.deleting .metadata.finalizers .spec .status .status.ready .status.conditions
            .status.conditions[].type .status.conditions[].status .status.conditions[].reason
            .status.conditions[].message .status.conditions[].since .status.conditions[].observed_generation
            .status.network .status.network.mode .status.network.ip .status.network.prefix_len
            .status.network.gateway .status.network.mac .status.network.dns .status.network.netns
            .status.network.tap .status.network.host_link .status.network.mtu
            .status.firewall .status.firewall.default .status.firewall.allow .status.firewall.drop
            .status.firewall.on_deny .status.firewall.digest
            .status.vmm .status.vmm.hypervisor .status.vmm.pid .status.vmm.state .status.vmm.started_at
            .status.vmm.api_socket .status.vmm.log";
        for key in documented.split_whitespace() {
            assert!(found.contains(key), "{key} is missing in {vm:#}");
        }
        let types: Vec<&str> = vm["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, ["Lease", "Net", "Firewall", "Vmm", "Ready"]);
        assert_eq!(vm["kind"], "Vm");
        assert_eq!(vm["metadata"]["group"], "sandbox");
        assert_eq!(vm["status"]["firewall"]["default"], "allow");
        assert_eq!(
            vm["status"]["firewall"]["drop"],
            serde_json::json!(["192.168.1.0/24"])
        );
        assert!(vm["status"]["firewall"]["digest"].is_string());
        let again = harness.ctl("get vm/sandbox-1 -o json");
        assert_eq!(again, harness.ctl("get vms sandbox-1 -o json"));
        let list = harness.get("vms");
        assert_eq!(list, serde_json::json!({"items": [vm]}));
        for event in harness.events("") {
            let keys = event.as_object().unwrap().keys().map(String::as_str);
            // Objects without an identity of their own have no uid.
            let keys: BTreeSet<&str> = keys.filter(|key| *key != "uid").collect();
            assert_eq!(
                keys,
                BTreeSet::from(["time", "object", "reason", "message", "count", "type"])
            );
        }
    });
}

#[test]
fn the_answered_namespace_is_entered_by_nsenter_and_by_ip_netns() {
    with_daemon(|harness| {
        harness.apply(&slots(1, ""));
        let place = harness.place("sandbox-1");
        let by_path = run(&format!(
            "nsenter --net={} readlink /proc/self/ns/net",
            place.netns
        ));
        let by_name = run(&format!(
            "ip netns exec $(basename {}) readlink /proc/self/ns/net",
            place.netns
        ));
        assert_eq!(by_path, by_name);
        assert_ne!(by_path, run("readlink /proc/self/ns/net"));
    });
}

/// Opens `tap0` in that namespace as a process of that uid would, on a thread that does nothing else any more.
fn open_tap(netns: &str, uid: u32, framing: Framing) -> Result<File, slicectl::host::Error> {
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| {
            let netns = File::open(netns).expect("the namespace");
            rustix::thread::move_into_link_name_space(
                netns.as_fd(),
                Some(LinkNameSpaceType::Network),
            )
            .expect("entered");
            // SAFETY: the bare system call changes this thread only, and with it go its capabilities (credentials(7)).
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
            assert_eq!(changed, 0);
            guest_stack::attach("tap0", framing)
        });
        opened.join().expect("the thread")
    })
}

#[test]
fn the_tap_is_opened_by_its_owner_with_and_without_vnet_headers_and_by_no_one_else_and_that_is_no_drift()
 {
    with_daemon(|harness| {
        harness.apply(&slots(1, "tap_owner: \"65534\""));
        let place = harness.place("sandbox-1");
        // As udev has it everywhere: who may open which TAP is the TAP's own affair.
        run("mknod -m 666 /run/tun c 10 200; mount --bind /run/tun /dev/net/tun");
        for framing in [Framing::Plain, Framing::VnetHdr] {
            let tap = open_tap(&place.netns, 65534, framing).expect("the owner may");
            harness.stays(Duration::from_millis(500), || harness.messages("", "Drift"));
            drop(tap);
        }
        let error = open_tap(&place.netns, 12345, Framing::Plain).expect_err("nobody else may");
        assert_eq!(error.kind, Kind::Denied);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
    });
}

#[test]
fn a_changed_default_route_needs_no_action() {
    with_daemon(|harness| {
        run(
            "ip link add u0 type bridge && ip addr add 192.0.2.1/24 dev u0 && ip link set u0 up && ip route add default via 192.0.2.2",
        );
        harness.apply(&slots(1, ""));
        run("ip route replace default via 192.0.2.3");
        run("ip route del default");
        harness.stays(Duration::from_millis(600), || harness.messages("", "Drift"));
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
    });
}

#[test]
fn kinds_are_plural_or_singular_with_blank_or_slash() {
    with_daemon(|harness| {
        harness.apply(&slots(1, ""));
        let expected = harness.ctl("get vm/sandbox-1 -o name");
        assert_eq!(expected, "vm/sandbox-1\n");
        for words in ["vm sandbox-1", "vms sandbox-1", "vms/sandbox-1", "vms"] {
            assert_eq!(harness.ctl(&format!("get {words} -o name")), expected);
        }
        for words in [
            "hg sandbox",
            "hostgroup/sandbox",
            "hostgroups",
            "hg/sandbox",
        ] {
            assert_eq!(
                harness.ctl(&format!("get {words} -o name")),
                "hostgroup/sandbox\n"
            );
        }
        assert_eq!(harness.ctl("get leases -o name"), "lease/sandbox-1\n");
    });
}

#[test]
fn exit_statuses_are_0_done_1_failed_2_wrong_usage() {
    with_daemon(|harness| {
        harness.refused("get vm nobody", 1);
        harness.refused("frobnicate", 2);
        harness.refused("wait hg/nobody --for ready --timeout 100ms", 1);
        let file = harness.write(
            "bad.yaml",
            "config: {host_groups: [{nam: x}, {name: Y_Y, network: {mode: isolated}}]}\n",
        );
        let output = harness.refused(&format!("apply -f {file}"), 1);
        assert!(
            output.contains("bad.yaml:1") && output.contains("name"),
            "{output}"
        );
        harness.ctl("get vms");
    });
}

#[test]
fn a_foreign_link_of_our_name_is_a_conflict_with_a_remedy_and_is_not_touched() {
    with_daemon(|harness| {
        harness.apply(&slots(1, ""));
        let place = harness.place("sandbox-1");
        run(&format!(
            "ip link del {0}; ip link add {0} type bridge",
            place.link
        ));
        let reported = harness.until("the conflict", || conflict(&harness));
        assert!(
            reported.contains(&place.link) && reported.contains("ip link"),
            "{reported}"
        );
        assert_eq!(
            ip(&format!("link show {}", place.link))[0]["linkinfo"]["info_kind"],
            "bridge"
        );
        run(&format!("ip link del {}", place.link));
        harness.ctl("wait vm/sandbox-1 --for ready --timeout 20s");
    });
}

fn conflict(harness: &Harness) -> Option<String> {
    let vm = harness.get("vm sandbox-1");
    let conditions = vm["status"]["conditions"].as_array()?.iter();
    let mut found = conditions.filter(|c| c["reason"] == "Conflict" && c["type"] == "Net");
    Some(found.next()?["message"].as_str()?.to_owned())
}
