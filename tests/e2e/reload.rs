//! Hot reload: a saved file converges within 1 s; what can change live does.
//! Out of scope: every editor's way of saving (the intake's own tests); the owner of a group (`origin`).

use std::time::Duration;

use serde_json::Value;

use test_support::harness::{self, Harness, slots, with_daemon};
use test_support::kernel::run;

/// The specification's.
const BOUND: Duration = Duration::from_secs(1);

/// A running daemon whose folder has had `slots(count, network)` since it was Ready.
fn saved(count: u32, network: &str, test: impl FnOnce(Harness) + Send) {
    with_daemon(|harness| {
        harness.save("sandbox.yaml", &slots(count, network));
        harness.until("the group", || ready(&harness, count));
        test(harness);
    });
}

fn ready(harness: &Harness, count: u32) -> Option<()> {
    let status = &harness.get("hg sandbox")["status"];
    (status["ready"] == true && status["ready_count"] == count && status["current"] == count)
        .then_some(())
}

/// uid, address, pid and namespace of each VM: what a live change keeps.
fn identities(harness: &Harness) -> Vec<[Value; 4]> {
    let list = harness.get("vms");
    let items = list["items"].as_array().expect("items").iter();
    items
        .map(|vm| {
            let (status, network) = (&vm["status"], &vm["status"]["network"]);
            let uid = vm["metadata"]["uid"].clone();
            [
                uid,
                network["ip"].clone(),
                status["vmm"]["pid"].clone(),
                network["netns"].clone(),
            ]
        })
        .collect()
}

fn rules_of(harness: &Harness, vm: &str) -> String {
    run(&format!(
        "ip netns exec {} iptables-save -t filter",
        harness.place(vm).name
    ))
}

#[test]
fn a_changed_policy_reaches_the_rules_live() {
    saved(2, "drop: [192.168.1.0/24]", |harness| {
        let (before, links) = (identities(&harness), run("ip -o link"));
        harness.save("sandbox.yaml", &slots(2, "drop: [203.0.113.0/24]"));
        harness.within(BOUND, "the new policy stands", || {
            let done = ["sandbox-1", "sandbox-2"].iter().all(|vm| {
                let rules = rules_of(&harness, vm);
                rules.contains("203.0.113.0/24") && !rules.contains("192.168.1.0/24")
            });
            done.then_some(())
        });
        harness.ctl("wait hg/sandbox --for ready --timeout 10s");
        assert_eq!(identities(&harness), before);
        assert_eq!(run("ip -o link"), links);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
    });
}

#[test]
fn more_vms_come_and_fewer_go_and_the_others_stay() {
    saved(2, "", |harness| {
        let two = identities(&harness);
        harness.save("sandbox.yaml", &slots(4, ""));
        harness.within(BOUND, "four VMs", || ready(&harness, 4));
        assert_eq!(identities(&harness)[..2], two);
        harness.save("sandbox.yaml", &slots(1, ""));
        harness.within(BOUND, "one VM", || {
            ready(&harness, 1).filter(|()| harness.vms() == ["sandbox-1"])
        });
        assert_eq!(identities(&harness), two[..1]);
        harness.until("its leases", || {
            let leases = harness.get("leases");
            (leases["items"].as_array()?.len() == 1).then_some(())
        });
        assert_eq!(run("ls /run/netns").lines().count(), 1);
    });
}

#[test]
fn another_change_replaces_one_vm_at_a_time_and_keeps_the_leases() {
    saved(3, "", |harness| {
        let before = identities(&harness);
        harness.save("sandbox.yaml", &slots(3, "").replace("vcpu: 1", "vcpu: 2"));
        harness.until("all replaced", || {
            let group = harness.get("hg sandbox");
            let status = group["status"].clone();
            let ready = status["ready_count"].as_u64()?;
            assert!(ready >= 2, "more than one was down at once: {status}");
            (group["metadata"]["generation"] == 2 && status["ready"] == true).then_some(())
        });
        let after = identities(&harness);
        for (old, new) in before.iter().zip(&after) {
            assert_ne!(old[0], new[0], "the same uid");
            assert_eq!(old[1], new[1], "another address");
        }
        assert_eq!(run("ls /run/netns").lines().count(), 3);
    });
}

#[test]
fn with_update_on_delete_a_vm_is_replaced_only_when_it_is_deleted() {
    let manifest = |vcpu: u32| {
        let slots = slots(2, "").replace("vcpu: 1", &format!("vcpu: {vcpu}"));
        slots.replace("      count", "      update: on-delete\n      count")
    };
    with_daemon(|harness| {
        harness.save("sandbox.yaml", &manifest(1));
        harness.until("the group", || ready(&harness, 2));
        let before = identities(&harness);
        harness.save("sandbox.yaml", &manifest(2));
        harness.until("taken in", || {
            let group = harness.get("hg sandbox");
            (group["spec"]["template"]["vcpu"] == 2 || group["spec"]["vcpu"] == 2).then_some(())
        });
        harness.stays(Duration::from_millis(700), || identities(&harness));
        assert_eq!(identities(&harness), before);
        harness.ctl("delete vm sandbox-1");
        harness.until("replaced", || {
            let vm = harness.get("vm sandbox-1");
            (vm["spec"]["vcpu"] == 2 && vm["status"]["ready"] == true).then_some(())
        });
        let after = identities(&harness);
        assert_ne!(after[0][0], before[0][0]);
        assert_eq!(after[0][1], before[0][1]);
        assert_eq!(after[1], before[1]);
    });
}

#[test]
fn a_broken_file_changes_nothing_and_reports_why_until_it_is_mended() {
    saved(2, "", |harness| {
        let world = harness::world_to_the_last_handle();
        harness.save("sandbox.yaml", &slots(3, "").replace("vcpu: 1", "vcpus: 1"));
        let reported = harness.within(BOUND, "the event", || {
            harness
                .messages("manifest/sandbox.yaml", "ManifestInvalid")
                .pop()
        });
        assert!(reported.contains("sandbox.yaml:5"), "{reported}");
        assert!(
            reported.contains("vcpus") && reported.contains("\"vcpu\""),
            "{reported}"
        );
        let described = harness.ctl("describe hg sandbox");
        assert!(
            described.contains("vcpus") && described.contains("sandbox.yaml:5"),
            "{described}"
        );
        assert_eq!(harness.vms(), ["sandbox-1", "sandbox-2"]);
        assert_eq!(harness::world_to_the_last_handle(), world);
        harness.save("sandbox.yaml", &slots(3, ""));
        harness.within(BOUND, "three VMs", || ready(&harness, 3));
        let described = harness.ctl("describe hg sandbox");
        assert!(!described.contains("vcpus:"), "{described}");
    });
}

#[test]
fn a_file_saved_again_as_it_was_takes_no_action() {
    saved(2, "", |harness| {
        let world = harness::world_to_the_last_handle();
        let events = harness.ctl("events -o json");
        let path = harness.conf().join("sandbox.yaml");
        run(&format!(
            "touch {0}; cat {0} > {0}.swp; mv {0}.swp {0}",
            path.display()
        ));
        // A change beside it shows that the folder has been read since.
        harness.save(
            "other.yaml",
            &harness::group("other", 1, "169.254.104.0/22", ""),
        );
        harness.until("the other group", || {
            harness.get("vm other-1")["status"]["ready"]
                .as_bool()
                .filter(|r| *r)
        });
        let after = harness.ctl("events -o json");
        let about = |text: &str| {
            text.lines()
                .filter(|l| l.contains("sandbox"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(about(&after), about(&events));
        harness.ctl("wait vm/sandbox-1 --for ready --timeout 1s");
        run(&format!(
            "rm {}",
            harness.conf().join("other.yaml").display()
        ));
        harness.until("gone", || harness.get("hg other").is_null().then_some(()));
        // The host network has changed twice in between: the handles of its rules are new, its rules are not.
        let skeleton = |world: &str| {
            world
                .lines()
                .skip_while(|l| !l.starts_with("namespace"))
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert_eq!(
            skeleton(&harness::world_to_the_last_handle()),
            skeleton(&world)
        );
    });
}

#[test]
fn sed_cp_vi_and_git_count_as_saving() {
    saved(1, "", |harness| {
        let conf = harness.conf().display().to_string();
        let four = harness.write("four.yaml", &slots(4, ""));
        let steps = [
            (
                2,
                format!("sed -i 's/count: .*/count: 2/' {conf}/sandbox.yaml"),
            ),
            (
                3,
                format!(
                    "cd {conf}; sed 's/count: .*/count: 3/' sandbox.yaml > 4913; mv sandbox.yaml sandbox.yaml~; mv 4913 sandbox.yaml; rm sandbox.yaml~"
                ),
            ),
            (4, format!("cp {four} {conf}/sandbox.yaml")),
        ];
        for (count, command) in steps {
            run(&command);
            harness.within(BOUND, &format!("{count} VMs"), || ready(&harness, count));
        }
    });
}

#[test]
fn a_swapped_symlink_counts_as_saving() {
    harness::empty(|mut harness| {
        let (dir, conf) = (harness.dir.path().to_owned(), harness.conf());
        for (name, count) in [("..v1", 1), ("..v2", 2)] {
            std::fs::create_dir(dir.join(name)).unwrap();
            std::fs::write(dir.join(name).join("sandbox.yaml"), slots(count, "")).unwrap();
        }
        // As a ConfigMap is mounted: the file is a link through `..data`, and `..data` is what is swapped.
        run(&format!(
            "ln -s ../..v1 {0}/..data; ln -s ..data/sandbox.yaml {0}/sandbox.yaml",
            conf.display()
        ));
        harness.start();
        harness.until("one VM", || ready(&harness, 1));
        run(&format!(
            "ln -s ../..v2 {0}/..new; mv -T {0}/..new {0}/..data",
            conf.display()
        ));
        harness.within(BOUND, "two VMs", || ready(&harness, 2));
    });
}
