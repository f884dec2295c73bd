//! What `slicectl diff` reports as planned for VMs, against what is then done: the same steps in the same order, in every mode.
//! Out of scope: how it is printed (`transcripts`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::guests::{initrd, kernel};
use test_support::cni_networks::{CniNetworks, at, pod};
use test_support::harness::{self, Harness, bridge_group, slots, world_to_the_last_handle};
use test_support::kernel::run;

/// Steps for each VM, by the name that `diff` gives it.
type Steps = BTreeMap<String, Vec<String>>;

const WEB: &str = "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24";

fn web(count: u32, more: &str) -> String {
    bridge_group("web", count, &format!("{WEB}\n{more}"))
}

/// A daemon that logs every step that it takes.
fn talkative(test: impl FnOnce(Harness, CniNetworks) + Send) {
    harness::empty(|mut harness| {
        let cni_networks = CniNetworks::install();
        cni_networks.configure_daemon(&mut harness);
        harness.env.push(("SLICE_LOG", "slicectl=debug".into()));
        harness.start();
        test(harness, cni_networks);
    });
}

/// What `diff` says of this manifest, and of whom it can say no more; saying it changes nothing.
fn output(harness: &Harness, manifest: &str) -> (Steps, BTreeMap<String, String>) {
    let file = harness.write("next.yaml", manifest);
    let reported = harness.try_ctl(&format!("diff -f {file} -o json"));
    let is_complete = reported.status.success();
    let reported: serde_json::Value = serde_json::from_slice(&reported.stdout).expect("JSON");
    let steps = serde_json::from_value(reported["actions"].clone()).expect("steps");
    let stuck: Option<BTreeMap<String, String>> =
        serde_json::from_value(reported["stuck"].clone()).expect("reasons");
    let stuck = stuck.unwrap_or_default();
    assert_eq!(is_complete, stuck.is_empty(), "{stuck:?}");
    (steps, stuck)
}

/// The same, and it can say all.
fn previewed(harness: &Harness, manifest: &str) -> Steps {
    let (world, before) = (world_to_the_last_handle(), taken(&harness.log()));
    let (steps, stuck) = output(harness, manifest);
    assert_eq!(stuck, BTreeMap::new());
    assert_eq!(world_to_the_last_handle(), world);
    assert_eq!(taken(&harness.log()), before);
    steps
}

/// Every step on the way up or down, as the daemon's log tells it.
fn taken(log: &str) -> Steps {
    let mut steps = Steps::new();
    for (line, list) in log.lines().filter_map(|line| line.split_once(" actions=[")) {
        let vm = match (line.split_once("acted vm="), line.split_once("/vm/")) {
            (Some((_, vm)), _) => vm.split(' ').next(),
            (None, Some((_, label))) => label.split('@').next(),
            (None, None) => None,
        };
        let list: Vec<String> =
            serde_json::from_str(&format!("[{list}")).expect("a list of strings");
        if !list.is_empty() {
            let vm = format!("vm/{}", vm.expect("whose steps"));
            steps.entry(vm).or_default().extend(list);
        }
    }
    steps
}

/// Applies it, and gives what was done until the group had `count` VMs, all Ready.
fn done(harness: &Harness, manifest: &str, count: usize) -> Steps {
    let before = harness.log().len();
    harness.apply(manifest);
    harness.until("the others are gone", || {
        (harness.vms().len() == count).then_some(())
    });
    taken(&harness.log()[before..])
}

/// From one manifest to another the steps are those foretold; afterwards nothing is left to say.
fn comes_true(harness: &Harness, manifest: &str, count: usize) -> Steps {
    let reported = previewed(harness, manifest);
    assert_eq!(done(harness, manifest, count), reported);
    assert_eq!(previewed(harness, manifest), Steps::new());
    reported
}

/// `fragments` are in these steps, in this order.
#[track_caller]
fn assert_in_order(steps: &[String], fragments: &[&str]) {
    let mut rest = steps.iter();
    for word in fragments {
        assert!(
            rest.any(|step| step.contains(word)),
            "{word} in {steps:#?} out of {fragments:?}"
        );
    }
}

#[test]
fn what_removes_an_isolated_vm_is_previewed_step_by_step() {
    talkative(|harness, _| {
        harness.apply(&slots(3, ""));
        let reported = comes_true(&harness, &slots(1, ""), 1);
        assert_eq!(
            reported.keys().collect::<Vec<_>>(),
            ["vm/sandbox-2", "vm/sandbox-3"]
        );
        let fragments = [
            "turn forwarding off",
            "delete namespace",
            "delete link",
            "run directory",
        ];
        assert_in_order(&reported["vm/sandbox-2"], &fragments);
    });
}

#[test]
fn what_removes_a_vm_from_a_bridge_is_previewed_step_by_step() {
    talkative(|harness, _| {
        harness.apply(&web(3, ""));
        let ip = harness.get("vm web-3")["status"]["network"]["ip"].clone();
        let reported = comes_true(&harness, &web(1, ""), 1);
        assert_eq!(
            reported.keys().collect::<Vec<_>>(),
            ["vm/web-2", "vm/web-3"]
        );
        assert_eq!(
            reported["vm/web-3"],
            [
                "turn forwarding off (TAP down)",
                "delete TAP vmtap2",
                &format!(
                    "unpin neighbour {} on brvm0",
                    ip.as_str().expect("an address")
                ),
                "remove the VM's run directory",
            ]
        );
    });
}

#[test]
fn what_removes_a_vm_from_a_cni_network_is_previewed_step_by_step() {
    talkative(|harness, cni_networks| {
        cni_networks.bridge("cni0", "10.77.0.0/24");
        harness.apply(&pod(3));
        let reported = comes_true(&harness, &pod(1), 1);
        assert_eq!(
            reported.keys().collect::<Vec<_>>(),
            ["vm/pod-2", "vm/pod-3"]
        );
        let fragments = [
            "turn forwarding off (TAP down)",
            "detach from CNI network net",
            "remove the intent",
            "delete namespace",
            "remove the VM's run directory",
        ];
        assert_in_order(&reported["vm/pod-3"], &fragments);
    });
}

#[test]
fn a_vm_that_no_plugin_could_connect_is_removed_by_the_steps_previewed() {
    talkative(|harness, cni_networks| {
        cni_networks.ptp("10.78.0.0/24");
        harness.apply(&pod(1));
        std::fs::remove_file(at("conf/10-net.conflist")).expect("removed");
        let file = harness.write("two.yaml", &pod(2));
        harness.ctl(&format!("apply -f {file}"));
        harness.until("it is stuck", || {
            let text = harness.ctl("describe vm/pod-2");
            text.contains("`net`").then_some(())
        });
        let reported = comes_true(&harness, &pod(1), 1);
        assert_in_order(&reported["vm/pod-2"], &["remove the VM's run directory"]);
    });
}

#[test]
fn a_live_change_of_an_isolated_group_is_previewed_step_by_step() {
    talkative(|harness, _| {
        harness.apply(&slots(2, "drop: [192.168.1.0/24]"));
        let reported = comes_true(&harness, &slots(2, "drop: [10.0.0.0/8]"), 2);
        assert_eq!(reported.len(), 2);
        assert_in_order(&reported["vm/sandbox-2"], &["record", "commit rules"]);
    });
}

#[test]
fn a_live_change_of_a_bridge_group_is_previewed_step_by_step() {
    talkative(|harness, _| {
        harness.apply(&web(2, ""));
        let record = "write the VM's record";
        let port = "set isolation, learning and flooding of the port";
        let open = comes_true(&harness, &web(2, "antispoof: false"), 2);
        assert_eq!(
            open["vm/web-1"],
            [port, record, "remove the filter from the TAP"]
        );
        for more in [
            "",
            "isolate_ports: true",
            "isolate_ports: true\nantispoof: false",
        ] {
            let reported = comes_true(&harness, &web(2, more), 2);
            assert_eq!(reported.len(), 2);
            assert_in_order(&reported["vm/web-2"], &[port, record, "set filter"]);
        }
    });
}

#[test]
fn the_update_policy_of_a_group_is_in_the_records_of_its_vms_in_every_mode_and_its_change_is_no_drift()
 {
    talkative(|harness, cni_networks| {
        cni_networks.ptp("10.78.0.0/24");
        for group in [slots(1, ""), web(1, ""), pod(1)] {
            harness.apply(&group);
            let next = group.replace("vcpu: 1", "vcpu: 1\n      update: on-delete");
            let reported = comes_true(&harness, &next, harness.vms().len());
            let steps: Vec<_> = reported.into_values().flatten().collect();
            assert_eq!(steps, ["write the VM's record"]);
        }
        harness.ctl("gc");
        harness.stays(Duration::from_millis(500), || harness.messages("", "Drift"));
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
    });
}

#[test]
fn an_address_that_leaves_the_list_is_previewed_to_cost_its_vm_alone() {
    talkative(|harness, _| {
        let listed = |second: &str| {
            let list = format!("[192.168.137.2/24, {second}/24, 192.168.137.4/24]");
            web(3, &format!("addresses: {list}"))
        };
        harness.apply(&listed("192.168.137.3"));
        let next = listed("192.168.137.33");
        let mut reported = previewed(&harness, &next);
        let mut done = done(&harness, &next, 3);
        assert_new(
            &mut reported,
            &mut done,
            "vm/web-2",
            "unpin neighbour 192.168.137.3 on",
        );
        assert_eq!(done, reported);
        assert_eq!(reported["vm/web-1"], ["write the VM's record"]);
    });
}

/// Takes a VM that is replaced out of both: it was removed by the steps foretold, `word` among them, and then made anew.
#[track_caller]
fn assert_new(reported: &mut Steps, done: &mut Steps, vm: &str, word: &str) {
    let mut reported = reported.remove(vm).expect("foretold");
    let done = done.remove(vm).expect("done");
    let last = reported.pop().expect("a last word");
    assert!(last.starts_with("create it again"), "{last}");
    assert_in_order(&reported, &[word, "remove the VM's run directory"]);
    assert_eq!(done[..reported.len()], reported);
    assert_eq!(done[reported.len()], "write the VM's record");
}

#[test]
fn a_change_that_cannot_be_made_live_is_previewed_as_a_removal_in_every_mode() {
    talkative(|harness, cni_networks| {
        cni_networks.bridge("cni0", "10.77.0.0/24");
        for (vm, group, word) in [
            ("vm/sandbox-1", slots(1, ""), "delete namespace"),
            ("vm/web-1", web(1, ""), "delete TAP vmtap0"),
            ("vm/pod-1", pod(1), "detach from CNI network net"),
        ] {
            harness.apply(&group);
            let next = group.replace("vcpu: 1", "vcpu: 2");
            let mut reported = previewed(&harness, &next);
            let before = harness.log().len();
            harness.apply(&next);
            let mut done = taken(&harness.log()[before..]);
            assert_new(&mut reported, &mut done, vm, word);
            assert_eq!((reported, done), (Steps::new(), Steps::new()));
        }
    });
}

#[test]
fn a_foreign_link_in_the_way_of_one_vm_is_reported_and_the_steps_of_others_are_reported_too() {
    talkative(|harness, _| {
        run("ip link add vmtap0 type bridge");
        let file = harness.write("web.yaml", &web(2, ""));
        harness.ctl(&format!("apply -f {file}"));
        harness.ctl("wait vm/web-2 --for ready --timeout 10s");
        let (reported, stuck) = output(&harness, &web(2, "antispoof: false"));
        assert_eq!(stuck.keys().collect::<Vec<_>>(), ["vm/web-1"]);
        let why = &stuck["vm/web-1"];
        assert!(why.contains("link vmtap0 is not ours"), "{why}");
        assert_in_order(&reported["vm/web-2"], &["record", "remove the filter"]);
        // Nothing of it stands but its record.
        let reported = previewed(&harness, &web(1, "").replace("vmtap", "other"));
        assert_in_order(&reported["vm/web-2"], &["delete TAP vmtap1"]);
    });
}

#[test]
fn a_vm_whose_lower_stage_must_be_rebuilt_reports_no_more_than_is_known() {
    talkative(|harness, _| {
        harness.apply(&slots(1, ""));
        harness.apply(&web(1, ""));
        let place = harness.place("sandbox-1");
        // It is repaired after 600 ms at the earliest.
        run(&format!("ip link del vmtap0; ip netns del {}", place.name));
        run(&format!("rm -f /run/slice/netns/{}", place.name));
        let (isolated, stuck) = output(&harness, &slots(1, "drop: [10.0.0.0/8]"));
        assert_eq!(stuck, BTreeMap::new());
        let (bridged, stuck) = output(&harness, &web(1, "isolate_ports: true"));
        assert_eq!(stuck, BTreeMap::new());
        assert_in_order(&isolated["vm/sandbox-1"], &["create the namespace"]);
        assert_in_order(&bridged["vm/web-1"], &["create the TAP"]);
        for step in isolated.values().chain(bridged.values()).flatten() {
            assert!(!step.contains("gate") && !step.contains("rules"), "{step}");
        }
    });
}

#[test]
fn a_vm_that_waits_for_its_kernel_reports_why_it_is_not_started() {
    talkative(|harness, _| {
        let nowhere = harness.dir.path().join("nowhere");
        let qemu = format!("hypervisor: qemu\n      kernel_file: {}", nowhere.display());
        let group = |drop: &str| slots(1, drop).replace("hypervisor: none", &qemu);
        let file = harness.write("group.yaml", &group(""));
        harness.ctl(&format!("apply -f {file}"));
        harness.until("it is stuck", || {
            let vm = harness.try_ctl("get vm sandbox-1 -o json");
            let text = String::from_utf8_lossy(&vm.stdout).into_owned();
            text.contains("\"Invalid\"").then_some(())
        });
        let (reported, stuck) = output(&harness, &group("drop: [10.0.0.0/8]"));
        assert_in_order(&reported["vm/sandbox-1"], &["record", "commit rules"]);
        assert!(stuck["vm/sandbox-1"].contains("nowhere"), "{stuck:?}");
    });
}

#[test]
fn stopping_a_running_guest_is_previewed_and_a_live_change_leaves_it_alone() {
    talkative(|harness, cni_networks| {
        cni_networks.ptp("10.78.0.0/24");
        let (kernel, image) = (kernel(), initrd(&harness, ""));
        let qemu =
            format!("hypervisor: qemu\n      kernel_file: {kernel}\n      initrd_file: {image}");
        let guests = |group: String| group.replace("hypervisor: none", &qemu);
        for (two, one) in [
            (slots(2, ""), slots(1, "")),
            (web(2, ""), web(1, "")),
            (pod(2), pod(1)),
        ] {
            harness.apply(&guests(two));
            let reported = previewed(&harness, &guests(one.clone()));
            let [(vm, steps)] = &reported.iter().collect::<Vec<_>>()[..] else {
                panic!("{reported:?}");
            };
            assert_in_order(
                steps,
                &["terminate", "turn forwarding off", "run directory"],
            );
            let before = harness.log().len();
            harness.apply(&guests(one));
            harness.until("it is gone", || {
                (!harness
                    .vms()
                    .contains(&vm.trim_start_matches("vm/").to_owned()))
                .then_some(())
            });
            assert_eq!(taken(&harness.log()[before..]), reported);
        }
        let reported = previewed(&harness, &guests(web(1, "antispoof: false")));
        assert_eq!(
            json!(reported),
            json!({"vm/web-1": [
                "set isolation, learning and flooding of the port",
                "write the VM's record",
                "remove the filter from the TAP",
            ]})
        );
    });
}

/// Steps without what depends on the uid of a VM, which it gets when it is made.
fn without_uid(steps: &[String]) -> Vec<String> {
    let plain = |step: &String| {
        let fragments: Vec<&str> = step.split(' ').collect();
        match fragments[..] {
            ["commit", "rules", _] => "commit rules".to_owned(),
            ["set", "filter", _, "on", "tap0"] => "set the filter on tap0".to_owned(),
            ["set", "filter", _, "on", "the", "TAP"] => "set the filter on the TAP".to_owned(),
            ["pin", "neighbour", ip, _, "on", ..] => {
                format!("pin neighbour {ip} {}", fragments[4..].join(" "))
            }
            _ => step.clone(),
        }
    };
    steps.iter().map(plain).collect()
}

/// What no dry run may change, beside the host: claims, objects, events.
fn records(harness: &Harness) -> [String; 4] {
    [
        run("cat /run/slice-ranges/* 2>/dev/null || true"),
        harness.ctl("get leases -o json"),
        harness.ctl("get vms -o name"),
        harness.ctl("events -o json"),
    ]
}

/// The steps of new VMs are foretold, after the lease that each of them then has; and then they are taken.
fn made_as_foretold(harness: &Harness, manifest: &str, count: usize) -> Steps {
    let before = records(harness);
    let reported = previewed(harness, manifest);
    assert_eq!(records(harness), before, "{manifest}");
    let done = done(harness, manifest, count);
    for (vm, steps) in &reported {
        let lease = harness.get(&format!("lease {}", vm.trim_start_matches("vm/")));
        let leased = match lease["block"].as_str() {
            Some(block) => format!("lease {block}"),
            None => format!("lease {}", lease["ip"].as_str().expect("an address")),
        };
        assert!(steps[0].starts_with(&leased), "{leased}: {steps:#?}");
        assert_eq!(steps[1..], without_uid(&done[vm]), "{vm}");
    }
    assert_eq!(
        reported.keys().collect::<Vec<_>>(),
        done.keys().collect::<Vec<_>>()
    );
    reported
}

#[test]
fn what_makes_an_isolated_vm_is_previewed_step_by_step() {
    talkative(|harness, _| {
        let reported = made_as_foretold(&harness, &slots(2, ""), 2);
        let fragments = [
            "lease 169.254.100.0/30",
            "create the namespace",
            "create the veth",
            "commit rules",
            "block IPv6",
            "turn forwarding on",
        ];
        assert_in_order(&reported["vm/sandbox-1"], &fragments);
        // Next to others, with a range that is derived from its name.
        let reported = made_as_foretold(&harness, &slots(4, ""), 4);
        assert_eq!(reported.len(), 2);
        let derived = harness::group("other", 1, "169.254.108.0/24", "drop: [10.0.0.0/8]");
        let derived = derived.replace("        range: 169.254.108.0/24\n", "");
        made_as_foretold(&harness, &derived, 5);
    });
}

#[test]
fn what_makes_a_vm_on_a_bridge_is_previewed_step_by_step() {
    talkative(|harness, _| {
        // The bridge does not exist yet.
        let reported = made_as_foretold(&harness, &web(2, ""), 2);
        let fragments = [
            "lease 192.168.137.2 on brvm0",
            "create the TAP",
            "port",
            "set the filter on the TAP",
            "turn forwarding on (TAP up)",
        ];
        assert_in_order(&reported["vm/web-1"], &fragments);
        let more = web(3, "");
        assert_eq!(made_as_foretold(&harness, &more, 3).len(), 1);
        for (name, network) in [
            ("apart", "isolate_ports: true"),
            ("open", "antispoof: false"),
            ("far", "isolate_ports: true\nantispoof: false"),
        ] {
            let network = format!("bridge: br{name}\ntap_prefix: {name}\n{network}");
            let group = bridge_group(name, 1, &network);
            let count = harness.vms().len() + 1;
            made_as_foretold(&harness, &group, count);
        }
    });
}

#[test]
fn what_makes_a_vm_in_a_cni_network_is_previewed_until_its_plugins_answer() {
    talkative(|harness, cni_networks| {
        cni_networks.bridge("cni0", "10.77.0.0/24");
        let before = records(&harness);
        let reported = previewed(&harness, &pod(1));
        assert_eq!(records(&harness), before);
        let done = done(&harness, &pod(1), 1);
        let (last, steps) = reported["vm/pod-1"].split_last().expect("a last line");
        assert!(last.contains("depend on the result of ADD"), "{last}");
        assert_eq!(steps.last().expect("a step"), "attach to the CNI network");
        assert_eq!(done["vm/pod-1"][..steps.len()], *steps);
    });
}

#[test]
fn the_start_of_a_new_guest_is_previewed_with_the_user_and_the_disk_that_it_gets() {
    talkative(|harness, _| {
        let (kernel, initrd) = (kernel(), initrd(&harness, ""));
        let disk = harness.dir.path().join("image");
        std::fs::write(&disk, vec![5; 1 << 20]).unwrap();
        let qemu = format!(
            "hypervisor: qemu\n      image: {}\n      kernel_file: {kernel}\n      initrd_file: {initrd}",
            disk.display()
        );
        for group in [slots(1, ""), web(1, "")] {
            let guest = group.replace("hypervisor: none", &qemu);
            let count = harness.vms().len() + 1;
            let reported = made_as_foretold(&harness, &guest, count);
            let (vm, steps) = reported.into_iter().next().expect("one VM");
            assert_in_order(&steps, &["copy", "start the VMM"]);
            let found = harness.get(&vm.replace('/', " "));
            let user = &found["status"]["vmm"]["user"];
            assert_in_order(&steps, &[&format!("for uid {user}")]);
        }
    });
}

#[test]
fn why_a_new_vm_would_get_no_address_or_not_start_is_reported() {
    talkative(|harness, _| {
        // The second of two blocks is used by the host.
        run("ip link add used0 type bridge; ip addr add 169.254.100.6/32 dev used0");
        let two = harness::group("sandbox", 2, "169.254.100.0/29", "drop: [10.0.0.0/8]");
        let (reported, stuck) = output(&harness, &two);
        assert_in_order(&reported["vm/sandbox-1"], &["lease 169.254.100.0/30"]);
        assert_eq!(
            stuck,
            BTreeMap::from([(
                "vm/sandbox-2".to_owned(),
                "no free /30 is left in 169.254.100.0/29".to_owned()
            )])
        );
        let file = harness.write("two.yaml", &two);
        harness.ctl(&format!("apply -f {file}"));
        harness.until("it says the same", || {
            let text = harness.ctl("describe vm/sandbox-2");
            text.contains(&stuck["vm/sandbox-2"]).then_some(())
        });
        // A kernel that does not exist: all but the start is shown.
        let nowhere = harness.dir.path().join("nowhere");
        let qemu = format!("hypervisor: qemu\n      kernel_file: {}", nowhere.display());
        let group = harness::group("lost", 1, "169.254.104.0/24", "");
        let (reported, stuck) = output(&harness, &group.replace("hypervisor: none", &qemu));
        assert_in_order(
            &reported["vm/lost-1"],
            &["lease", "commit rules", "forwarding on"],
        );
        assert!(stuck["vm/lost-1"].contains("nowhere"), "{stuck:?}");
        // A stranger has the name of the TAP.
        harness.apply(&web(0, ""));
        run("ip link add vmtap0 type bridge");
        let (_, stuck) = output(&harness, &web(1, ""));
        assert!(
            stuck["vm/web-1"].contains("link vmtap0 is not ours"),
            "{stuck:?}"
        );
    });
}

/// What `diff` says that each VM does, by name.
fn changes(harness: &Harness, manifest: &str) -> (serde_json::Value, BTreeMap<String, String>) {
    let file = harness.write("next.yaml", manifest);
    let reported = harness.ctl(&format!("diff -f {file} -o json"));
    let reported: serde_json::Value = serde_json::from_str(&reported).expect("JSON");
    let vms = reported["groups"][0]["vms"].as_array().into_iter();
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let vms = vms
        .flatten()
        .map(|vm| (text(&vm["name"]), text(&vm["change"])));
    let vms = vms.collect();
    (reported, vms)
}

/// What became of each VM, from the uids before and after.
fn became(
    before: &BTreeMap<String, (String, u64)>,
    after: &BTreeMap<String, (String, u64)>,
) -> BTreeMap<String, String> {
    let names = before.keys().chain(after.keys());
    let change = |name: &String| match (before.get(name), after.get(name)) {
        (None, _) => Some("add"),
        (Some(_), None) => Some("delete"),
        (Some((before, _)), Some((after, _))) if before != after => Some("replace"),
        (Some((_, before)), Some((_, after))) => (before != after).then_some("update"),
    };
    names
        .filter_map(|name| Some((name.clone(), change(name)?.to_owned())))
        .collect()
}

/// The uid and generation of each VM.
fn identities(harness: &Harness) -> BTreeMap<String, (String, u64)> {
    let list = harness.get("vms");
    let items = list["items"].as_array().expect("items").iter();
    let identity = |vm: &serde_json::Value| {
        let metadata = &vm["metadata"];
        let text = |key: &str| metadata[key].as_str().expect("a text").to_owned();
        let generation = metadata["generation"].as_u64().expect("a number");
        (text("name"), (text("uid"), generation))
    };
    items.map(identity).collect()
}

#[test]
fn every_vm_that_is_added_updated_replaced_or_deleted_is_named_and_counted() {
    talkative(|harness, _| {
        harness.apply(&slots(3, "drop: [10.0.0.0/8]"));
        let listed = |last: &str| {
            let list = format!("addresses: [192.168.137.2/24, 192.168.137.3/24, {last}/24]");
            web(3, &list)
        };
        harness.apply(&listed("192.168.137.4"));
        let replaced = |count| slots(count, "drop: [10.0.0.0/8]").replace("vcpu: 1", "vcpu: 2");
        for (what, next, plan) in [
            ("all replaced", replaced(3), [0, 3, 0, 0]),
            (
                "fewer, and live",
                slots(2, "drop: [10.0.0.0/9]").replace("vcpu: 1", "vcpu: 2"),
                [0, 0, 1, 2],
            ),
            (
                "more, and replaced",
                slots(4, "drop: [10.0.0.0/9]"),
                [2, 2, 0, 0],
            ),
            (
                "live",
                slots(4, "drop: [10.0.0.0/9]\n        on_deny: reject"),
                [0, 0, 0, 4],
            ),
            ("one address", listed("192.168.137.44"), [0, 1, 0, 2]),
            (
                "the update policy",
                listed("192.168.137.44").replace("count: 3", "count: 3\n      update: on-delete"),
                [0, 0, 0, 3],
            ),
            (
                "unchanged",
                listed("192.168.137.44").replace("count: 3", "count: 3\n      update: on-delete"),
                [0, 0, 0, 0],
            ),
        ] {
            let (reported, named) = changes(&harness, &next);
            let counts = ["add", "replace", "delete", "update"];
            let counts = counts.map(|key| reported["plan"][key].as_u64().expect("a number"));
            assert_eq!(counts, plan, "{what}: {reported:#}");
            for vm in named.keys() {
                let object = format!("vm/{vm}");
                assert!(
                    !reported["actions"][&object].is_null(),
                    "{what}: {reported:#}"
                );
            }
            let before = identities(&harness);
            harness.apply(&next);
            harness.until("all are there", || {
                (harness.get("hg")["items"].as_array()?.iter())
                    .all(|group| group["status"]["ready"] == true)
                    .then_some(())
            });
            let after = identities(&harness);
            assert_eq!(became(&before, &after), named, "{what}");
        }
    });
}
