//! CNI groups, with Debian's plugins: from a manifest to guests that talk, what is missing, what is changed by others.
//! Out of scope: plugins that fail, daemons that die (`cni_faults`); the stages alone (`tests/kernel/cni_stages`).

use std::time::Duration;

use rustix::mount::UnmountFlags;
use serde_json::{Value, json};
use slicectl::host::tap::Framing;

use test_support::cni_networks::{
    self, CniNetworks, at, guest, is_ready, left, message, pod, with_daemon,
};
use test_support::frames::{self, ICMP};
use test_support::guest_stack::{Guest, Kind::Ping};
use test_support::harness::{Harness, Place};
use test_support::kernel::{Canaries, ip, run};

/// The specification's, for what is seen through events.
const BOUND: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(5);

/// Pings its gateway, which answers.
#[track_caller]
pub fn assert_reaches_its_gateway(guest: &Guest) {
    guest.probe(7, guest.gateway, Ping);
    let answer = guest.receive_packet(PATIENCE, |seen| {
        (seen.source, seen.destination, seen.protocol) == (guest.gateway, guest.ip, ICMP)
    });
    assert!(answer.is_some(), "no answer to a ping");
}

fn inside(netns: &Value, words: &str) -> Value {
    let netns = netns.as_str().expect("a namespace");
    serde_json::from_str(&run(&format!("nsenter --net={netns} ip -j -d {words}"))).expect("JSON")
}

#[test]
fn a_cni_group_is_connected_talks_grows_shrinks_and_goes_without_a_trace() {
    with_daemon(|harness, cni_networks| {
        let canaries = Canaries::release();
        cni_networks.bridge("cni0", "10.77.0.0/24");
        harness.apply(&pod(2));
        let vm = harness.get("vm pod-1");
        let network = &vm["status"]["network"];
        assert_eq!(network["mode"], "cni");
        assert_eq!(
            (&network["gateway"], &network["prefix_len"]),
            (&json!("10.77.0.1"), &json!(24))
        );
        let eth = inside(&network["netns"], "addr show dev eth0");
        assert_eq!(
            (&network["ip"], &network["mac"]),
            (&eth[0]["addr_info"][0]["local"], &eth[0]["address"])
        );
        assert_eq!(
            inside(&network["netns"], "link show dev tap0")[0]["ifname"],
            network["tap"]
        );
        let host_link = network["host_link"].as_str().expect("a host link");
        let seen = ip(&format!("link show dev {host_link}"));
        assert_eq!(
            (&seen[0]["linkinfo"]["info_kind"], &seen[0]["master"]),
            (&json!("veth"), &json!("cni0"))
        );
        let lease = harness.get("lease pod-1");
        assert_eq!(lease["ip"], network["ip"], "{lease}");

        let (one, two) = (guest(&harness, "pod-1"), guest(&harness, "pod-2"));
        assert_reaches_its_gateway(&one);
        assert_reaches_its_gateway(&two);
        assert_receives(&one, &two);
        assert_receives(&two, &one);

        let (mac, uid) = (network["mac"].clone(), vm["metadata"]["uid"].clone());
        harness.apply(&pod(3));
        assert_reaches_its_gateway(&guest(&harness, "pod-3"));
        harness.apply(&pod(1));
        harness.until("one is left", || (harness.vms() == ["pod-1"]).then_some(()));
        harness.until("the leases of the others are gone", || {
            (harness.get("leases")["items"].as_array()?.len() == 1).then_some(())
        });
        let vm = harness.get("vm pod-1");
        assert_eq!(
            (&vm["status"]["network"]["mac"], &vm["metadata"]["uid"]),
            (&mac, &uid)
        );
        assert_receives_nothing_new(&harness, &one);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        harness.ctl("delete hg pod --wait=20s");
        assert_eq!(left(&harness.run), [""; 0]);
        canaries.assert_alive();
    });
}

/// A packet of one guest's comes to the other, who was asked for its MAC.
#[track_caller]
fn assert_receives(from: &Guest, to: &Guest) {
    from.send(&frames::who_has(from.mac, from.ip, to.ip));
    let asked = to.receive(PATIENCE, |frame| {
        frame.get(12..14) == Some(&[8, 6]) && frame.get(38..42) == Some(&to.ip.octets())
    });
    assert!(asked.is_some(), "a question that never came");
    from.send_ip_to(to.mac, &from.packet(8, to.ip, Ping));
    let received = to.receive_packet(PATIENCE, |seen| frames::marked(&seen.payload) == Some(8));
    assert_eq!(received.expect("a packet").source, from.ip);
}

#[track_caller]
fn assert_receives_nothing_new(harness: &Harness, guest: &Guest) {
    assert_reaches_its_gateway(guest);
    harness.stays(Duration::from_millis(300), || {
        harness.get("vm pod-1")["status"].clone()
    });
}

#[test]
fn point_to_point_and_port_mappings_leave_nothing_either() {
    with_daemon(|harness, cni_networks| {
        for name in ["ptp", "portmap"] {
            cni_networks.configure(&match name {
                "ptp" => json!([{"type": "ptp", "ipMasq": true, "mtu": 1400, "ipam": cni_networks::ipam("10.78.0.0/24")}, {"type": "firewall"}]),
                _ => json!([{"type": "ptp", "ipMasq": true, "ipam": cni_networks::ipam("10.78.0.0/24")},
                            {"type": "portmap", "capabilities": {"portMappings": true}}]),
            });
            harness.apply(&pod(2));
            let network = &harness.get("vm pod-2")["status"]["network"];
            assert_eq!(network["mtu"], if name == "ptp" { 1400 } else { 1500 });
            assert_reaches_its_gateway(&guest(&harness, "pod-1"));
            assert_reaches_its_gateway(&guest(&harness, "pod-2"));
            harness.ctl("delete hg pod --wait=20s");
            assert_eq!(left(&harness.run), [""; 0], "{name}");
        }
    });
}

#[test]
fn a_missing_network_or_plugin_is_a_condition_with_the_places_searched_and_heals() {
    with_daemon(|harness, cni_networks| {
        let file = harness.write("m.yaml", &pod(1));
        harness.ctl(&format!("apply -f {file}"));
        let reported = |words: &[&str]| {
            harness.until(&format!("a condition with {words:?}"), || {
                let message = message(&harness, "pod-1", "Net");
                words
                    .iter()
                    .all(|word| message.contains(word))
                    .then_some(())
            });
        };
        let conf = at("conf").display().to_string();
        reported(&["`net`", &conf]);
        // Of another name.
        let other = json!({"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "ptp"}]});
        std::fs::write(at("conf/05-other.conflist"), other.to_string()).unwrap();
        reported(&["`net`", &conf]);
        cni_networks
            .configure(&json!([{"type": "one", "ipam": cni_networks::ipam("10.77.0.0/24")}]));
        let bin = at("bin").display().to_string();
        reported(&["`one`", &bin, "/usr/lib/cni"]);
        assert!(harness.ctl("describe vm/pod-1").contains(&bin));
        cni_networks.recorder("one");
        harness.until("the plugin is found", || is_ready(&harness, "pod-1"));
        assert_reaches_its_gateway(&guest(&harness, "pod-1"));
        harness.ctl("delete hg pod --wait=20s");

        std::fs::remove_file(at("conf/10-net.conflist")).unwrap();
        harness.ctl(&format!("apply -f {file}"));
        reported(&["`net`", &conf]);
        // Whatever the backoff has come to.
        std::thread::sleep(Duration::from_secs(2));
        cni_networks.ptp("10.78.0.0/24");
        harness.within(BOUND, "the network is found", || {
            is_ready(&harness, "pod-1")
        });
    });
}

#[test]
fn a_changed_configuration_is_for_new_vms_and_running_ones_keep_what_they_have() {
    with_daemon(|harness, cni_networks| {
        cni_networks.bridge("cni0", "10.77.0.0/24");
        harness.apply(&pod(1));
        let network = || harness.get("vm pod-1")["status"]["network"].clone();
        let before = network();
        cni_networks.bridge("cni1", "10.79.0.0/24");
        harness.within(BOUND, "it is told", || {
            let reported = harness.ctl("describe vm/pod-1");
            reported.contains("configuration has changed").then_some(())
        });
        assert!(is_ready(&harness, "pod-1").is_some());
        harness.apply(&pod(2));
        assert_eq!(network(), before);
        assert_eq!(
            harness.get("vm pod-2")["status"]["network"]["gateway"],
            "10.79.0.1"
        );
        assert_reaches_its_gateway(&guest(&harness, "pod-1"));
        assert_reaches_its_gateway(&guest(&harness, "pod-2"));
        assert!(
            !harness
                .ctl("describe vm/pod-2")
                .contains("configuration has changed")
        );

        // Put back, it is as if nothing had been.
        cni_networks.bridge("cni0", "10.77.0.0/24");
        harness.within(BOUND, "it is told no more", || {
            message(&harness, "pod-1", "Net").is_empty().then_some(())
        });
        // Gone, nobody minds who is connected; and DEL goes by what ADD went by.
        std::fs::remove_file(at("conf/10-net.conflist")).unwrap();
        harness.within(BOUND, "it is told again", || {
            (!message(&harness, "pod-1", "Net").is_empty()).then_some(())
        });
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        harness.ctl("delete hg pod --wait=20s");
        assert_eq!(left(&harness.run), [""; 0]);
    });
}

#[test]
fn a_change_of_a_configuration_is_noticed_when_nothing_else_has_happened_for_long() {
    with_daemon(|harness, cni_networks| {
        cni_networks.ptp("10.78.0.0/24");
        harness.apply(&pod(1));
        let file = at("conf/10-net.conflist");
        let here = std::fs::read_to_string(&file).unwrap();
        let other = here.replace("10.78.0.0", "10.79.0.0");
        let changes: [(&str, bool, &dyn Fn()); 4] = [
            ("overwritten", true, &|| {
                std::fs::write(&file, &other).unwrap();
            }),
            ("replaced", false, &|| cni_networks.ptp("10.78.0.0/24")),
            ("removed", true, &|| std::fs::remove_file(&file).unwrap()),
            ("new", false, &|| std::fs::write(&file, &here).unwrap()),
        ];
        for (change, reported, make) in changes {
            // What building has stirred up in the kernel has the VM looked at, too.
            std::thread::sleep(Duration::from_secs(3));
            assert_eq!(
                message(&harness, "pod-1", "Net").is_empty(),
                reported,
                "{change}"
            );
            make();
            harness.within(BOUND, change, || {
                (message(&harness, "pod-1", "Net").is_empty() != reported).then_some(())
            });
        }
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
    });
}

/// Breaks a VM with a command: it is whole again in time, and an event tells of `word`; the one beside it is not touched.
fn repaired(word: &str, sabotage: impl FnOnce(&Place) -> String + Send) {
    with_daemon(|harness, cni_networks: CniNetworks| {
        cni_networks.bridge("cni0", "10.77.0.0/24");
        harness.apply(&pod(2));
        let place = cni_place(&harness);
        let beside = harness.get("vm pod-2");
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        run(&sabotage(&place));
        harness.within(BOUND, word, || {
            let reported = harness.messages("vm/pod-1", "Drift");
            reported
                .iter()
                .any(|reported| reported.contains(word))
                .then_some(())
        });
        harness.ctl("wait vm/pod-1 --for ready --timeout 10s");
        assert_reaches_its_gateway(&guest(&harness, "pod-1"));
        assert_eq!(harness.get("vm pod-2"), beside, "the VM beside it");
        harness.ctl("delete hg pod --wait=20s");
        assert_eq!(left(&harness.run), [""; 0]);
    });
}

/// A lease of plugins has no block.
fn cni_place(harness: &Harness) -> Place {
    let found = harness.get("vm pod-1");
    let network = &found["status"]["network"];
    let text = |key: &str| network[key].as_str().expect(key).to_owned();
    let netns = text("netns");
    Place {
        uid: found["metadata"]["uid"].as_str().expect("a uid").to_owned(),
        name: netns.rsplit('/').next().expect("a name").to_owned(),
        netns,
        link: text("host_link"),
        ip: text("ip"),
        gateway: text("gateway"),
        block: String::new(),
    }
}

macro_rules! repaired {
    ($($name:ident: $word:literal, $sabotage:expr;)*) => {$(
        #[test]
        fn $name() {
            repaired($word, $sabotage);
        }
    )*};
}

repaired! {
    a_deleted_tap_comes_back: "create tap0",
        |place| format!("ip -n {} link del tap0", place.name);
    a_deleted_redirect_comes_back: "redirect",
        |place| format!("nsenter --net={} tc filter del dev tap0 ingress", place.netns);
    a_vm_whose_veth_was_removed_on_the_host_is_attached_anew: "attach to the CNI network",
        |place| format!("ip link del {}", place.link);
    a_vm_whose_namespace_was_removed_is_attached_anew: "attach to the CNI network",
        |place| {
            // Not by commands: between two of them the daemon repairs what the first one did. The name is a link to the namespace.
            rustix::mount::unmount(&*place.netns, UnmountFlags::DETACH).expect("umount");
            std::fs::remove_file(&place.netns).expect("rm");
            std::fs::remove_file(format!("/run/netns/{}", place.name)).expect("rm");
            "true".to_owned()
        };
}

#[test]
fn a_tap_is_opened_with_and_without_vnet_headers_and_that_is_no_drift() {
    with_daemon(|harness, cni_networks| {
        cni_networks.ptp("10.78.0.0/24");
        harness.apply(&pod(1));
        for framing in [Framing::Plain, Framing::VnetHdr] {
            let found = harness.get("vm pod-1");
            let network = &found["status"]["network"];
            let text = |key: &str| network[key].as_str().expect(key);
            let address = |key: &str| text(key).parse().expect("an address");
            let guest = Guest::attach_via(
                text("netns").as_ref(),
                framing,
                test_support::lab::mac(text("mac")),
                address("ip"),
                address("gateway"),
            );
            assert_reaches_its_gateway(&guest);
            harness.stays(Duration::from_millis(800), || harness.messages("", "Drift"));
        }
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
    });
}
