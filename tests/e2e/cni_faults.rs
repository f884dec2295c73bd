//! CNI groups whose plugins fail, hang or talk nonsense, and daemons that die beside them.
//! Out of scope: what goes well (`cni`); a crash before every single action (`tests/kernel/crash`).

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::cni::assert_reaches_its_gateway;
use test_support::cni_networks::{
    CniNetworks, NETWORK, at, guest, is_ready, left, message, pod, records, reservations,
    with_daemon,
};
use test_support::harness::{self, Harness, signal};
use test_support::kernel::{Canaries, run};

const DELS: [&str; 3] = ["DEL three", "DEL two", "DEL one"];
const ADDS: [&str; 3] = ["ADD one", "ADD two", "ADD three"];
const CHECKS: [&str; 3] = ["CHECK one", "CHECK two", "CHECK three"];
const SUBNET: &str = "10.78.0.0/24";

/// Applies one VM and does not wait.
fn apply_one(harness: &Harness) {
    let file = harness.write("m.yaml", &pod(1));
    harness.ctl(&format!("apply -f {file}"));
}

/// Until the Net condition says all of that.
#[track_caller]
fn reported(harness: &Harness, words: &[&str]) {
    harness.until(&format!("a condition with {words:?}"), || {
        let message = message(harness, "pod-1", "Net");
        words
            .iter()
            .all(|word| message.contains(word))
            .then_some(())
    });
}

/// One attachment, whole: nothing of an earlier try is left beside it.
#[track_caller]
fn assert_one_attachment(harness: &Harness) {
    assert_eq!(records().len(), 1, "{:?}", records());
    assert_eq!(reservations().len(), 1, "{:?}", reservations());
    assert_eq!(run("ip -o link show type veth").lines().count(), 1);
    assert_reaches_its_gateway(&guest(harness, "pod-1"));
}

#[track_caller]
fn assert_goes_without_a_trace(harness: &Harness) {
    harness.ctl("delete hg pod --wait=20s");
    assert_eq!(left(&harness.run), [""; 0]);
}

#[test]
fn an_error_at_any_place_of_the_chain_is_undone_in_reverse_and_reported_with_plugin_code_and_message()
 {
    with_daemon(|harness, cni_networks| {
        cni_networks.recorders(SUBNET);
        for (asked, plugin) in ["one", "two", "three"].into_iter().enumerate() {
            cni_networks.unsay();
            cni_networks.fail(plugin, "ADD", 7);
            cni_networks.calls();
            match asked {
                0 => apply_one(&harness),
                // Somebody saves the configuration: it is tried at once.
                _ => cni_networks.recorders(SUBNET),
            }
            reported(
                &harness,
                &[
                    &format!("`{plugin}`"),
                    "code 7",
                    "configured to fail",
                    "by the test",
                ],
            );
            let received = cni_networks.calls();
            let expected = [&ADDS[..=asked], &DELS].concat();
            // An earlier try may have been under way.
            let all = received
                .windows(expected.len())
                .any(|calls| calls == expected);
            assert!(all, "{received:?}: no {expected:?} in it");
            assert_eq!(reservations().len() + records().len(), 0);
            assert_eq!(run("ip -o link show type veth"), "");
        }
        cni_networks.unsay();
        cni_networks.recorders(SUBNET);
        harness.until("all is well", || is_ready(&harness, "pod-1"));
        assert_one_attachment(&harness);
        assert_goes_without_a_trace(&harness);
    });
}

#[test]
fn a_plugin_that_requests_a_retry_later_is_asked_again_by_itself() {
    with_daemon(|harness, cni_networks| {
        cni_networks.recorders(SUBNET);
        cni_networks.fail("two", "ADD", 11);
        apply_one(&harness);
        reported(&harness, &["`two`", "code 11"]);
        cni_networks.calls();
        let mut tries = 0;
        harness.until("two more tries", || {
            tries += cni_networks
                .calls()
                .iter()
                .filter(|received| *received == "ADD two")
                .count();
            (tries >= 2).then_some(())
        });
        cni_networks.unsay();
        harness.until("it is asked again", || is_ready(&harness, "pod-1"));
        assert_one_attachment(&harness);
    });
}

#[test]
fn an_invalid_result_and_a_plugin_that_hangs_are_reported_undone_and_repaired() {
    harness::empty(|mut harness| {
        let cni_networks = CniNetworks::install();
        cni_networks.configure_daemon(&mut harness);
        harness.args = vec!["--cni-deadline".into(), "1s".into()];
        harness.start();
        cni_networks.recorders(SUBNET);
        cni_networks.say("two", "ADD", "Segmentation fault", 0);
        apply_one(&harness);
        reported(&harness, &["`two`", "Segmentation fault"]);
        assert_eq!(cni_networks.calls()[2..5], DELS);

        cni_networks.unsay();
        cni_networks.hang("three", "ADD");
        cni_networks.recorders(SUBNET);
        reported(&harness, &["`three`", "1s"]);
        let pid = cni_networks.hanging().expect("it was started");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it runs on");
        harness.until("its work is undone", || {
            (records().len() + reservations().len() == 0).then_some(())
        });

        cni_networks.unsay();
        cni_networks.recorders(SUBNET);
        harness.until("all is well", || is_ready(&harness, "pod-1"));
        assert_one_attachment(&harness);

        // On the way down, too: the VM is not gone before its plugins have let go of it.
        cni_networks.fail("two", "DEL", 11);
        harness.ctl("delete hg pod");
        reported(&harness, &["`two`", "code 11"]);
        assert_eq!(records().len(), 1);
        cni_networks.unsay();
        harness.ctl("wait vm/pod-1 --for deleted --timeout 20s");
        assert_eq!(left(&harness.run), [""; 0]);
    });
}

#[test]
fn killed_while_a_plugin_hangs_the_next_life_has_exactly_one_attachment() {
    with_daemon(|mut harness, cni_networks| {
        cni_networks.recorders(SUBNET);
        cni_networks.hang("two", "ADD");
        apply_one(&harness);
        let pid = harness.until("it hangs", || cni_networks.hanging());
        harness.kill();
        assert_eq!(reservations().len(), 1, "the first plugin did its part");
        signal(pid, Signal::KILL);
        cni_networks.unsay();
        cni_networks.calls();
        harness.start();
        harness.until("all is well", || is_ready(&harness, "pod-1"));
        let received = cni_networks.calls();
        // CHECK follows when the VM is Ready.
        assert_eq!(received[..6], [DELS, ADDS].concat());
        assert_one_attachment(&harness);
        assert_goes_without_a_trace(&harness);
    });
}

/// uid, address and MAC of the VM.
fn identity(harness: &Harness) -> [Value; 3] {
    let vm = harness.get("vm pod-1");
    let network = &vm["status"]["network"];
    [&vm["metadata"]["uid"], &network["ip"], &network["mac"]].map(Value::clone)
}

#[test]
fn after_kill_9_a_vm_is_adopted_its_plugins_checked_once_and_its_packets_go_on() {
    with_daemon(|mut harness, cni_networks| {
        cni_networks.recorders(SUBNET);
        harness.apply(&pod(1));
        let guest = guest(&harness, "pod-1");
        let before = (
            harness::world_to_the_last_handle(),
            identity(&harness),
            harness.get("leases"),
        );
        cni_networks.calls();
        harness.kill();
        assert_reaches_its_gateway(&guest);
        harness.start();
        assert_reaches_its_gateway(&guest);
        harness.ctl("wait hg/pod --for ready --timeout 20s");
        harness.stays(Duration::from_secs(1), || harness.messages("", "Drift"));
        assert_reaches_its_gateway(&guest);
        assert_eq!(cni_networks.calls(), CHECKS);
        let after = (
            harness::world_to_the_last_handle(),
            identity(&harness),
            harness.get("leases"),
        );
        assert_eq!(after, before);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);

        // A CHECK that says no: it is attached anew.
        drop(guest);
        cni_networks.fail("three", "CHECK", 100);
        harness.restart();
        harness.until("it is told", || harness.messages("vm/pod-1", "Drift").pop());
        cni_networks.unsay();
        harness.ctl("wait hg/pod --for ready --timeout 20s");
        assert_one_attachment(&harness);
    });
}

#[test]
fn a_resync_has_the_plugins_check_all_again_and_what_only_they_can_see_is_made_good() {
    harness::empty(|mut harness| {
        let cni_networks = CniNetworks::install();
        cni_networks.configure_daemon(&mut harness);
        harness.args = vec!["--resync".into(), "1s".into()];
        harness.start();
        cni_networks.recorders(SUBNET);
        harness.apply(&pod(1));
        let received = harness.until("a second CHECK", || {
            let received = fs::read_to_string(at("received")).unwrap_or_default();
            (received.matches("CHECK three").count() >= 2).then_some(received)
        });
        let received: Vec<&str> = received.lines().take(9).collect();
        assert_eq!(received, [ADDS, CHECKS, CHECKS].concat());
        assert_eq!(harness.messages("", "Drift"), [""; 0]);

        // The routes inside are the plugins' business: we have a guest's packets redirected past them.
        let netns = harness.get("vm pod-1")["status"]["network"]["netns"].clone();
        let netns = netns.as_str().expect("a namespace");
        run(&format!("nsenter --net={netns} ip route flush dev eth0"));
        harness.until("it is told", || harness.messages("vm/pod-1", "Drift").pop());
        harness.until("the gate is open again", || {
            let tap = run(&format!(
                "nsenter --net={netns} ip -o link show up dev tap0 || true"
            ));
            (!tap.is_empty()).then_some(())
        });
        assert_one_attachment(&harness);
        assert_goes_without_a_trace(&harness);
    });
}

#[test]
fn a_lost_state_database_is_created_again_from_the_records_of_cni_vms() {
    with_daemon(|mut harness, cni_networks| {
        cni_networks.recorders(SUBNET);
        harness.apply(&pod(1));
        let guest = guest(&harness, "pod-1");
        let before = (harness::world_to_the_last_handle(), identity(&harness));
        cni_networks.calls();
        harness.kill();
        fs::remove_dir_all(harness.state()).unwrap();
        harness.start();
        harness.ctl("wait hg/pod --for ready --timeout 20s");
        assert_eq!(
            (harness::world_to_the_last_handle(), identity(&harness)),
            before
        );
        assert_eq!(cni_networks.calls(), CHECKS);
        assert_eq!(harness.get("lease pod-1")["ip"], before.1[1]);
        assert_reaches_its_gateway(&guest);
        assert_goes_without_a_trace(&harness);
    });
}

/// What a boot takes away of the kernel, and its id.
pub fn begin_another_boot() {
    run("ip link del cni0; iptables -F; iptables -t nat -F
         echo 6e2a7d35-0f0a-4c0f-9d0c-3b3c1ad7c0de >/run/boot_id
         mount --bind /run/boot_id /proc/sys/kernel/random/boot_id");
}

/// Everything that a boot takes away: namespaces and what reached into them, `/run`.
pub fn lose_the_run_directory(harness: &Harness) {
    harness.unmount_namespaces();
    run(&format!(
        "rm -rf {0} /run/netns/slice-*",
        harness.run.display()
    ));
    harness.until("the veths went with their namespaces", || {
        run("ip -o link show type veth").is_empty().then_some(())
    });
}

#[test]
fn when_everything_is_lost_the_cache_still_lists_what_to_release_and_foreign_attachments_stay() {
    with_daemon(|mut harness, cni_networks| {
        let canaries = Canaries::release();
        cni_networks.bridge("cni0", SUBNET);
        harness.apply(&pod(2));
        harness.kill();
        let held = left(&harness.run);
        assert!(held.iter().any(|left| left.starts_with("-A ")), "{held:?}");

        // A stranger's record and reservation, and one of ours that no record tells of.
        let record = &records()[0];
        let ours = record.file_name().unwrap().to_str().unwrap();
        let container = ours
            .strip_prefix("net-")
            .and_then(|rest| rest.strip_suffix("-eth0"))
            .unwrap();
        let text = fs::read_to_string(record)
            .unwrap()
            .replace(container, "stranger");
        fs::create_dir_all(at("cache/results")).unwrap();
        fs::write(at("cache/results/net-stranger-eth0"), text).unwrap();
        let data = at("data").join(NETWORK);
        fs::write(data.join("10.78.0.98"), "stranger\r\neth0").unwrap();
        let forgotten = format!(
            "{}11111111-2222-4333-8444-555555555555",
            &container[..container.len() - 36]
        );
        fs::write(data.join("10.78.0.99"), format!("{forgotten}\r\neth0")).unwrap();

        fs::remove_dir_all(harness.state()).unwrap();
        lose_the_run_directory(&harness);
        harness.start();
        let theirs = [
            at("cache/results/net-stranger-eth0"),
            data.join("10.78.0.98"),
        ];
        harness.until("the sweep", || {
            let left = records().into_iter().chain(reservations());
            left.eq(theirs.clone()).then_some(())
        });
        harness.until("the event", || {
            harness.messages("", "GarbageCollected").pop()
        });
        for path in theirs {
            fs::remove_file(path).unwrap();
        }
        assert_eq!(left(&harness.run), [""; 0]);
        canaries.assert_alive();
    });
}

#[test]
fn an_add_that_was_cut_short_is_undone_even_when_nobody_remembers_the_vm() {
    with_daemon(|mut harness, cni_networks| {
        cni_networks.recorders(SUBNET);
        cni_networks.hang("three", "ADD");
        apply_one(&harness);
        let pid = harness.until("it hangs", || cni_networks.hanging());
        harness.kill();
        signal(pid, Signal::KILL);
        fs::remove_dir_all(harness.state()).unwrap();
        lose_the_run_directory(&harness);
        cni_networks.unsay();
        cni_networks.calls();
        // The first time a plugin has something else to do.
        cni_networks.fail("one", "DEL", 11);
        harness.args = vec!["--resync".into(), "1s".into()];
        harness.start();
        let mut received = Vec::new();
        harness.until("a try", || {
            received.extend(cni_networks.calls());
            received.ends_with(&DELS.map(str::to_owned)).then_some(())
        });
        assert_eq!(reservations().len(), 1);
        cni_networks.unsay();
        harness.until("the sweep", || left(&harness.run).is_empty().then_some(()));
        assert!(harness.vms().is_empty());
    });
}

#[test]
fn after_a_reboot_a_cni_vm_is_the_same_and_its_attachment_is_recreated() {
    with_daemon(|mut harness, cni_networks| {
        cni_networks.bridge("cni0", SUBNET);
        harness.apply(&pod(1));
        let uid = identity(&harness)[0].clone();
        harness.kill();
        lose_the_run_directory(&harness);
        begin_another_boot();
        harness.start();
        harness.until("all is well", || is_ready(&harness, "pod-1"));
        assert!(harness.log().contains("the host was restarted"));
        assert_eq!(identity(&harness)[0], uid);
        assert_one_attachment(&harness);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        assert_goes_without_a_trace(&harness);
    });
}
