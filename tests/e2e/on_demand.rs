//! VMs made on demand, through everything that may happen to their daemon and to their group.
//! Out of scope: names, indices and addresses of orders (`tests/kernel/pipeline.rs`); the output of `slicectl` (`transcripts`).

use std::time::Duration;

use serde_json::Value;

use test_support::harness::{self, Harness, bridge_group, slots, with_daemon};
use test_support::kernel::{Canaries, attempt, run};
use test_support::tiny;

/// Name, uid, address and pid of each VM.
fn identities(harness: &Harness) -> Vec<[Value; 4]> {
    let list = harness.get("vms");
    let items = list["items"].as_array().expect("items").iter();
    items
        .map(|vm| {
            [
                vm["metadata"]["name"].clone(),
                vm["metadata"]["uid"].clone(),
                vm["status"]["network"]["ip"].clone(),
                vm["status"]["vmm"]["pid"].clone(),
            ]
        })
        .collect()
}

/// The destinations that the kernel's rules of a VM drop, of those we look for.
fn dropped(harness: &Harness, vm: &str) -> Vec<&'static str> {
    let rules = run(&format!(
        "ip netns exec {} iptables-save",
        harness.place(vm).name
    ));
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
        .into_iter()
        .filter(|net| {
            let denies =
                |rule: &str| rule.contains(&format!("-d {net} ")) && !rule.contains("ACCEPT");
            rules.lines().any(denies)
        })
        .collect()
}

#[test]
fn three_live_through_kill_9_follow_their_groups_policy_and_go_with_it() {
    with_daemon(|mut harness| {
        let canaries = Canaries::release();
        harness.apply(&slots(1, "drop: [10.0.0.0/8]"));
        let made_up = harness.ctl("vm add sandbox --wait -o name");
        let made_up = made_up.trim().trim_start_matches("vm/").to_owned();
        harness.ctl("vm add sandbox --name own --drop 172.16.0.0/12 --tag job=42 --wait");
        harness.ctl("vm add sandbox --name open --drop= --tag job=43 --wait");
        assert_eq!(harness.vms(), ["sandbox-1", &made_up, "own", "open"]);
        assert_eq!(harness.get("hg sandbox")["status"]["on_demand"], 3);
        let before = (harness::world_to_the_last_handle(), identities(&harness));

        harness.kill();
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        harness.stays(Duration::from_secs(1), || harness.messages("", "Drift"));
        assert_eq!(
            (harness::world_to_the_last_handle(), identities(&harness)),
            before
        );

        let kept: Vec<_> = identities(&harness);
        harness.apply(&slots(1, "drop: [192.168.0.0/16]"));
        assert_eq!(identities(&harness), kept, "a list changes live");
        assert_eq!(dropped(&harness, "sandbox-1"), ["192.168.0.0/16"]);
        assert_eq!(dropped(&harness, &made_up), ["192.168.0.0/16"]);
        assert_eq!(dropped(&harness, "own"), ["172.16.0.0/12"]);
        assert_eq!(dropped(&harness, "open"), [""; 0]);
        assert!(harness.ctl("explain own 172.16.1.1").contains("drop[0]"));

        harness.ctl("vm delete open --wait=20s");
        assert_eq!(harness.vms(), ["sandbox-1", &made_up, "own"]);
        let text = harness.refused("vm delete sandbox-1", 1);
        assert!(
            text.contains("one of the 1 VMs that hostgroup/sandbox keeps"),
            "{text}"
        );
        let text = harness.refused("vm delete opn", 1);
        assert!(text.contains("vm/opn not found"), "{text}");
        assert_eq!(harness.ctl("get vms -l job -o name"), "vm/own\n");

        harness.ctl("delete hg sandbox --wait=30s");
        assert!(harness.vms().is_empty() && harness.get("leases")["items"] == Value::Array(vec![]));
        assert_eq!(run("ls /run/netns"), "canary\n");
        // A group of that name is another group.
        harness.apply(&slots(0, ""));
        assert!(harness.vms().is_empty());
        canaries.assert_alive();
    });
}

#[test]
fn a_daemon_that_has_lost_its_state_takes_them_for_what_they_are() {
    with_daemon(|mut harness| {
        harness.apply(&slots(1, "drop: [10.0.0.0/8]").replace("vcpu: 1", "vcpu: 4"));
        harness.ctl("vm add sandbox --name small --vcpu 1 --tag job=42 --drop= --wait");
        harness.ctl("vm add sandbox --name plain --wait");
        // None is left of those that know only of their group.
        harness.apply(&slots(0, "drop: [192.168.0.0/16]").replace("vcpu: 1", "vcpu: 4"));
        harness.until("the two", || (harness.vms().len() == 2).then_some(()));
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        let (world, ids) = (harness::world_to_the_last_handle(), identities(&harness));
        let group = harness.get("hg sandbox")["spec"].clone();
        harness.kill();
        std::fs::remove_dir_all(harness.state()).unwrap();
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        harness.stays(Duration::from_secs(1), || harness.messages("", "Drift"));
        assert_eq!(harness::world_to_the_last_handle(), world);
        assert_eq!(identities(&harness), ids);
        assert_eq!(harness.get("hg sandbox")["spec"], group);
        assert_eq!(harness.ctl("get vms -l job=42 -o name"), "vm/small\n");
        let again = "vm add sandbox --name small --vcpu 1 --tag job=42 --drop=";
        assert_eq!(harness.ctl(again), "vm/small unchanged\n");
        // Those that are counted are made beside them, as if they were not there.
        harness.apply(&slots(2, "").replace("vcpu: 1", "vcpu: 4"));
        assert_eq!(harness.vms(), ["sandbox-1", "sandbox-2", "small", "plain"]);
        harness.ctl("vm delete small --wait=20s");
        harness.ctl("delete vm/plain --wait=20s");
        assert_eq!(harness.vms(), ["sandbox-1", "sandbox-2"]);
        assert_eq!(harness.messages("vm/small", "Deleted").len(), 1);
    });
}

#[test]
fn a_file_that_no_longer_allows_what_one_has_is_refused_by_its_name() {
    with_daemon(|harness| {
        let with = |vcpu: u32| slots(0, "").replace("vcpu: 1", &format!("vcpu: {vcpu}"));
        harness.save("sandbox.yaml", &with(4));
        harness.until("the group", || {
            (harness.get("hg sandbox") != Value::Null).then_some(())
        });
        harness.ctl("vm add sandbox --name big --vcpu 3 --wait");
        harness.save("sandbox.yaml", &with(2));
        let reported = harness.until("the refusal", || {
            harness
                .messages("manifest/sandbox.yaml", "ManifestInvalid")
                .pop()
        });
        assert!(
            reported.contains(
                "vm/big, made on demand, requests 3 vcpu, and the group allows at most 2"
            ),
            "{reported}"
        );
        assert_eq!(harness.get("hg sandbox")["spec"]["template"]["vcpu"], 4);
        harness.ctl("vm delete big --wait=20s");
        harness.save("sandbox.yaml", &format!("{}\n", with(2)));
        harness.until("the new edition", || {
            (harness.get("hg sandbox")["spec"]["template"]["vcpu"] == 2).then_some(())
        });
        std::fs::remove_file(harness.conf().join("sandbox.yaml")).unwrap();
        harness.until("no group", || {
            (harness.get("hg sandbox") == Value::Null).then_some(())
        });
    });
}

#[test]
fn what_cannot_change_live_replaces_one_at_a_time_with_its_name_and_address() {
    with_daemon(|harness| {
        harness.apply(&slots(1, ""));
        harness.ctl("vm add sandbox --name one --wait");
        harness.ctl("vm add sandbox --name two --ram 64 --wait");
        let before = identities(&harness);
        let larger = slots(1, "").replace("ram_mb: 128", "ram_mb: 256");
        let file = harness.write("larger.yaml", &larger);
        let diff = harness.ctl(&format!("diff -f {file} -o json"));
        let diff: Value = serde_json::from_str(&diff).unwrap();
        let steps = |vm: &str| diff["actions"][format!("vm/{vm}")].to_string();
        // The next to go is told; the others follow one by one.
        assert!(steps("sandbox-1").contains("create it again"), "{diff}");
        assert!(
            !steps("two").contains("anew") && !steps("two").contains("remove"),
            "{diff}"
        );
        harness.apply(&larger);
        let after = identities(&harness);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!((&before[0], &before[2]), (&after[0], &after[2]));
            let own = before[0] == "two";
            assert_eq!(before[1] == after[1], own, "{}", before[0]);
        }
        assert_eq!(harness.get("vm two")["spec"]["ram_bytes"], 64 << 20);
        assert_eq!(harness.get("vm one")["spec"]["ram_bytes"], 256 << 20);
    });
}

#[test]
fn on_a_bridge_they_have_ports_of_their_own() {
    with_daemon(|mut harness| {
        let network = "bridge: br0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24\naddresses: [192.168.137.7, 192.168.137.8]";
        harness.apply(&bridge_group("web", 1, network));
        harness.ctl("vm add web --name ci --wait");
        let port = harness.get("vm ci")["status"]["network"].clone();
        assert_eq!(
            (&port["tap"], &port["ip"]),
            (&"vmtapx0".into(), &"192.168.137.8".into())
        );
        assert!(run("ip -o link show master br0").contains("vmtapx0"));
        let text = harness.refused("vm add web", 1);
        assert!(
            text.contains("none is left for a VM made on demand"),
            "{text}"
        );
        harness.kill();
        harness.start();
        harness.ctl("wait hg/web --for ready --timeout 20s");
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        harness.ctl("vm delete ci --wait=20s");
        assert!(!attempt("ip link show vmtapx0").status.success());
        harness.ctl("vm add web --name cj --wait");
    });
}

#[test]
fn whoever_is_added_while_the_group_goes_is_refused_or_goes_with_it() {
    with_daemon(|harness| {
        for round in 0..5 {
            harness.apply(&slots(0, ""));
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        for _ in 0..4 {
                            let output = harness.try_ctl("vm add sandbox");
                            let text = String::from_utf8_lossy(&output.stderr).into_owned();
                            assert!(
                                output.status.success() || text.contains("not found"),
                                "{text}"
                            );
                        }
                    });
                }
                std::thread::sleep(Duration::from_millis(20 * round));
                harness.ctl("delete hg sandbox");
            });
            harness.until("nothing", || {
                let leases = harness.get("leases")["items"].as_array().map(Vec::len);
                (harness.vms().is_empty()
                    && leases == Some(0)
                    && harness.get("hg sandbox") == Value::Null
                    && run("ls /run/netns").is_empty())
                .then_some(())
            });
        }
    });
}

#[test]
fn a_guest_made_on_demand_boots_with_what_was_asked_and_keeps_its_process() {
    with_daemon(|mut harness| {
        let group = tiny::guests(&slots(0, ""), "");
        harness.apply(&group.replace("ram_mb: 32", "ram_mb: 64"));
        harness.ctl("vm add sandbox --name ci --ram 32 --wait=60s");
        let vms = tiny::all(&harness);
        harness.until("its word", || (vms["ci"].times_ready() == 1).then_some(()));
        let pid = vms["ci"].pid.expect("a process");
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        assert!(words.contains("-m 32M"), "{words}");
        harness.kill();
        harness.start();
        harness.ctl("wait vm/ci --for ready --timeout 30s");
        assert_eq!(tiny::pids(&harness)["ci"], Some(pid));
        harness.ctl("vm delete ci --wait=30s");
        assert!(!tiny::is_alive(pid));
    });
}

#[test]
fn a_persistent_disk_of_one_waits_for_the_next_of_its_name() {
    with_daemon(|mut harness| {
        let image = harness.write("image", &"x".repeat(1 << 20));
        harness.apply(&format!(
            "config:\n  hypervisor: none\n  image: {image}\n  host_groups:\n    - {{name: web, count: 0, network: {{mode: isolated}}}}\n"
        ));
        let disk = |vm: &str| harness_disk(&harness, vm);
        let (keep, lose) = (disk("keep"), disk("lose"));
        harness.ctl("vm add web --name keep --persistent --wait");
        harness.ctl("vm add web --name lose --wait");
        assert!(lose.exists());
        std::fs::write(&keep, "by the guest").unwrap();
        harness.kill();
        harness.start();
        harness.ctl("vm delete keep lose --wait=20s");
        assert!(!lose.exists());
        let text = harness.refused("vm add web --name keep --wait=2s", 1);
        assert!(text.contains("persistent: true"), "{text}");
        harness.ctl("vm delete keep --wait=20s");
        harness.ctl("vm add web --name keep --persistent --wait");
        let kept = std::fs::read(&keep).unwrap();
        assert!(kept.starts_with(b"by the guest"));
        let along = harness.ctl("delete hg web --wait=20s");
        let requested = "hostgroup/web deletion requested, and its VM created on demand\n";
        assert!(along.starts_with(requested), "{along}");
        assert!(keep.exists());
    });
}

fn harness_disk(harness: &Harness, vm: &str) -> std::path::PathBuf {
    let state = harness.state().canonicalize().unwrap();
    state.join(format!("disks/{vm}.img"))
}
