//! A state disk or a run directory that takes no more: what runs stays enforced and repaired, changes are refused with the reason, and
//! everything goes on by itself when there is room again.
//! Out of scope: what the store does about a batch that fails (`tests/kernel/store/full.rs`, unit tests).

use std::path::PathBuf;
use std::time::Duration;

use test_support::harness::{Harness, empty, group, slots};
use test_support::kernel::run;
use test_support::tiny::is_alive;
use test_support::vmm;

use slicectl::api::vm::Hypervisor;

use super::screens::watching::Watch;

/// What takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    State,
    StateOnExt4,
    Run,
    Both,
    StateReadOnly,
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// The daemon starts so.
    AtTheStart,
    /// After a kill -9, too.
    AfterKill,
    WhileItRuns,
}

#[test]
fn a_daemon_starts_on_a_full_state_disk_and_goes_on_when_there_is_room() {
    full(Full::State, When::AtTheStart);
    full(Full::State, When::AfterKill);
}

#[test]
fn a_daemon_starts_on_a_full_ext4_and_goes_on_when_there_is_room() {
    full(Full::StateOnExt4, When::AtTheStart);
    full(Full::StateOnExt4, When::WhileItRuns);
}

#[test]
fn a_daemon_starts_in_a_full_run_directory_and_goes_on_when_there_is_room() {
    full(Full::Run, When::AtTheStart);
    full(Full::Run, When::WhileItRuns);
}

#[test]
fn a_daemon_starts_with_both_full_and_goes_on_when_there_is_room() {
    full(Full::Both, When::AtTheStart);
    full(Full::Both, When::WhileItRuns);
}

#[test]
fn a_daemon_starts_on_a_read_only_state_disk_and_goes_on_when_it_can_be_written() {
    full(Full::StateReadOnly, When::AtTheStart);
    // The kernel makes no disk read-only on which a file is open for writing.
    full(Full::StateReadOnly, When::AfterKill);
}

#[test]
fn a_state_disk_that_fills_up_while_the_daemon_runs_costs_nothing_that_was_acknowledged() {
    full(Full::State, When::WhileItRuns);
}

/// The state is damaged, and cannot even be set aside.
#[test]
fn a_damaged_state_on_a_full_disk_is_adopted_in_memory_and_stored_when_there_is_room() {
    empty(|mut harness| {
        mount(&harness, Full::State);
        harness.start();
        let _programs = build(&harness);
        let before = (harness.get("vms").to_string(), harness.vms());
        let pids = pids(&harness);
        harness.kill();
        for entry in std::fs::read_dir(harness.state().join("db"))
            .unwrap()
            .flatten()
        {
            if entry.path().is_file() {
                let length = entry.metadata().unwrap().len() as usize;
                std::fs::write(entry.path(), vec![0x5a; length]).unwrap();
            }
        }
        fill(&harness, Full::State);
        harness.start();
        assert_eq!(harness.vms(), before.1);
        assert!(!harness.messages("host", "StateSetAside").is_empty());
        repaired(&harness);
        refused(&harness, Full::State);
        make_room(&harness, Full::State);
        accepted(&harness);
        harness.kill();
        harness.start();
        harness.ctl("wait hg/sandbox hg/app hg/late --for ready --timeout 30s");
        assert_eq!(self::pids(&harness)[..pids.len()], pids[..]);
    });
}

/// What a deletion stores in between is an intent: it is tried again, and fails, as long as the disk is full.
#[test]
fn vms_whose_deletion_cannot_be_stored_delay_no_repair_and_no_watch() {
    empty(|mut harness| {
        mount(&harness, Full::State);
        harness.start();
        let _programs = build(&harness);
        harness.apply(&group("many", 60, "169.254.120.0/22", ""));
        let watch = Watch::start(&harness, "watch", "get hg app -w -o json");
        harness.until("the watch", || (!watch.lines().is_empty()).then_some(()));
        harness.ctl("delete hg many --wait=false");
        fill(&harness, Full::State);
        harness.until("the watch shows it", || {
            let lines = watch.lines();
            let is_shown = |line: &String| line.contains("StateNotWritable");
            lines.iter().any(is_shown).then_some(())
        });
        let vm = harness.get("vm sandbox-1");
        let uid = vm["metadata"]["uid"].as_str().unwrap();
        let failed = format!("failed to persist state key=Vm(Uid({uid}))");
        let failures = || harness.log().matches(&failed).count();
        let before = failures();
        for _ in 0..5 {
            repaired(&harness);
        }
        assert_eq!(failures(), before, "{}", harness.log());
        assert!(harness.try_ctl("get hg many").status.success());
        make_room(&harness, Full::State);
        harness.ctl("wait hg/many --for deleted --timeout 30s");
    });
}

fn full(what: Full, when: When) {
    empty(|mut harness| {
        eprintln!("{what:?} {when:?}");
        mount(&harness, what);
        harness.start();
        let _programs = build(&harness);
        let (vms, pids) = (harness.vms(), pids(&harness));
        match when {
            When::WhileItRuns => {
                let watch = Watch::start(&harness, "watch", "get hg app -w -o json");
                harness.until("the watch", || (!watch.lines().is_empty()).then_some(()));
                fill(&harness, what);
                use_up_what_is_allocated(&harness);
                harness.until("the watch shows it", || {
                    let lines = watch.lines();
                    let is_shown = |line: &String| line.contains("StateNotWritable");
                    lines.iter().any(is_shown).then_some(())
                });
            }
            When::AtTheStart | When::AfterKill => {
                match when {
                    When::AfterKill => harness.kill(),
                    _ => drop(harness.stop()),
                }
                fill(&harness, what);
                harness.start();
            }
        }
        assert_eq!(harness.vms(), vms);
        repaired(&harness);
        refused(&harness, what);
        // It says so wherever somebody looks.
        let reported = harness.messages("host", "StateNotWritable");
        assert!(
            reported.iter().any(|t| t.contains(words(what))),
            "{reported:?}"
        );
        let doctor = harness.try_ctl("doctor").stdout;
        let doctor = String::from_utf8_lossy(&doctor).into_owned();
        assert!(doctor.contains("changes are refused"), "{doctor}");
        for object in ["hg app", "vm sandbox-1"] {
            let conditions = harness.get(object)["status"]["conditions"].to_string();
            assert!(conditions.contains("StateNotWritable"), "{conditions}");
        }
        repaired(&harness);
        assert_eq!(
            (harness.vms(), self::pids(&harness)),
            (vms.clone(), pids.clone())
        );
        assert!(pids.iter().all(|pid| is_alive(*pid)));
        make_room(&harness, what);
        accepted(&harness);
        let conditions = harness.get("hg app")["status"]["conditions"].to_string();
        assert!(!conditions.contains("StateNotWritable"), "{conditions}");
        // And it is really stored.
        harness.kill();
        harness.start();
        harness.ctl("wait hg/sandbox hg/app hg/late --for ready --timeout 30s");
        assert_eq!(self::pids(&harness), pids);
    });
}

fn mount(harness: &Harness, what: Full) {
    let (state, dir) = (
        harness.state().display().to_string(),
        harness.run.display().to_string(),
    );
    let disk = harness.dir.path().join("disk").display().to_string();
    run(&match what {
        Full::StateOnExt4 => format!(
            "truncate -s 24M {disk} && mkfs.ext4 -q -m 0 {disk} && mount -o loop {disk} {state}"
        ),
        Full::State | Full::StateReadOnly => {
            format!("mount -t tmpfs -o size=16m,mode=0700 state {state}")
        }
        Full::Run => format!("mkdir -p {dir} && mount -t tmpfs -o size=2m,mode=0700 run {dir}"),
        Full::Both => format!(
            "mount -t tmpfs -o size=16m,mode=0700 state {state}; mkdir -p {dir} && mount -t tmpfs -o size=2m,mode=0700 run {dir}"
        ),
    });
}

/// The database has a part of its file in advance: changes are accepted until that is full.
fn use_up_what_is_allocated(harness: &Harness) {
    let nets = (0..200)
        .map(|n| format!("10.9.{n}.0/24"))
        .collect::<Vec<_>>();
    for n in 0..2000 {
        let lists = format!("drop: [{}]", nets[n % 7..].join(", "));
        let file = harness.write(
            "filler.yaml",
            &group("filler", 0, "169.254.116.0/22", &lists),
        );
        if !harness
            .try_ctl(&format!("apply -f {file}"))
            .status
            .success()
        {
            return;
        }
    }
    panic!("it is never full");
}

fn places(harness: &Harness, what: Full) -> Vec<PathBuf> {
    match what {
        Full::State | Full::StateOnExt4 | Full::StateReadOnly => vec![harness.state()],
        Full::Run => vec![harness.run.clone()],
        Full::Both => vec![harness.state(), harness.run.clone()],
    }
}

fn fill(harness: &Harness, what: Full) {
    for place in places(harness, what) {
        let place = place.display();
        run(&match what {
            Full::StateReadOnly => format!("mount -o remount,ro {place}"),
            _ => format!(
                "for n in 1048576 4096 512 1; do dd if=/dev/zero of={place}/fill.$n bs=$n 2>/dev/null || true; done; sync -f {place}"
            ),
        });
    }
}

fn make_room(harness: &Harness, what: Full) {
    for place in places(harness, what) {
        let place = place.display();
        run(&match what {
            Full::StateReadOnly => format!("mount -o remount,rw {place}"),
            _ => format!("rm -f {place}/fill.*"),
        });
    }
}

/// Two slots from a file, a VMM from an apply.
fn build(harness: &Harness) -> tempfile::TempDir {
    harness.save("sandbox.yaml", &slots(2, "drop: [10.0.0.0/8]"));
    let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = vmm::program(Hypervisor::CloudHypervisor, programs.path()).unwrap();
    let vmm = format!(
        "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}",
        program.display(),
        vmm::tiny_guest().display()
    );
    let app = group("app", 1, "169.254.104.0/22", "drop: [10.1.0.0/16]");
    harness.apply(&app.replace("hypervisor: none", &vmm));
    harness.until("the group of the file", || {
        (harness.get("hg sandbox")["status"]["ready_count"] == 2).then_some(())
    });
    programs
}

fn pids(harness: &Harness) -> Vec<u32> {
    let list = harness.get("vms");
    let items = list["items"].as_array().unwrap().iter();
    let pid = |vm: &serde_json::Value| vm["status"]["vmm"]["pid"].as_u64();
    items.filter_map(pid).map(|pid| pid as u32).collect()
}

/// What somebody breaks is repaired.
fn repaired(harness: &Harness) {
    let place = harness.place("sandbox-1");
    let rules = || run(&format!("ip netns exec {} iptables-save", place.name));
    assert!(rules().contains("10.0.0.0/8"), "{}", rules());
    run(&format!("ip netns exec {} iptables -F", place.name));
    harness.until("the rules are there again", || {
        rules().contains("10.0.0.0/8").then_some(())
    });
    run(&format!(
        "ip netns exec {} ip link set tap0 down",
        place.name
    ));
    harness.until("the TAP is up again", || {
        let link = run(&format!("ip -n {} link show tap0", place.name));
        link.contains(",UP").then_some(())
    });
}

fn words(what: Full) -> &'static str {
    match what {
        Full::StateReadOnly => "Read-only file system",
        Full::State | Full::StateOnExt4 | Full::Run | Full::Both => "No space left on device",
    }
}

/// Every kind of change, with the reason, and nothing has changed.
fn refused(harness: &Harness, what: Full) {
    let before = (harness.get("hgs")["items"].clone(), harness.vms());
    let names = |list: &serde_json::Value| {
        let items = list.as_array().unwrap().iter();
        items
            .map(|group| (group["metadata"]["name"].clone(), group["spec"].clone()))
            .collect::<Vec<_>>()
    };
    let file = harness.write("late.yaml", &group("late", 1, "169.254.108.0/22", ""));
    for words_of in [
        format!("apply -f {file}"),
        "vm add app --name more".to_owned(),
        "delete hg app".to_owned(),
        "delete vm app-1".to_owned(),
        "vm stop app-1".to_owned(),
        "vm pause app-1".to_owned(),
    ] {
        let text = harness.refused(&words_of, 1);
        let named = places(harness, what)
            .iter()
            .any(|place| text.contains(&place.canonicalize().unwrap().display().to_string()));
        assert!(
            text.contains(words(what)) && named,
            "{what:?} `{words_of}`: {text}"
        );
    }
    // Nothing is deleted or stored a moment later either.
    std::thread::sleep(Duration::from_millis(200));
    let after = (harness.get("hgs")["items"].clone(), harness.vms());
    assert_eq!(names(&after.0), names(&before.0));
    assert_eq!(after.1, before.1);
}

/// By itself, and soon.
fn accepted(harness: &Harness) {
    let file = harness.write("late.yaml", &group("late", 1, "169.254.108.0/22", ""));
    harness.until("changes are accepted", || {
        let output = harness.try_ctl(&format!("apply -f {file}"));
        output.status.success().then_some(())
    });
    harness.ctl("wait hg/late hg/sandbox hg/app --for ready --timeout 30s");
    harness.until("the event", || {
        harness.messages("host", "StateWritable").pop()
    });
}
