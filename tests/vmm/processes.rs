//! Real processes: started, lost, found again, stopped.
//! Out of scope: guests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use slicectl::api::life::GracePeriod;
use slicectl::host::process::{self, Exit, Identity, ProcessState, Record, Spawn, StopSignal};
use slicectl::host::{Kind, cpu};
use slicectl::reconcile::OnHost;
use slicectl::reconcile::vmm::{
    Action, CONSOLE, CONSOLE_OLD, Desired, DesiredGuest, INPUT, LABEL_VAR, LOG_LIMIT,
    MANAGED_FILES, NOTE, RECORD, RunDir, Vmm, rotate, watch,
};
use slicectl::vmm::{Control, Launch};

use crate::fixture::{PrivateNet, converge, eventually, some_vm};
use test_support::descriptors::copy_of;
use test_support::programs::this_test;

/// The variable that turns the test of a killed launcher into the launcher.
const LAUNCH_INTO: &str = "TEST_LAUNCH_INTO";

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn spawn(
    dir: &Path,
    netns: &Path,
    argv: &[String],
    mark: &str,
) -> Result<Identity, slicectl::host::Error> {
    process::spawn(&Spawn {
        argv,
        env: &[("TEST_MARK", mark)],
        cwd: dir,
        netns,
        needs_link: "lo",
        input: None,
        log: &dir.join(CONSOLE),
        file_limit: LOG_LIMIT,
        record: &dir.join(RECORD),
        inherits: &[],
        program: None,
        confine: None,
    })
}

pub fn kill(identity: &Identity) {
    if let ProcessState::Alive(process) = process::open(identity).unwrap() {
        process.stop(StopSignal::Kill).unwrap();
    }
    assert!(eventually(Duration::from_secs(5), || matches!(
        process::open(identity).unwrap(),
        ProcessState::Ended(_)
    )));
    process::reap(identity).unwrap();
}

#[test]
fn a_process_is_alone_in_its_session_and_inherits_nothing() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let identity = spawn(dir.path(), &net.path, &words("sleep 600"), "alone").unwrap();
    let proc = PathBuf::from(format!("/proc/{}", identity.pid));
    let open = || {
        let entries = std::fs::read_dir(proc.join("fd")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        let mut open: Vec<String> = names
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        open.sort();
        open
    };
    // Until it has been loaded, its loader has a library open.
    eventually(Duration::from_secs(5), || open().len() == 3);
    assert_eq!(open(), ["0", "1", "2"]);
    assert_eq!(
        std::fs::read_link(proc.join("fd/0")).unwrap(),
        Path::new("/dev/null")
    );
    let stat = std::fs::read_to_string(proc.join("stat")).unwrap();
    let session = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap()
        .to_owned();
    assert_eq!(session, identity.pid.to_string());
    assert!(process::shares_netns(identity.pid, &net.path).unwrap());
    assert!(!process::shares_netns(identity.pid, Path::new("/proc/self/ns/net")).unwrap());
    assert_eq!(process::argv(identity.pid).unwrap(), words("sleep 600"));
    assert_eq!(
        process::env_var(identity.pid, "CARGO").unwrap(),
        None,
        "our environment stays ours"
    );
    kill(&identity);
}

#[test]
fn a_process_has_huge_pages_though_the_daemon_has_none() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    // What the daemon's allocator does.
    rustix::thread::disable_transparent_huge_pages(true).unwrap();
    let identity = spawn(dir.path(), &net.path, &words("sleep 600"), "huge").unwrap();
    rustix::thread::disable_transparent_huge_pages(false).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", identity.pid)).unwrap();
    let enabled = status.lines().find(|line| line.starts_with("THP_enabled:"));
    assert_eq!(enabled, Some("THP_enabled:\t1"));
    kill(&identity);
}

#[test]
fn many_processes_created_at_once_do_not_hold_each_others_records() {
    let net = PrivateNet::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let dir = tempfile::tempdir().unwrap();
                    kill(
                        &spawn(dir.path(), &net.path, &words("sleep 600"), "one of many").unwrap(),
                    );
                }
            });
        }
    });
}

#[test]
fn a_process_is_found_by_its_label_and_not_by_anothers() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let mark = dir.path().display().to_string();
    let identity = spawn(dir.path(), &net.path, &words("sleep 600"), &mark).unwrap();
    let found: Vec<Identity> = process::find("TEST_MARK")
        .unwrap()
        .into_iter()
        .filter(|found| found.value == mark)
        .map(|found| found.identity)
        .collect();
    assert_eq!(found, std::slice::from_ref(&identity));
    assert_eq!(
        process::read_record(&dir.path().join(RECORD)).unwrap(),
        Record::Of(identity.clone())
    );
    kill(&identity);
}

#[test]
fn a_reused_pid_is_another_process() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let identity = spawn(dir.path(), &net.path, &words("sleep 600"), "reuse").unwrap();
    let earlier = Identity {
        start: identity.start - 1,
        ..identity.clone()
    };
    let before_the_reboot = Identity {
        boot: "another".into(),
        ..identity.clone()
    };
    for other in [&earlier, &before_the_reboot] {
        assert!(matches!(
            process::open(other).unwrap(),
            ProcessState::Ended(Exit::Unknown)
        ));
    }
    assert!(matches!(
        process::open(&identity).unwrap(),
        ProcessState::Alive(_)
    ));
    kill(&identity);
}

#[tokio::test]
async fn the_end_of_a_process_and_its_status_are_reported() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    for (program, exit) in [
        ("sleep 0.2", Exit::Code(0)),
        ("false", Exit::Code(1)),
        ("sleep 600", Exit::Signal(15)),
    ] {
        let identity = spawn(dir.path(), &net.path, &words(program), "end").unwrap();
        if let (Exit::Signal(_), ProcessState::Alive(process)) =
            (exit, process::open(&identity).unwrap())
        {
            process.stop(StopSignal::Terminate).unwrap();
        }
        tokio::time::timeout(Duration::from_secs(5), watch(&identity, dir.path()))
            .await
            .unwrap()
            .unwrap();
        for look in 0..2 {
            let ProcessState::Ended(reported) = process::open(&identity).unwrap() else {
                panic!("look {look}")
            };
            assert_eq!(reported, exit, "looking does not reap");
        }
        process::reap(&identity).unwrap();
        assert!(
            !Path::new(&format!("/proc/{}", identity.pid)).exists(),
            "reaped"
        );
    }
}

#[test]
fn nothing_is_started_where_the_link_is_missing_or_the_program() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let (record, log) = (dir.path().join(RECORD), dir.path().join(CONSOLE));
    let argv = words("sleep 600");
    let spawn = Spawn {
        argv: &argv,
        env: &[],
        cwd: dir.path(),
        netns: &net.path,
        needs_link: "tap0",
        input: None,
        log: &log,
        file_limit: LOG_LIMIT,
        record: &record,
        inherits: &[],
        program: None,
        confine: None,
    };
    assert_eq!(process::spawn(&spawn).unwrap_err().kind, Kind::Absent);
    assert_eq!(process::read_record(&record).unwrap(), Record::Unborn);
    let argv = words("no-such-program-here");
    let error = process::spawn(&Spawn {
        needs_link: "lo",
        argv: &argv,
        ..spawn
    })
    .unwrap_err();
    assert_eq!(error.kind, Kind::Absent, "{error}");
    // The child noted itself and then could not become the program: the record names one that is gone.
    if let Record::Of(identity) = process::read_record(&record).unwrap() {
        assert!(matches!(
            process::open(&identity).unwrap(),
            ProcessState::Ended(_)
        ));
    }
    let error = process::spawn(&Spawn {
        netns: Path::new("/nowhere"),
        needs_link: "lo",
        ..spawn
    })
    .unwrap_err();
    assert_eq!(error.kind, Kind::Absent);
}

/// A child between fork and exec has copies of all descriptors; here it stays there.
#[test]
fn a_record_is_free_after_it_was_read_or_written_although_a_forked_child_has_its_descriptor() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let record = dir.path().join(RECORD);
    let sleep = words("sleep 600");
    let start = |log: &Path| {
        process::spawn(&Spawn {
            argv: &sleep,
            env: &[],
            cwd: dir.path(),
            netns: &net.path,
            needs_link: "lo",
            input: None,
            log,
            file_limit: LOG_LIMIT,
            record: &record,
            inherits: &[],
            program: None,
            confine: None,
        })
    };
    let log = dir.path().join(CONSOLE);
    type Use<'a> = (&'a str, &'a dyn Fn());
    let uses: [Use<'_>; 3] = [
        ("a start", &|| kill(&start(&log).unwrap())),
        ("a start that fails before the fork", &|| {
            let error = start(Path::new("/nowhere/console")).unwrap_err();
            assert_eq!(error.kind, Kind::Absent, "{error}");
        }),
        ("a read", &|| {
            process::read_record(&record).unwrap();
        }),
    ];
    for (what, act) in uses {
        let copy = std::thread::spawn({
            let record = record.clone();
            move || copy_of(&record)
        });
        while !copy.is_finished() {
            act();
        }
        let _copy = copy.join().unwrap();
        match start(&log) {
            Ok(identity) => kill(&identity),
            Err(error) => panic!("after {what}: {error}"),
        }
    }
}

#[test]
fn a_log_is_bounded_by_the_kernel_and_goes_on_after_rotation() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let line = "x".repeat(4096);
    let argv = [
        "sh".into(),
        "-c".into(),
        format!("while :; do echo {line} 2>/dev/null || sleep 0.01; done"),
    ];
    let identity = spawn(dir.path(), &net.path, &argv, "log").unwrap();
    let length =
        |name: &str| std::fs::metadata(dir.path().join(name)).map_or(0, |found| found.len());
    assert!(
        eventually(Duration::from_secs(20), || length(CONSOLE) == LOG_LIMIT),
        "{} bytes",
        length(CONSOLE)
    );
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(length(CONSOLE), LOG_LIMIT);
    assert!(
        matches!(process::open(&identity).unwrap(), ProcessState::Alive(_)),
        "a full log kills nobody"
    );
    rotate(dir.path()).unwrap();
    assert_eq!(length(CONSOLE_OLD), LOG_LIMIT);
    assert!(
        eventually(Duration::from_secs(5), || length(CONSOLE) > 0),
        "it writes again"
    );
    kill(&identity);
    let start = std::fs::read(dir.path().join(CONSOLE)).unwrap();
    assert_eq!(start.first(), Some(&b'x'), "no hole where the old log was");
}

/// The launcher starts processes as fast as it can and is killed somewhere in between; whatever was born is on record.
#[test]
fn killing_the_launcher_loses_no_process_and_kills_none() {
    if let Some(dir) = std::env::var_os(LAUNCH_INTO) {
        return launch_until_killed(Path::new(&dir));
    }
    let mut born = 0;
    for round in 0..12_u64 {
        let dir = tempfile::tempdir().unwrap();
        let mut launcher = this_test(killing_the_launcher_loses_no_process_and_kills_none)
            .env(LAUNCH_INTO, dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        assert!(eventually(Duration::from_secs(20), || dir
            .path()
            .join("1")
            .join(RECORD)
            .exists()));
        std::thread::sleep(Duration::from_micros(700 * round));
        launcher.kill().unwrap();
        launcher.wait().unwrap();
        born += count_and_stop(dir.path());
    }
    assert!(born > 12, "only {born} processes were started");
}

fn launch_until_killed(dir: &Path) {
    for number in 0.. {
        let own = dir.join(number.to_string());
        std::fs::create_dir(&own).unwrap();
        spawn(
            &own,
            Path::new("/proc/self/ns/net"),
            &words("sleep 600"),
            &own.display().to_string(),
        )
        .unwrap();
    }
}

fn count_and_stop(dir: &Path) -> usize {
    let mut recorded = Vec::new();
    for own in std::fs::read_dir(dir).unwrap() {
        let record = own.unwrap().path().join(RECORD);
        let settled =
            || !matches!(process::read_record(&record), Err(error) if error.kind == Kind::Busy);
        assert!(
            eventually(Duration::from_secs(5), settled),
            "a birth that never ends"
        );
        if let Record::Of(identity) = process::read_record(&record).unwrap() {
            recorded.push(identity);
        }
    }
    let under = dir.display().to_string();
    let mut found: Vec<Identity> = process::find("TEST_MARK")
        .unwrap()
        .into_iter()
        .filter(|found| found.value.starts_with(&under))
        .map(|found| found.identity)
        .collect();
    let by_pid = |identity: &Identity| identity.pid;
    recorded.sort_by_key(by_pid);
    found.sort_by_key(by_pid);
    for identity in &found {
        assert!(
            matches!(process::open(identity).unwrap(), ProcessState::Alive(_)),
            "it outlives its launcher"
        );
        kill(identity);
    }
    assert_eq!(recorded, found, "on record is what runs");
    found.len()
}

/// What stands in for a VMM: it holds no TAP and has no control socket.
fn sleeper(net: &PrivateNet, seconds: u32) -> Launch {
    Launch {
        argv: words(&format!("sleep {seconds}")),
        netns: Some(net.path.clone()),
        tap: "lo".into(),
        files: Vec::new(),
        pipes: Vec::new(),
        version: None,
        only_kept: false,
        confined_by: Default::default(),
        back_end: None,
    }
}

#[tokio::test]
async fn a_vmm_is_started_once_adopted_replaced_and_removed() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let desired = some_vm(dir.path(), Some(sleeper(&net, 600)));
    let (first, steps) = converge(&Vmm::default(), &desired).await;
    assert_eq!(steps, ["create the run directory", "start the VMM"]);

    let (adopted, steps) = converge(&Vmm::default(), &desired).await;
    assert_eq!(
        (adopted.process(), steps.len()),
        (first.process(), 0),
        "a new daemon takes no step"
    );

    // It runs as root: without its record it would be nobody's (`identity`).
    std::fs::remove_dir_all(&desired.dir).unwrap();
    for beside in [INPUT, NOTE] {
        std::fs::remove_file(desired.dir.with_file_name(beside)).unwrap();
    }
    let (found, steps) = converge(&Vmm::default(), &desired).await;
    assert_eq!(
        found.process(),
        first.process(),
        "found without its directory"
    );
    assert_eq!(steps, Vec::<String>::new());

    let other = Desired {
        launch: Some(sleeper(&net, 700)),
        ..desired.clone()
    };
    let (replaced, _) = converge(&Vmm::default(), &other).await;
    assert_ne!(replaced.process(), first.process());
    assert_eq!(
        process::argv(replaced.process().unwrap().pid).unwrap(),
        words("sleep 700")
    );

    std::fs::write(desired.dir.join("notes.txt"), "mine").unwrap();
    let (gone, _) = converge(
        &Vmm::default(),
        &Desired {
            launch: None,
            ..desired
        },
    )
    .await;
    assert!(gone.running.is_empty());
    assert_eq!(
        gone.dir,
        RunDir::Present {
            ours: vec![],
            others: vec!["notes.txt".into()]
        }
    );
    for identity in [first.process().unwrap(), replaced.process().unwrap()] {
        assert!(
            !Path::new(&format!("/proc/{}", identity.pid)).exists(),
            "no zombie is left"
        );
    }
}

#[tokio::test]
async fn a_killed_vmm_is_started_again_and_its_end_is_named() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let desired = some_vm(dir.path(), Some(sleeper(&net, 600)));
    let stage = Vmm::default();
    let (first, _) = converge(&stage, &desired).await;
    let identity = first.process().unwrap();
    let ProcessState::Alive(process) = process::open(identity).unwrap() else {
        panic!("it runs")
    };
    process.stop(StopSignal::Kill).unwrap();
    watch(identity, &desired.dir).await.unwrap();
    let (second, steps) = converge(&stage, &desired).await;
    assert_eq!(steps, ["start the VMM again: it was killed by SIGKILL"]);
    assert_ne!(second.process(), first.process());
    converge(
        &stage,
        &Desired {
            launch: None,
            ..desired.clone()
        },
    )
    .await;
    assert!(!desired.dir.exists());
}

#[tokio::test]
async fn a_vmm_that_cannot_run_reports_why() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let argv = vec![
        "sh".into(),
        "-c".into(),
        "echo no such kernel; exit 3".into(),
    ];
    let desired = some_vm(
        dir.path(),
        Some(Launch {
            argv,
            ..sleeper(&net, 1)
        }),
    );
    let stage = Vmm::default();
    stage.act(&desired, &Action::CreateRunDir).await.unwrap();
    let error = stage
        .act(&desired, &Action::Launch { after: None })
        .await
        .unwrap_err();
    assert_eq!(
        error.source.to_string(),
        "it exited with status 3; last output: no such kernel"
    );
    let observed = stage.observe(&desired).await.unwrap();
    assert_eq!(
        (observed.ended, observed.last_output.as_str()),
        (Some(Exit::Code(3)), "no such kernel")
    );
    converge(
        &stage,
        &Desired {
            launch: None,
            ..desired.clone()
        },
    )
    .await;
    assert!(!desired.dir.exists());
}

#[tokio::test]
async fn a_vmm_with_another_label_is_not_ours_to_stop() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let desired = some_vm(dir.path(), None);
    std::fs::create_dir(&desired.dir).unwrap();
    let stranger = spawn(&desired.dir, &net.path, &words("sleep 600"), "stranger").unwrap();
    let other = some_vm(&dir.path().join("another"), None);
    std::fs::create_dir_all(&other.dir).unwrap();
    let label = other.label.to_string();
    let neighbour = process::spawn(&Spawn {
        argv: &words("sleep 600"),
        env: &[(LABEL_VAR, &label)],
        cwd: &other.dir,
        netns: &net.path,
        needs_link: "lo",
        input: None,
        log: &other.dir.join(CONSOLE),
        file_limit: LOG_LIMIT,
        record: &other.dir.join(RECORD),
        inherits: &[],
        program: None,
        confine: None,
    })
    .unwrap();
    converge(&Vmm::default(), &desired).await;
    assert!(!desired.dir.exists(), "the files were ours");
    for alive in [&stranger, &neighbour] {
        assert!(matches!(
            process::open(alive).unwrap(),
            ProcessState::Alive(_)
        ));
    }
    // What a process of root says of itself is no claim (`identity`).
    let claimed = Vmm::default().claimed(&other.label.instance).await.unwrap();
    assert_eq!(claimed, []);
    kill(&stranger);
    kill(&neighbour);
}

#[tokio::test]
async fn a_vmm_whose_directory_is_gone_is_found_by_its_record_and_removed() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let desired = some_vm(dir.path(), Some(sleeper(&net, 600)));
    let (started, _) = converge(&Vmm::default(), &desired).await;
    std::fs::remove_dir_all(&desired.dir).unwrap();
    converge(
        &Vmm::default(),
        &Desired {
            launch: None,
            ..desired
        },
    )
    .await;
    assert!(matches!(
        process::open(started.process().unwrap()).unwrap(),
        ProcessState::Ended(_)
    ));
}

#[test]
fn every_name_we_remove_is_one_we_write() {
    let mut ours = MANAGED_FILES.to_vec();
    ours.sort_unstable();
    ours.dedup();
    assert_eq!(ours, MANAGED_FILES, "sorted, each once");
    assert!(cpu::tsc_khz().is_none_or(|khz| (100_000..20_000_000).contains(&khz)));
}

/// A VMM with a control socket that is not its own, so that every request through it fails.
async fn without_answer(guest: DesiredGuest) -> (tempfile::TempDir, PrivateNet, Vmm, Desired) {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let stage = Vmm::default();
    let desired = Desired {
        grace: GracePeriod::try_from("0s".to_owned()).unwrap(),
        ..some_vm(dir.path(), Some(sleeper(&net, 600)))
    };
    converge(&stage, &desired).await;
    std::os::unix::net::UnixListener::bind(desired.dir.join(Control::Firecracker.socket()))
        .unwrap();
    (dir, net, stage, Desired { guest, ..desired })
}

#[tokio::test]
async fn a_vmm_that_is_replaced_need_not_report_the_state_of_its_guest() {
    for guest in [DesiredGuest::Running, DesiredGuest::Paused] {
        let (_dir, net, stage, desired) = without_answer(guest).await;
        assert!(
            stage.observe(&desired).await.is_err(),
            "the one that is kept must"
        );
        let before = process::read_record(&desired.record()).unwrap();
        let other = Desired {
            launch: Some(sleeper(&net, 601)),
            ..desired.clone()
        };
        let observed = stage.observe(&other).await.unwrap();
        assert_eq!(observed.running[0].guest, None);
        let Record::Of(before) = before else {
            panic!("a process");
        };
        kill(&before);
    }
}

#[tokio::test]
async fn a_vmm_that_ends_during_a_request_has_ended() {
    let (_dir, _net, stage, desired) = without_answer(DesiredGuest::Running).await;
    let Record::Of(identity) = process::read_record(&desired.record()).unwrap() else {
        panic!("a process");
    };
    // It answers nothing more, and ends a moment later.
    let end = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let ProcessState::Alive(process) = process::open(&identity).unwrap() else {
            panic!("it lives");
        };
        process.stop(StopSignal::Kill).unwrap();
    };
    let (observed, ()) = tokio::join!(stage.observe(&desired), end);
    let observed = observed.unwrap();
    assert!(observed.running.is_empty());
    assert_eq!(observed.ended_as, Some(identity.clone()));
    process::reap(&identity).unwrap();
}
