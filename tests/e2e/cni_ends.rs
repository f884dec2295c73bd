//! CNI groups end, and come back after a boot, whatever plugins, other programs and other runtimes do.
//! Out of scope: the stage alone, with more kinds of damage (`tests/kernel/cni_stages/undo.rs`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::cni::assert_reaches_its_gateway;
use test_support::cni_networks::{
    CniNetworks, NETWORK, at, guest, ipam, is_ready, left, plugin_dirs, pod, use_plugins,
    with_daemon,
};
use test_support::harness::{self, Harness};
use test_support::kernel::run;

/// A test with a daemon for each set of plugins.
pub fn with_each(test: impl Fn(&mut Harness, &CniNetworks, &Path) + Sync) {
    for dir in plugin_dirs() {
        harness::empty(|mut harness| {
            let cni_networks = CniNetworks::install();
            cni_networks.configure_daemon(&mut harness);
            use_plugins(&mut harness, &dir);
            harness.start();
            test(&mut harness, &cni_networks, &dir);
        });
    }
}

pub fn chains() -> [(&'static str, Value); 2] {
    let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": ipam("10.78.0.0/24")});
    let ptp = json!({"type": "ptp", "ipMasq": true, "ipam": ipam("10.78.0.0/24")});
    [bridge, ptp].map(|main| {
        let name = if main["type"] == "ptp" {
            "ptp"
        } else {
            "bridge"
        };
        (name, json!([main, {"type": "firewall"}]))
    })
}

/// Address and MAC of each VM.
fn identities(harness: &Harness) -> BTreeMap<String, (String, String)> {
    let network = |vm: &String| harness.get(&format!("vm {vm}"))["status"]["network"].clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = harness.vms().into_iter().map(|vm| {
        let network = network(&vm);
        (vm, (text(&network["ip"]), text(&network["mac"])))
    });
    all.collect()
}

#[test]
fn a_group_whose_rules_were_lost_is_deleted_without_a_trace() {
    let losses = [
        "iptables -t nat -F",
        "iptables -t nat -F; iptables -t nat -X",
        "nft flush ruleset",
    ];
    with_each(|harness, cni_networks, dir| {
        for (name, chain) in chains() {
            for loss in losses {
                cni_networks.configure(&chain);
                harness.apply(&pod(2));
                run(loss);
                harness.ctl("delete hg pod --wait=30s");
                assert_eq!(
                    left(&harness.run),
                    [""; 0],
                    "{}: {name}: {loss}",
                    dir.display()
                );
            }
        }
    });
}

#[test]
fn after_a_reboot_that_keeps_var_lib_every_vm_has_its_address_and_its_mac() {
    with_each(|harness, cni_networks, dir| {
        for (boot, (name, chain)) in chains().into_iter().enumerate() {
            cni_networks.configure(&chain);
            harness.apply(&pod(3));
            let before = identities(harness);
            harness.kill();
            harness.unmount_namespaces();
            run(&format!(
                "rm -rf {0} /run/netns/slice-*
                 nft flush ruleset; ip link del cni0 2>/dev/null || true
                 echo 6e2a7d35-0f0a-4c0f-9d0c-3b3c1ad7c0d{boot} >/run/boot_id
                 mount --bind /run/boot_id /proc/sys/kernel/random/boot_id",
                harness.run.display()
            ));
            harness.start();
            harness.until("all are ready", || {
                let ready = |vm: &String| is_ready(harness, vm).is_some();
                harness.vms().iter().all(ready).then_some(())
            });
            let case = format!("{}: {name}", dir.display());
            assert_eq!(identities(harness), before, "{case}");
            for vm in harness.vms() {
                assert_reaches_its_gateway(&guest(harness, &vm));
            }
            assert_eq!(harness.messages("", "AddressChanged"), [""; 0], "{case}");
            harness.ctl("delete hg pod --wait=30s");
            assert_eq!(left(&harness.run), [""; 0], "{case}");
        }
    });
}

#[test]
fn daemons_that_are_killed_while_groups_go_leave_nothing_either() {
    with_each(|harness, cni_networks, dir| {
        let (_, chain) = chains()[0].clone();
        cni_networks.configure(&chain);
        for round in 0..4_u64 {
            harness.apply(&pod(4));
            harness.ctl("delete hg pod");
            std::thread::sleep(Duration::from_millis(40 + 60 * round));
            harness.kill();
            harness.start();
            harness.until("all are gone", || harness.vms().is_empty().then_some(()));
            harness.until("nothing is left", || {
                left(&harness.run).is_empty().then_some(())
            });
            let reported = harness.messages("", "DetachFailed");
            assert_eq!(reported, [""; 0], "{}: round {round}", dir.display());
        }
    });
}

#[test]
fn a_plugin_that_lets_go_of_nothing_does_not_keep_a_group_and_is_reported_until_it_does() {
    with_daemon(|harness, cni_networks| {
        cni_networks.recorders("10.78.0.0/24");
        harness.apply(&pod(1));
        cni_networks.fail("two", "DEL", 999);
        let waited = harness.try_ctl("delete hg pod --wait=2s");
        let output = String::from_utf8_lossy(&waited.stderr).into_owned();
        for word in ["vm/pod-1", "Net", "`two`", "configured to fail"] {
            assert!(output.contains(word), "{word}: {output}");
        }
        harness.ctl("wait hg/pod --for deleted --timeout 90s");
        let reported = harness.messages("", "DetachFailed").join("\n");
        assert!(
            reported.contains("`two`") && reported.contains("configured to fail"),
            "{reported}"
        );
        // Everything else is released, and one record contains the plugin that failed.
        let rest = left(&harness.run);
        assert_eq!(rest.len(), 1, "{rest:?}");
        assert!(rest[0].contains("/slice/abandoned/"), "{rest:?}");
        let previewed = harness.ctl("gc --dry-run");
        assert!(
            previewed.contains("CNI attachment that plugins failed to release"),
            "{previewed}"
        );
        let doctor = String::from_utf8_lossy(&harness.try_ctl("doctor").stdout).into_owned();
        assert!(doctor.contains("CNI attachments not released"), "{doctor}");
        let refused = harness.try_ctl("gc");
        let output = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && output.contains("configured to fail"),
            "{output}"
        );

        // A new VM is not in its way.
        cni_networks.recorders("10.78.0.0/24");
        harness.apply(&pod(1));
        assert_reaches_its_gateway(&guest(&harness, "pod-1"));
        cni_networks.unsay();
        harness.ctl("gc");
        assert_reaches_its_gateway(&guest(&harness, "pod-1"));
        harness.ctl("delete hg pod --wait=30s");
        assert_eq!(left(&harness.run), [""; 0]);
    });
}

#[test]
fn a_gc_of_another_runtime_with_the_same_folders_finds_nothing_of_ours() {
    with_each(|harness, cni_networks, dir| {
        run("mount -t tmpfs t /var/lib; mkdir /var/lib/cni");
        std::fs::create_dir_all(at("cache")).unwrap();
        run(&format!(
            "mount --bind {} /var/lib/cni",
            at("cache").display()
        ));
        let (_, chain) = chains()[0].clone();
        cni_networks.configure(&chain);
        harness.apply(&pod(2));
        let before = (identities(harness), left(&harness.run));
        // What libcni's `GCNetworkList` lists, and has deleted of it what its caller does not name.
        let listed = std::fs::read_dir("/var/lib/cni/results");
        assert_eq!(listed.map_or(0, Iterator::count), 0);
        if dir.join("cnitool").exists() {
            run(&format!(
                "ip netns add theirs; CNI_PATH={0} NETCONFPATH={1} {0}/cnitool gc {NETWORK} /run/netns/theirs; ip netns del theirs",
                dir.display(),
                at("conf").display()
            ));
        }
        harness.restart();
        harness.ctl("wait hg/pod --for ready --timeout 20s");
        harness.stays(Duration::from_secs(1), || harness.messages("", "Drift"));
        assert_eq!((identities(harness), left(&harness.run)), before);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        harness.ctl("delete hg pod --wait=30s");
        assert_eq!(left(&harness.run), [""; 0]);
    });
}
