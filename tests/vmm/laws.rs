//! Laws that hold for every plan, whatever was found.
//! Out of scope: the kernel; a small model of the host carries out the actions.

use std::path::PathBuf;

use proptest::prelude::*;
use slicectl::api::meta::Uid;
use slicectl::host::process::{Exit, Identity};
use slicectl::owner::Instance;
use slicectl::reconcile::Reconcile;
use slicectl::reconcile::vmm::{
    Action, Attachment, Desired, MANAGED_FILES, Observed, RECORD, RunDir, Running, Vmm,
};
use slicectl::vmm::{GuestState, Launch};

proptest! {
    #[test]
    fn carrying_out_a_plan_leaves_nothing_to_plan((desired, observed, deaf) in world()) {
        let done = carry_out(&desired, observed, deaf, usize::MAX);
        prop_assert_eq!(Vmm::plan(&desired, &done).unwrap(), vec![]);
        prop_assert_eq!(done.running.len(), usize::from(desired.launch.is_some()));
    }

    #[test]
    fn a_crash_after_any_action_changes_nothing_in_the_end((desired, observed, deaf) in world(), stop_after in 0_usize..8) {
        let straight = carry_out(&desired, observed.clone(), deaf, usize::MAX);
        let halfway = carry_out(&desired, observed, deaf, stop_after);
        let resumed = carry_out(&desired, halfway, deaf, usize::MAX);
        prop_assert_eq!(resumed.dir, straight.dir);
        prop_assert_eq!(resumed.running.len(), straight.running.len());
    }

    #[test]
    fn deletion_leaves_nothing_of_ours_and_everything_else((desired, observed, deaf) in world()) {
        let others = others(&observed.dir);
        let deleted = carry_out(&Desired { launch: None, ..desired }, observed, deaf, usize::MAX);
        prop_assert!(deleted.running.is_empty());
        match &deleted.dir {
            RunDir::Absent => prop_assert!(others.is_empty()),
            RunDir::Present { ours, others: left } => prop_assert!(ours.is_empty() && *left == others && !left.is_empty()),
            RunDir::Foreign => prop_assert!(false, "not in this world"),
        }
    }

    #[test]
    fn a_process_that_fits_is_never_touched((desired, observed, _) in world()) {
        let fitting: Vec<&Running> = observed.running.iter().filter(|running| fits(&desired, running)).collect();
        let touched: Vec<u32> = Vmm::plan(&desired, &observed).unwrap().iter().filter_map(touches).collect();
        prop_assert!(fitting.is_empty() || fitting.iter().any(|running| !touched.contains(&running.process.resource().pid)));
    }

    #[test]
    fn a_forced_deletion_kills_and_asks_nobody((desired, observed, deaf) in world()) {
        let forced = Desired { launch: None, forced: true, ..desired };
        let plan = Vmm::plan(&forced, &observed).unwrap();
        let to_processes: Vec<&Action> = plan.iter().filter(|action| touches(action).is_some()).collect();
        prop_assert!(to_processes.iter().all(|action| matches!(action, Action::Kill(_))));
        prop_assert_eq!(to_processes.len(), observed.running.len());
        prop_assert!(carry_out(&forced, observed, deaf, usize::MAX).running.is_empty());
    }

    #[test]
    fn nothing_is_started_before_what_must_go_has_gone((desired, observed, _) in world()) {
        let plan = Vmm::plan(&desired, &observed).unwrap();
        let launch = plan.iter().position(|action| matches!(action, Action::Launch { .. }));
        let last_kill = plan.iter().rposition(|action| matches!(action, Action::Kill(_)));
        prop_assert!(launch.is_none() || last_kill < launch);
    }
}

fn fits(desired: &Desired, running: &Running) -> bool {
    running.attachment == Attachment::In
        && running.stale.is_empty()
        && desired
            .launch
            .as_ref()
            .is_some_and(|launch| launch.argv == running.argv)
}

fn touches(action: &Action) -> Option<u32> {
    match action {
        Action::RequestPowerDown(process)
        | Action::PoweredDown { process, .. }
        | Action::Pause(process)
        | Action::Resume(process)
        | Action::Terminate(process)
        | Action::Kill(process) => Some(process.resource().pid),
        Action::RecordExit => None,
        Action::Record(_) | Action::CreateRunDir | Action::Launch { .. } => None,
        Action::RemoveFiles(_) | Action::RemoveRunDir => None,
    }
}

fn others(dir: &RunDir) -> Vec<String> {
    match dir {
        RunDir::Present { others, .. } => others.clone(),
        RunDir::Absent | RunDir::Foreign => Vec::new(),
    }
}

/// A host that is either deaf to everything but SIGKILL, or polite.
fn carry_out(desired: &Desired, mut world: Observed, deaf: bool, at_most: usize) -> Observed {
    for action in Vmm::plan(desired, &world)
        .unwrap()
        .into_iter()
        .take(at_most)
    {
        match action {
            Action::CreateRunDir => {
                world.dir = RunDir::Present {
                    ours: vec![],
                    others: vec![],
                }
            }
            Action::Record(_) => world
                .running
                .iter_mut()
                .for_each(|running| running.recorded = true),
            Action::RequestPowerDown(gone) | Action::Terminate(gone) if !deaf => {
                world.running.retain(|r| r.process != gone)
            }
            Action::RequestPowerDown(_) | Action::Terminate(_) => {}
            // Time passes.
            Action::PoweredDown { process, .. } => world
                .running
                .iter_mut()
                .filter(|running| running.process == process)
                .for_each(|running| running.power_down_requested_ms = Some(u64::MAX)),
            Action::Pause(held) => world
                .running
                .iter_mut()
                .filter(|running| running.process == held)
                .for_each(|running| running.guest = Some(GuestState::Paused)),
            Action::Resume(held) => world
                .running
                .iter_mut()
                .filter(|running| running.process == held)
                .for_each(|running| running.guest = Some(GuestState::Running)),
            Action::RecordExit => panic!("every end may be answered in this world"),
            Action::Kill(gone) => world.running.retain(|running| running.process != gone),
            Action::Launch { .. } => {
                let argv = desired.launch.as_ref().unwrap().argv.clone();
                add(&mut world.dir, RECORD);
                world
                    .running
                    .push(running(desired, 9999, argv, true, Attachment::In, true));
            }
            Action::RemoveFiles(names) => match &mut world.dir {
                RunDir::Present { ours, .. } => ours.retain(|name| !names.contains(name)),
                RunDir::Absent | RunDir::Foreign => panic!("no directory to remove files from"),
            },
            Action::RemoveRunDir => {
                assert!(
                    matches!(&world.dir, RunDir::Present { ours, others } if ours.is_empty() && others.is_empty())
                );
                world.dir = RunDir::Absent;
            }
        }
    }
    world
}

fn add(dir: &mut RunDir, name: &str) {
    let RunDir::Present { ours, .. } = dir else {
        panic!("started without a run directory");
    };
    if !ours.iter().any(|found| found == name) {
        ours.push(name.to_owned());
        ours.sort();
    }
}

fn running(
    desired: &Desired,
    pid: u32,
    argv: Vec<String>,
    recorded: bool,
    attachment: Attachment,
    has_control_socket: bool,
) -> Running {
    let identity = Identity {
        pid,
        start: 1,
        boot: "boot".into(),
    };
    let label = desired.label.to_string();
    Running {
        process: desired.label.claim(identity, Some(&label)).unwrap(),
        argv,
        recorded,
        attachment,
        has_control_socket,
        stale: Vec::new(),
        power_down_requested_ms: None,
        guest: None,
    }
}

fn world() -> impl Strategy<Value = (Desired, Observed, bool)> {
    let process = (
        prop::sample::select(vec!["right", "wrong", "stale"]),
        any::<bool>(),
        prop::sample::select(vec![
            Attachment::In,
            Attachment::TapGone,
            Attachment::Elsewhere,
        ]),
        any::<bool>(),
    );
    let files = prop::sample::subsequence(MANAGED_FILES.to_vec(), 0..=MANAGED_FILES.len());
    let others = prop::sample::subsequence(vec!["notes.txt", "record.json"], 0..=2);
    let dir = prop::option::weighted(0.8, (files, others));
    let ended = prop::option::of(prop::sample::select(vec![
        Exit::Code(1),
        Exit::Signal(9),
        Exit::Unknown,
    ]));
    (
        any::<bool>(),
        prop::collection::vec(process, 0..3),
        dir,
        ended,
        any::<bool>(),
    )
        .prop_map(|(expected, processes, dir, ended, deaf)| {
            let desired = desired(expected);
            let dir = dir.map_or(RunDir::Absent, |(ours, others)| RunDir::Present {
                ours: ours.into_iter().map(str::to_owned).collect(),
                others: others.into_iter().map(str::to_owned).collect(),
            });
            let on_record = processes.iter().position(|process| process.1);
            let running = processes
                .into_iter()
                .enumerate()
                .map(|(place, (right, _, attachment, polite))| {
                    // The one whose file is stale has the right words.
                    let argv = ["vmm", &right.replace("stale", "right")].map(str::to_owned);
                    let stale = (right == "stale").then(|| "vm.json".to_owned());
                    Running {
                        stale: stale.into_iter().collect(),
                        ..running(
                            &desired,
                            100 + u32::try_from(place).unwrap(),
                            argv.to_vec(),
                            on_record == Some(place),
                            attachment,
                            polite,
                        )
                    }
                })
                .collect();
            (
                desired.clone(),
                Observed {
                    dir,
                    running,
                    ended,
                    ended_as: None,
                    last_output: String::new(),
                },
                deaf,
            )
        })
}

fn desired(expected: bool) -> Desired {
    let uid: Uid = "7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a44".parse().unwrap();
    let label = Instance::of(&PathBuf::from("/state")).vm_label(&"web-1".parse().unwrap(), uid);
    let argv = vec!["vmm".to_owned(), "right".to_owned()];
    let desired_launch = expected.then(|| Launch {
        argv,
        netns: Some("/run/netns/a".into()),
        tap: "tap0".into(),
        files: Vec::new(),
        pipes: Vec::new(),
        version: None,
        only_kept: false,
        confined_by: Default::default(),
        back_end: None,
    });
    Desired {
        label,
        uid,
        dir: "/run/slice/vm/a".into(),
        launch: desired_launch,
        disks: Vec::new(),
        confined: None,
        grace: Default::default(),
        forced: false,
        left: Default::default(),
        guest: Default::default(),
        evaluated_exits: Default::default(),
    }
}
