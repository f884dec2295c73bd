//! CNI groups whose plugins fail, hang or talk nonsense, and daemons that die beside them.
//! Out of scope: what goes well (`cni`); a crash before every single action (`tests/crash`).

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::cni::assert_reaches_its_gateway;
use crate::support::house::{self, House, signal};
use crate::support::kernel::{Canaries, run};
use crate::support::plugs::{
    NETWORK, Plugs, at, guest, inhabited, is_ready, left, message, pod, records, reservations,
};

const DELS: [&str; 3] = ["DEL three", "DEL two", "DEL one"];
const ADDS: [&str; 3] = ["ADD one", "ADD two", "ADD three"];
const CHECKS: [&str; 3] = ["CHECK one", "CHECK two", "CHECK three"];
const SUBNET: &str = "10.78.0.0/24";

/// Applies one VM and does not wait.
fn apply_one(house: &House) {
    let file = house.write("m.yaml", &pod(1));
    house.ctl(&format!("apply -f {file}"));
}

/// Until the Net condition says all of that.
#[track_caller]
fn told(house: &House, words: &[&str]) {
    house.until(&format!("a condition with {words:?}"), || {
        let message = message(house, "pod-1", "Net");
        words
            .iter()
            .all(|word| message.contains(word))
            .then_some(())
    });
}

/// One attachment, whole: nothing of an earlier try is left beside it.
#[track_caller]
fn assert_one_attachment(house: &House) {
    assert_eq!(records().len(), 1, "{:?}", records());
    assert_eq!(reservations().len(), 1, "{:?}", reservations());
    assert_eq!(run("ip -o link show type veth").lines().count(), 1);
    assert_reaches_its_gateway(&guest(house, "pod-1"));
}

#[track_caller]
fn assert_goes_without_a_trace(house: &House) {
    house.ctl("delete hg pod --wait=20s");
    assert_eq!(left(&house.run), [""; 0]);
}

#[test]
fn an_error_at_any_place_of_the_chain_is_undone_in_reverse_and_told_with_plugin_code_and_words() {
    inhabited(|house, plugs| {
        plugs.recorders(SUBNET);
        for (asked, plugin) in ["one", "two", "three"].into_iter().enumerate() {
            plugs.unsay();
            plugs.fail(plugin, "ADD", 7);
            plugs.heard();
            match asked {
                0 => apply_one(&house),
                // Somebody saves the configuration: it is tried at once.
                _ => plugs.recorders(SUBNET),
            }
            told(
                &house,
                &[
                    &format!("`{plugin}`"),
                    "code 7",
                    "configured to fail",
                    "by the test",
                ],
            );
            let heard = plugs.heard();
            let expected = [&ADDS[..=asked], &DELS].concat();
            // An earlier try may have been under way.
            let all = heard.windows(expected.len()).any(|calls| calls == expected);
            assert!(all, "{heard:?}: no {expected:?} in it");
            assert_eq!(reservations().len() + records().len(), 0);
            assert_eq!(run("ip -o link show type veth"), "");
        }
        plugs.unsay();
        plugs.recorders(SUBNET);
        house.until("all is well", || is_ready(&house, "pod-1"));
        assert_one_attachment(&house);
        assert_goes_without_a_trace(&house);
    });
}

#[test]
fn a_plugin_that_says_try_again_later_is_asked_again_by_itself() {
    inhabited(|house, plugs| {
        plugs.recorders(SUBNET);
        plugs.fail("two", "ADD", 11);
        apply_one(&house);
        told(&house, &["`two`", "code 11"]);
        plugs.heard();
        let mut tries = 0;
        house.until("two more tries", || {
            tries += plugs
                .heard()
                .iter()
                .filter(|heard| *heard == "ADD two")
                .count();
            (tries >= 2).then_some(())
        });
        plugs.unsay();
        house.until("it is asked again", || is_ready(&house, "pod-1"));
        assert_one_attachment(&house);
    });
}

#[test]
fn nonsense_and_a_plugin_that_hangs_are_told_undone_and_made_good() {
    house::empty(|mut house| {
        let plugs = Plugs::lay();
        plugs.tell(&mut house);
        house.args = vec!["--cni-deadline".into(), "1s".into()];
        house.start();
        plugs.recorders(SUBNET);
        plugs.say("two", "ADD", "Segmentation fault", 0);
        apply_one(&house);
        told(&house, &["`two`", "Segmentation fault"]);
        assert_eq!(plugs.heard()[2..5], DELS);

        plugs.unsay();
        plugs.hang("three", "ADD");
        plugs.recorders(SUBNET);
        told(&house, &["`three`", "1s"]);
        let pid = plugs.hanging().expect("it was started");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it runs on");
        house.until("its work is undone", || {
            (records().len() + reservations().len() == 0).then_some(())
        });

        plugs.unsay();
        plugs.recorders(SUBNET);
        house.until("all is well", || is_ready(&house, "pod-1"));
        assert_one_attachment(&house);

        // On the way down, too: the VM is not gone before its plugins have let go of it.
        plugs.fail("two", "DEL", 11);
        house.ctl("delete hg pod");
        told(&house, &["`two`", "code 11"]);
        assert_eq!(records().len(), 1);
        plugs.unsay();
        house.ctl("wait vm/pod-1 --for deleted --timeout 20s");
        assert_eq!(left(&house.run), [""; 0]);
    });
}

#[test]
fn killed_while_a_plugin_hangs_the_next_life_has_exactly_one_attachment() {
    inhabited(|mut house, plugs| {
        plugs.recorders(SUBNET);
        plugs.hang("two", "ADD");
        apply_one(&house);
        let pid = house.until("it hangs", || plugs.hanging());
        house.kill();
        assert_eq!(reservations().len(), 1, "the first plugin did its part");
        signal(pid, Signal::KILL);
        plugs.unsay();
        plugs.heard();
        house.start();
        house.until("all is well", || is_ready(&house, "pod-1"));
        let heard = plugs.heard();
        // CHECK follows when the VM is Ready.
        assert_eq!(heard[..6], [DELS, ADDS].concat());
        assert_one_attachment(&house);
        assert_goes_without_a_trace(&house);
    });
}

/// uid, address and MAC of the VM.
fn identity(house: &House) -> [Value; 3] {
    let vm = house.get("vm pod-1");
    let network = &vm["status"]["network"];
    [&vm["metadata"]["uid"], &network["ip"], &network["mac"]].map(Value::clone)
}

#[test]
fn after_kill_9_a_vm_is_adopted_its_plugins_checked_once_and_its_packets_go_on() {
    inhabited(|mut house, plugs| {
        plugs.recorders(SUBNET);
        house.apply(&pod(1));
        let guest = guest(&house, "pod-1");
        let before = (
            house::world_to_the_last_handle(),
            identity(&house),
            house.get("leases"),
        );
        plugs.heard();
        house.kill();
        assert_reaches_its_gateway(&guest);
        house.start();
        assert_reaches_its_gateway(&guest);
        house.ctl("wait hg/pod --for ready --timeout 20s");
        house.stays(Duration::from_secs(1), || house.messages("", "Drift"));
        assert_reaches_its_gateway(&guest);
        assert_eq!(plugs.heard(), CHECKS);
        let after = (
            house::world_to_the_last_handle(),
            identity(&house),
            house.get("leases"),
        );
        assert_eq!(after, before);
        assert_eq!(house.messages("", "Drift"), [""; 0]);

        // A CHECK that says no: it is attached anew.
        drop(guest);
        plugs.fail("three", "CHECK", 100);
        house.restart();
        house.until("it is told", || house.messages("vm/pod-1", "Drift").pop());
        plugs.unsay();
        house.ctl("wait hg/pod --for ready --timeout 20s");
        assert_one_attachment(&house);
    });
}

#[test]
fn a_resync_has_the_plugins_check_all_again_and_what_only_they_can_see_is_made_good() {
    house::empty(|mut house| {
        let plugs = Plugs::lay();
        plugs.tell(&mut house);
        house.args = vec!["--resync".into(), "1s".into()];
        house.start();
        plugs.recorders(SUBNET);
        house.apply(&pod(1));
        let heard = house.until("a second CHECK", || {
            let heard = fs::read_to_string(at("heard")).unwrap_or_default();
            (heard.matches("CHECK three").count() >= 2).then_some(heard)
        });
        let heard: Vec<&str> = heard.lines().take(9).collect();
        assert_eq!(heard, [ADDS, CHECKS, CHECKS].concat());
        assert_eq!(house.messages("", "Drift"), [""; 0]);

        // The routes inside are the plugins' business: we have a guest's packets redirected past them.
        let netns = house.get("vm pod-1")["status"]["network"]["netns"].clone();
        let netns = netns.as_str().expect("a namespace");
        run(&format!("nsenter --net={netns} ip route flush dev eth0"));
        house.until("it is told", || house.messages("vm/pod-1", "Drift").pop());
        house.until("the gate is open again", || {
            let tap = run(&format!(
                "nsenter --net={netns} ip -o link show up dev tap0 || true"
            ));
            (!tap.is_empty()).then_some(())
        });
        assert_one_attachment(&house);
        assert_goes_without_a_trace(&house);
    });
}

#[test]
fn a_lost_state_database_is_made_anew_from_the_records_of_cni_vms() {
    inhabited(|mut house, plugs| {
        plugs.recorders(SUBNET);
        house.apply(&pod(1));
        let guest = guest(&house, "pod-1");
        let before = (house::world_to_the_last_handle(), identity(&house));
        plugs.heard();
        house.kill();
        fs::remove_dir_all(house.state()).unwrap();
        house.start();
        house.ctl("wait hg/pod --for ready --timeout 20s");
        assert_eq!(
            (house::world_to_the_last_handle(), identity(&house)),
            before
        );
        assert_eq!(plugs.heard(), CHECKS);
        assert_eq!(house.get("lease pod-1")["ip"], before.1[1]);
        assert_reaches_its_gateway(&guest);
        assert_goes_without_a_trace(&house);
    });
}

/// What a boot takes away of the kernel, and its id.
pub fn begin_another_boot() {
    run("ip link del cni0; iptables -F; iptables -t nat -F
         echo 6e2a7d35-0f0a-4c0f-9d0c-3b3c1ad7c0de >/run/boot_id
         mount --bind /run/boot_id /proc/sys/kernel/random/boot_id");
}

/// Everything that a boot takes away: namespaces and what reached into them, `/run`.
pub fn lose_the_run_directory(house: &House) {
    house.unmount_namespaces();
    run(&format!(
        "rm -rf {0} /run/netns/slice-*",
        house.run.display()
    ));
    house.until("the veths went with their namespaces", || {
        run("ip -o link show type veth").is_empty().then_some(())
    });
}

#[test]
fn when_everything_is_lost_the_cache_still_tells_what_to_take_back_and_strangers_keep_theirs() {
    inhabited(|mut house, plugs| {
        let canaries = Canaries::release();
        plugs.bridge("cni0", SUBNET);
        house.apply(&pod(2));
        house.kill();
        let held = left(&house.run);
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

        fs::remove_dir_all(house.state()).unwrap();
        lose_the_run_directory(&house);
        house.start();
        let theirs = [
            at("cache/results/net-stranger-eth0"),
            data.join("10.78.0.98"),
        ];
        house.until("the sweep", || {
            let left = records().into_iter().chain(reservations());
            left.eq(theirs.clone()).then_some(())
        });
        house.until("the event", || house.messages("", "GarbageCollected").pop());
        for path in theirs {
            fs::remove_file(path).unwrap();
        }
        assert_eq!(left(&house.run), [""; 0]);
        canaries.assert_alive();
    });
}

#[test]
fn an_add_that_was_cut_short_is_undone_even_when_nobody_remembers_the_vm() {
    inhabited(|mut house, plugs| {
        plugs.recorders(SUBNET);
        plugs.hang("three", "ADD");
        apply_one(&house);
        let pid = house.until("it hangs", || plugs.hanging());
        house.kill();
        signal(pid, Signal::KILL);
        fs::remove_dir_all(house.state()).unwrap();
        lose_the_run_directory(&house);
        plugs.unsay();
        plugs.heard();
        // The first time a plugin has something else to do.
        plugs.fail("one", "DEL", 11);
        house.args = vec!["--resync".into(), "1s".into()];
        house.start();
        let mut heard = Vec::new();
        house.until("a try", || {
            heard.extend(plugs.heard());
            heard.ends_with(&DELS.map(str::to_owned)).then_some(())
        });
        assert_eq!(reservations().len(), 1);
        plugs.unsay();
        house.until("the sweep", || left(&house.run).is_empty().then_some(()));
        assert!(house.vms().is_empty());
    });
}

#[test]
fn after_a_reboot_a_cni_vm_is_the_same_and_its_attachment_is_made_anew() {
    inhabited(|mut house, plugs| {
        plugs.bridge("cni0", SUBNET);
        house.apply(&pod(1));
        let uid = identity(&house)[0].clone();
        house.kill();
        lose_the_run_directory(&house);
        begin_another_boot();
        house.start();
        house.until("all is well", || is_ready(&house, "pod-1"));
        assert!(house.log().contains("the host was restarted"));
        assert_eq!(identity(&house)[0], uid);
        assert_one_attachment(&house);
        assert_eq!(house.messages("", "Drift"), [""; 0]);
        assert_goes_without_a_trace(&house);
    });
}
