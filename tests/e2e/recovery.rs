//! What a daemon finds when it starts: its own world, with or without its memory of it.
//! Out of scope: a crash after every single action (in process); garbage (`leftovers`).

use std::time::{Duration, Instant};

use serde_json::Value;
use slicectl::api::stage::Stage;
use slicectl::store::{self, Opened, RunCopy, Store};

use test_support::harness::{self, Harness, empty, group, slots, with_daemon};
use test_support::kernel::{Canaries, run};

/// uid, address and pid of each VM.
fn identities(harness: &Harness) -> Vec<[Value; 3]> {
    let list = harness.get("vms");
    let items = list["items"].as_array().expect("items").iter();
    let network = |vm: &Value| vm["status"]["network"]["ip"].clone();
    items
        .map(|vm| {
            [
                vm["metadata"]["uid"].clone(),
                network(vm),
                vm["status"]["vmm"]["pid"].clone(),
            ]
        })
        .collect()
}

/// Log lines of the daemon's last life that are more than information.
fn alarms(log_before: &str, harness: &Harness) -> Vec<String> {
    let log = harness.log();
    let lines = log[log_before.len()..].lines();
    let loud = lines.filter(|line| line.contains("WARN") || line.contains("ERROR"));
    loud.map(str::to_owned).collect()
}

#[test]
fn after_kill_9_what_exists_is_adopted_and_no_link_rule_or_route_is_recreated() {
    with_daemon(|mut harness| {
        let canaries = Canaries::release();
        harness.save("sandbox.yaml", &slots(8, "drop: [192.168.1.0/24]"));
        harness.until("the group", || {
            (harness.get("hg sandbox")["status"]["ready_count"] == 8).then_some(())
        });
        let before = (harness::world_to_the_last_handle(), identities(&harness));
        let leases = harness.get("leases");
        harness.kill();
        assert_eq!(
            harness::world_to_the_last_handle(),
            before.0,
            "it fell with its daemon"
        );
        let log = harness.log();
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        harness.stays(Duration::from_secs(1), || harness.messages("", "Drift"));
        assert_eq!(
            (harness::world_to_the_last_handle(), identities(&harness)),
            before
        );
        assert_eq!(harness.get("leases"), leases);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        assert_eq!(alarms(&log, &harness), [""; 0]);
        canaries.assert_alive();
    });
}

#[test]
fn a_lost_state_database_is_created_again_from_what_runs() {
    adopted_without(|harness| {
        std::fs::remove_dir_all(harness.state()).unwrap();
    });
}

#[test]
fn a_corrupt_state_database_is_set_aside_with_a_clear_message() {
    adopted_without(|harness| {
        for entry in std::fs::read_dir(harness.state().join("db"))
            .unwrap()
            .flatten()
        {
            if entry.path().is_file() {
                let length = entry.metadata().unwrap().len();
                let noise: Vec<u8> = (0..length).map(|at| (at * 37 % 251) as u8).collect();
                std::fs::write(entry.path(), noise).unwrap();
            }
        }
    });
}

fn adopted_without(spoil: impl FnOnce(&Harness) + Send) {
    with_daemon(|mut harness| {
        harness.save("sandbox.yaml", &slots(3, "drop: [192.168.1.0/24]"));
        harness.apply(&group("applied", 1, "169.254.104.0/22", ""));
        harness.until("the group", || {
            (harness.get("hg sandbox")["status"]["ready_count"] == 3).then_some(())
        });
        let before = (harness::world_to_the_last_handle(), identities(&harness));
        harness.kill();
        let had = harness.state().join("db").exists();
        spoil(&harness);
        let spoilt = had && harness.state().join("db").exists();
        harness.start();
        harness.ctl("wait hg/sandbox hg/applied --for ready --timeout 20s");
        if spoilt {
            let reported = harness
                .messages("host", "StateSetAside")
                .pop()
                .expect("an event");
            assert!(
                reported.contains(harness.state().to_str().unwrap()),
                "{reported}"
            );
            assert!(harness.log().contains("moved away"));
        }
        harness.stays(Duration::from_secs(1), || harness.messages("", "Drift"));
        assert_eq!(
            (harness::world_to_the_last_handle(), identities(&harness)),
            before
        );
        // Whose they are is known, too.
        let file = harness.write("mine.yaml", &slots(1, ""));
        assert!(
            harness
                .refused(&format!("apply -f {file}"), 1)
                .contains("sandbox.yaml")
        );
        harness.ctl("delete hg applied --wait=20s");
        assert_eq!(run("ls /run/netns").lines().count(), 3);
    });
}

#[test]
fn a_file_removed_while_the_daemon_was_down_takes_its_vms_with_it() {
    with_daemon(|mut harness| {
        let bare = harness::world();
        harness.save("sandbox.yaml", &slots(2, ""));
        harness.until("the group", || {
            (harness.get("hg sandbox")["status"]["ready_count"] == 2).then_some(())
        });
        harness.kill();
        std::fs::remove_file(harness.conf().join("sandbox.yaml")).unwrap();
        harness.start();
        harness.until("nothing left", || harness.vms().is_empty().then_some(()));
        harness.until("nothing of ours", || (links_of_ours() == 0).then_some(()));
        harness.until("the bare host", || {
            let forwarding = |world: &str| world.replace("\n1\n", "\n0\n");
            (forwarding(&tables_forgotten(&harness::world()))
                == forwarding(&tables_forgotten(&bare)))
            .then_some(())
        });
    });
}

/// Without the words by which an empty table says that it is there.
fn tables_forgotten(world: &str) -> String {
    let empty =
        |line: &&str| !(line.starts_with('*') || line.starts_with(':') || *line == "COMMIT");
    world
        .lines()
        .filter(empty)
        .map(|line| format!("{line}\n"))
        .collect()
}

fn links_of_ours() -> usize {
    run("ip -o link")
        .lines()
        .filter(|line| line.contains("slice/"))
        .count()
}

#[test]
fn killed_at_any_moment_of_building_32_slots_it_goes_on_where_it_was() {
    with_daemon(|mut harness| {
        harness.apply(&slots(1, ""));
        harness.ctl("delete hg sandbox --wait=20s");
        // How long the building takes here tells where "any moment" lies.
        let begin = Instant::now();
        harness.apply(&slots(32, ""));
        let whole = begin.elapsed();
        let names = harness.vms();
        let leases = harness.get("leases")["items"].as_array().unwrap().len();
        assert_eq!((names.len(), leases), (32, 32));
        harness.ctl("delete hg sandbox --wait=30s");
        let mut seed = 0x9e37_79b9_u32;
        for round in 0..10 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let manifest = harness.write("m.yaml", &slots(32, ""));
            harness.ctl(&format!("apply -f {manifest}"));
            std::thread::sleep(whole.mul_f64(f64::from(seed >> 16) / 65536.0));
            harness.kill();
            harness.start();
            harness.ctl("wait hg/sandbox --for ready --timeout 60s");
            assert_eq!(harness.vms(), names, "round {round}");
            assert_eq!(links_of_ours_on_the_host(), 32, "round {round}");
            assert_eq!(run("ls /run/netns").lines().count(), 32, "round {round}");
            harness.ctl("delete hg sandbox");
            std::thread::sleep(whole.mul_f64(f64::from(seed & 0xffff) / 131_072.0));
            harness.kill();
            harness.start();
            harness.until("all gone", || {
                (harness.vms().is_empty()
                    && links_of_ours_on_the_host() == 0
                    && run("ls /run/netns").is_empty())
                .then_some(())
            });
            let left = || {
                run(&format!(
                    "ls {0}/vm {0}/netns | grep - || true",
                    harness.run.display()
                ))
            };
            harness.until("no file of theirs", || {
                let left = left();
                left.is_empty().then_some(()).or_else(|| {
                    eprintln!("round {round}, left: {left}");
                    None
                })
            });
        }
    });
}

fn links_of_ours_on_the_host() -> usize {
    run("ip -o link show type veth")
        .lines()
        .filter(|line| line.contains("slice/"))
        .count()
}

#[test]
fn after_a_reboot_everything_is_rebuilt_with_the_same_leases() {
    // A new network and an empty /run under the same state: what a reboot leaves. The boot id is the machine's, so the
    // daemon is not told; it must see that nothing is there.
    let shelf = tempfile::tempdir().unwrap();
    let before = std::sync::Mutex::new(Value::Null);
    with_daemon(|mut harness| {
        harness.apply(&slots(3, ""));
        harness.apply(&slots(2, ""));
        *before.lock().unwrap() = harness.get("leases")["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l["ip"].clone())
            .collect();
        harness.stop();
        run(&format!(
            "cp -a {}/. {}",
            harness.state().display(),
            shelf.path().display()
        ));
    });
    empty(|mut harness| {
        run(&format!(
            "cp -a {}/. {}",
            shelf.path().display(),
            harness.state().display()
        ));
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        let after: Value = harness.get("leases")["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l["ip"].clone())
            .collect();
        assert_eq!(after, *before.lock().unwrap());
        // What was stored says Ready until everything has been looked at.
        harness.until("both namespaces", || {
            (run("ls /run/netns").lines().count() == 2).then_some(())
        });
    });
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused_in_one_clear_sentence() {
    with_daemon(|harness| {
        let output = harness.run_to_end(harness.sliced());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(said.contains("another sliced is using it"), "{said}");
        assert_eq!(said.matches("ERROR").count(), 1, "{said}");
        harness.ctl("version");
    });
}

/// Stores a checkpoint as a newer version would that writes another format.
fn store_checkpoint(harness: &Harness, stage: Stage, text: Option<String>) {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    let copy = RunCopy {
        path: harness.run.join("state.seal"),
        boot_id: boot_id.trim().to_owned(),
    };
    let (store, opened) = Store::open_with(&harness.state(), Some(&copy)).expect("the state");
    assert_eq!(opened, Opened::Existing);
    let uid = store.read(|world| world.vms().next().expect("a VM").meta.uid);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let written = store.write(|txn| txn.set_checkpoint(uid, stage, text));
    let written: Result<(), store::Error> = runtime.expect("a runtime").block_on(written);
    written.expect("stored");
    store.close();
}

#[test]
fn a_checkpoint_that_cannot_be_decoded_is_refused_at_the_start_and_nothing_of_its_vm_is_changed() {
    with_daemon(|mut harness| {
        harness.apply(&slots(1, ""));
        for (stage, text) in [
            (Stage::Vmm, "{"),
            (Stage::Vmm, r#"{"restarts":"once"}"#),
            (Stage::Net, r#"{"tap":7}"#),
        ] {
            harness.stop();
            let world = harness::world_to_the_last_handle();
            store_checkpoint(&harness, stage, Some(text.to_owned()));
            let output = harness.run_to_end(harness.sliced());
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            let expected =
                format!("vm/sandbox-1: the checkpoint of the {stage} stage cannot be decoded");
            assert!(stderr.contains(&expected), "{stderr}");
            assert_eq!(harness::world_to_the_last_handle(), world, "{stage} {text}");
            store_checkpoint(&harness, stage, None);
            harness.start();
            harness.ctl("wait hg/sandbox --for ready --timeout 10s");
        }
    });
}

#[test]
fn two_daemons_live_side_by_side_and_a_range_belongs_to_the_first() {
    with_daemon(|harness| {
        harness.apply(&slots(2, ""));
        let first = harness::world_to_the_last_handle();
        let mut other = Harness::new("other");
        other.start();
        let manifest = other.write("m.yaml", &slots(1, ""));
        other.ctl(&format!("apply -f {manifest}"));
        let reported = other.until("claimed", || {
            other.messages("hg/sandbox", "RangeUnavailable").pop()
        });
        assert!(
            reported.contains("169.254.100.0/22") && reported.contains("claimed by another sliced"),
            "{reported}"
        );
        let why = other.get("hg sandbox")["status"]["conditions"][0]["message"].to_string();
        assert!(why.contains("claimed"), "the group does not say why: {why}");
        other.ctl("delete hg sandbox --wait=10s");
        other.apply(&group("mine", 2, "169.254.104.0/22", ""));
        other.ctl("gc");
        harness.ctl("gc");
        harness.stays(Duration::from_millis(800), || {
            (harness.messages("", "Drift"), other.messages("", "Drift"))
        });
        assert_eq!(
            (
                harness.messages("", "Drift").len(),
                other.messages("", "Drift").len()
            ),
            (0, 0)
        );
        other.ctl("delete hg mine --wait=20s");
        other.stop();
        let table_of = |world: &str, name: &str| {
            world
                .lines()
                .skip_while(|l| !l.starts_with("namespace"))
                .filter(|l| l.contains(name))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            table_of(&harness::world_to_the_last_handle(), "tap0"),
            table_of(&first, "tap0")
        );
        harness.ctl("wait hg/sandbox --for ready --timeout 5s");
        harness.ctl("gc --dry-run");
        assert_eq!(run("ls /run/netns").lines().count(), 2);
    });
}
