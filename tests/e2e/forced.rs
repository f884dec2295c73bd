//! Forced deletions: they end within seconds, leave nothing but what plugins have not released, and touch no other VM.
//! Out of scope: deletions that are not forced (`cni_ends`, `holders`); what `slicectl` prints (`transcripts`).

use std::time::{Duration, Instant};

use serde_json::Value;

use super::cni_ends::{chains, with_each};
use test_support::cni_networks::{CniNetworks, at, left, pod, with_daemon};
use test_support::harness::{self, Harness};
use test_support::kernel::run;
use test_support::tiny::{self, Tiny, is_alive};

/// Of a forced deletion, beside the deadline of a plugin.
const BOUND: Duration = Duration::from_secs(3);
const SUBNET: &str = "10.78.0.0/24";

/// When a deletion is forced.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    /// From the beginning.
    AtOnce,
    /// The daemon is killed directly after the response.
    Killed,
    /// It is under way, and waits.
    UnderWay,
}
use When::{AtOnce, Killed, UnderWay};

/// A guest of another group, and all that there is while it is alone.
struct Bystander {
    pid: u32,
    left: Vec<String>,
}

impl Bystander {
    fn start(harness: &Harness) -> Self {
        harness.apply(&tiny::guests(
            &harness::group("other", 1, "169.254.104.0/22", ""),
            "",
        ));
        Self {
            pid: tiny::pids(harness)["other-1"].expect("a pid"),
            left: things(harness),
        }
    }

    /// Its VMM runs on, and there is nothing else but `owed`.
    #[track_caller]
    fn assert_alone(&self, harness: &Harness, owed: &[String], case: &str) {
        self.assert_alive(harness, case);
        let mut found = things(harness);
        found.retain(|thing| !owed.contains(thing));
        assert_eq!(found, self.left, "{case}");
        assert_eq!(run("ip -o link show type tun"), "", "{case}");
    }

    #[track_caller]
    fn assert_alive(&self, harness: &Harness, case: &str) {
        assert_eq!(tiny::pids(harness)["other-1"], Some(self.pid), "{case}");
        assert!(is_alive(self.pid), "{case}");
    }
}

/// What there is, without the host's rules: they name each subnet for as long as an interface of the plugins has an address in it.
fn things(harness: &Harness) -> Vec<String> {
    let mut things = left(&harness.run);
    things.retain(|thing| !thing.contains("/ground\" -j"));
    things
}

/// The uids of all objects of that kind.
fn uids(harness: &Harness, kind: &str) -> Vec<Value> {
    let list = harness.get(kind);
    let items = list["items"].as_array().expect("items").iter();
    items.map(|item| item["metadata"]["uid"].clone()).collect()
}

/// An object that is to be deleted, by its uid.
struct Doomed {
    target: &'static str,
    list: &'static str,
    uid: Value,
}

impl Doomed {
    fn find(harness: &Harness, target: &'static str) -> Self {
        let (kind, name) = target.split_once('/').expect("KIND/NAME");
        let object = harness.get(&format!("{kind} {name}"));
        Self {
            target,
            list: if kind == "hg" { "hg" } else { "vms" },
            uid: object["metadata"]["uid"].clone(),
        }
    }

    /// Forces the deletion; `is_waiting` is called until one that is under way waits.
    fn force(
        &self,
        harness: &mut Harness,
        when: When,
        mut is_waiting: impl FnMut(&Harness) -> bool,
    ) {
        let target = self.target;
        if when == UnderWay {
            harness.ctl(&format!("delete {target}"));
            harness.until("it waits", || is_waiting(harness).then_some(()));
        }
        harness.ctl(&format!("delete {target} --force"));
        if when == Killed {
            harness.kill();
            harness.start();
        } else if self.list == "hg" {
            // Again. By the name of a VM it would be the next one of this name.
            harness.ctl(&format!("delete {target} --force --ignore-not-found"));
        }
    }

    #[track_caller]
    fn goes_within(&self, harness: &Harness, bound: Duration, case: &str) {
        harness.within(bound, case, || {
            (!uids(harness, self.list).contains(&self.uid)).then_some(())
        });
    }
}

/// The records of what plugins have not released.
fn owed() -> Vec<String> {
    let entries = std::fs::read_dir(at("cache/slice/abandoned"));
    let entries = entries.into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path().display().to_string())
        .collect()
}

/// After a deletion: a group is gone, a VM that its group counts has come again. Then all of it goes, with what was owed.
#[track_caller]
fn clear(harness: &Harness, target: &str) {
    if target.starts_with("vm/") {
        harness.ctl("wait hg/pod --for ready --timeout 20s");
        harness.ctl("delete hg pod --wait=20s");
    }
    harness.ctl("gc");
    assert_eq!(owed(), [""; 0]);
}

/// As `slicectl` writes it.
fn long(target: &str) -> String {
    target.replace("hg/", "hostgroup/")
}

fn condition(harness: &Harness, vm: &str, kind: &str) -> String {
    let vms = harness.get("vms");
    let mut vms = vms["items"].as_array().expect("items").iter();
    let found = vms.find(|it| it["metadata"]["name"] == vm);
    let conditions = found.and_then(|vm| vm["status"]["conditions"].as_array());
    let mut conditions = conditions.into_iter().flatten();
    let found = conditions.find(|it| it["type"] == kind);
    found.map(ToString::to_string).unwrap_or_default()
}

#[test]
fn an_attachment_whose_del_fails_is_given_up_at_once_and_recorded() {
    with_daemon(|mut harness, cni_networks| {
        let bystander = Bystander::start(&harness);
        for target in ["hg/pod", "vm/pod-1"] {
            for when in [AtOnce, Killed, UnderWay] {
                let case = format!("{target}, {when:?}");
                cni_networks.recorders(SUBNET);
                harness.apply(&pod(1));
                let doomed = Doomed::find(&harness, target);
                cni_networks.fail("two", "DEL", 999);
                doomed.force(&mut harness, when, |harness| {
                    let waits = condition(harness, "pod-1", "Net").contains("`two`");
                    if waits {
                        let wait =
                            harness.try_ctl(&format!("wait {target} --for deleted --timeout 1s"));
                        let stderr = String::from_utf8_lossy(&wait.stderr).into_owned();
                        assert!(
                            stderr.contains(&format!("`slicectl delete {} --force`", long(target))),
                            "{stderr}"
                        );
                    }
                    waits
                });
                doomed.goes_within(&harness, BOUND, &case);
                let event = harness.messages("vm/pod-1", "DetachFailed").join("\n");
                for text in ["`two`", "forced", "configured to fail"] {
                    assert!(event.contains(text), "{case}: {text}: {event}");
                }
                // Events end with the daemon.
                let event = harness.messages(&long(target), "ForceDeleted").join("\n");
                assert_eq!(event.contains("--force"), when != Killed, "{case}: {event}");
                let owed = owed();
                assert_eq!(owed.len(), 1, "{case}: {owed:?}");
                match target {
                    "hg/pod" => bystander.assert_alone(&harness, &owed, &case),
                    _ => bystander.assert_alive(&harness, &case),
                }
                let doctor =
                    String::from_utf8_lossy(&harness.try_ctl("doctor").stdout).into_owned();
                assert!(doctor.contains("CNI attachments not released"), "{doctor}");
                cni_networks.unsay();
                clear(&harness, target);
                bystander.assert_alone(&harness, &[], &case);
            }
        }
    });
}

#[test]
fn a_forced_deletion_runs_del_to_its_end_where_the_plugins_can() {
    with_each(|harness, cni_networks, dir| {
        for (name, chain) in chains() {
            for loss in ["true", "iptables -t nat -F; iptables -t nat -X"] {
                cni_networks.configure(&chain);
                harness.apply(&pod(2));
                run(loss);
                harness.ctl("delete hg pod --force --wait=10s");
                let case = format!("{}: {name}: {loss}", dir.display());
                assert_eq!(left(&harness.run), [""; 0], "{case}");
                assert_eq!(harness.messages("", "DetachFailed"), [""; 0], "{case}");
            }
        }
    });
}

#[test]
fn a_plugin_that_hangs_in_del_is_waited_for_once() {
    harness::empty(|mut harness| {
        let cni_networks = CniNetworks::install();
        cni_networks.configure_daemon(&mut harness);
        harness.args = vec!["--cni-deadline".into(), "1s".into()];
        harness.start();
        let bystander = Bystander::start(&harness);
        for (target, when, deadlines) in [
            ("hg/pod", AtOnce, 1),
            ("vm/pod-1", AtOnce, 1),
            ("hg/pod", UnderWay, 2),
        ] {
            let case = format!("{target}, {when:?}");
            cni_networks.recorders(SUBNET);
            harness.apply(&pod(1));
            let doomed = Doomed::find(&harness, target);
            cni_networks.hang("three", "DEL");
            cni_networks.calls();
            let _ = std::fs::remove_file(at("hanging"));
            doomed.force(&mut harness, when, |_| cni_networks.hanging().is_some());
            let bound = BOUND + Duration::from_secs(deadlines);
            doomed.goes_within(&harness, bound, &case);
            let calls = cni_networks.calls();
            let hung = calls.iter().filter(|calls| *calls == "DEL three").count();
            assert_eq!(u64::try_from(hung).unwrap(), deadlines, "{case}: {calls:?}");
            let owed = owed();
            assert_eq!(owed.len(), 1, "{case}: {owed:?}");
            cni_networks.unsay();
            clear(&harness, target);
            bystander.assert_alone(&harness, &[], &case);
        }
    });
}

/// A guest that ignores its power button, and is given a minute.
fn deaf(slots: &str) -> String {
    tiny::guests(slots, "tiny=deaf").replace(
        "hypervisor: qemu",
        "graceful_shutdown: 1m\n      hypervisor: qemu",
    )
}

#[track_caller]
fn ready_guest(harness: &Harness) -> (Tiny, u32) {
    let guests = tiny::all(harness).into_values();
    let guest = guests.into_iter().find(|guest| guest.name != "other-1");
    let guest = guest.expect("a guest");
    harness.until("the guest", || (guest.times_ready() == 1).then_some(()));
    let pid = tiny::pids(harness)[&guest.name].expect("a pid");
    (guest, pid)
}

#[test]
fn a_vmm_is_killed_without_a_guest_shutdown_in_every_mode() {
    with_daemon(|mut harness, cni_networks| {
        cni_networks.bridge("cni0", "10.77.0.0/24");
        let bystander = Bystander::start(&harness);
        let isolated = || harness::group("pod", 1, "169.254.100.0/22", "");
        let bridge = || harness::bridge_group("pod", 1, "bridge: brvm0\ngateway: 192.168.137.1/24");
        let cni = || pod(1);
        let cases: [(&str, String, &str, When); 6] = [
            ("isolated", isolated(), "hg/pod", UnderWay),
            ("isolated", isolated(), "vm/pod-1", AtOnce),
            ("bridge", bridge(), "hg/pod", Killed),
            ("bridge", bridge(), "vm/pod-1", UnderWay),
            ("cni", cni(), "hg/pod", UnderWay),
            ("cni", cni(), "vm/pod-1", Killed),
        ];
        for (mode, slots, target, when) in cases {
            let case = format!("{mode}, {target}, {when:?}");
            harness.apply(&deaf(&slots));
            let (guest, pid) = ready_guest(&harness);
            let doomed = Doomed::find(&harness, target);
            let begin = Instant::now();
            doomed.force(&mut harness, when, |_| guest.output().contains("ignores"));
            doomed.goes_within(&harness, BOUND, &case);
            eprintln!("{case}: {:?}", begin.elapsed());
            assert!(!is_alive(pid), "{case}");
            assert_eq!(
                guest.output().contains("ignores"),
                when == UnderWay,
                "{case}"
            );
            if target == "vm/pod-1" {
                let (_, again) = ready_guest(&harness);
                assert_ne!(again, pid, "{case}");
                bystander.assert_alive(&harness, &case);
                harness.ctl("delete hg pod --force --wait=10s");
            }
            bystander.assert_alone(&harness, &[], &case);
            assert_eq!(harness.messages("", "DetachFailed"), [""; 0], "{case}");
        }
        let gone = harness.refused("delete hg pod --force", 1);
        assert!(gone.contains("hostgroup/pod not found"), "{gone}");
    });
}

#[test]
fn a_group_of_a_file_is_forced_only_after_the_file_is_gone() {
    harness::with_daemon(|harness| {
        let slots = harness::group("pod", 1, "169.254.100.0/22", "");
        harness.save("pod.yaml", &deaf(&slots));
        harness.until("the group", || {
            (!uids(&harness, "hg").is_empty()).then_some(())
        });
        harness.ctl("wait hg/pod --for ready --timeout 30s");
        let (guest, pid) = ready_guest(&harness);
        let why = harness.refused("delete hg pod --force", 1);
        assert!(why.contains("pod.yaml: remove it there"), "{why}");
        assert!(is_alive(pid));
        std::fs::remove_file(harness.conf().join("pod.yaml")).unwrap();
        harness.until("the guest is asked", || {
            guest.output().contains("ignores").then_some(())
        });
        let begin = Instant::now();
        harness.ctl("delete hg pod --force --wait=10s");
        assert!(begin.elapsed() < BOUND * 2, "{:?}", begin.elapsed());
        assert!(!is_alive(pid));
    });
}

#[test]
fn one_vm_of_a_group_is_forced_and_the_others_run_on() {
    harness::empty(|mut harness| {
        harness.start();
        harness.apply(&deaf(&harness::group("pod", 1, "169.254.100.0/22", "")));
        let (_, other) = ready_guest(&harness);
        harness.ctl("vm add pod --name own --wait=30s");
        let doomed = Doomed::find(&harness, "vm/own");
        let pid = tiny::pids(&harness)["own"].expect("a pid");
        harness.ctl("vm delete own");
        harness.ctl("delete vm/own --force");
        doomed.goes_within(&harness, BOUND, "made on demand");
        assert!(!is_alive(pid));
        harness.refused("delete vm/own --force", 1);
        assert_eq!(
            tiny::pids(&harness),
            [("pod-1".to_owned(), Some(other))].into()
        );
        assert!(is_alive(other));
        harness.ctl("delete hg pod --force --wait=10s");
        assert!(!is_alive(other));
    });
}
