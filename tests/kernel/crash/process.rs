//! A VM that runs: adopted by every next life with its process, and gone with it in the end. With each of the VMMs: QEMU, and
//! a double of the others unless the real one is named.
//! Out of scope: what the guest does.

use std::path::{Path, PathBuf};

use slicectl::api::host_group::{HostGroupSpec, UpdatePolicy};
use slicectl::api::vm::{Hypervisor, Power};
use slicectl::host::process::{self, Identity, ProcessState, StopSignal};
use slicectl::reconcile::vmm::{CONSOLE, LABEL_VAR, RUN_DIR_VAR};

use crate::crash::life::{Dirs, End, Intent};
use test_support::kernel;
use test_support::objects::spec;
use test_support::vmm::{jailed_program, program, tiny_guest};

const GROUP: &str = "real";
const VM: &str = "real-1";

/// Killed before any action of its building, there is one VM in the end, with one process, and it is as if nothing had been.
fn one_process_in_the_end(place: impl FnOnce() -> Place + Send) {
    kernel::private_sync(|| {
        let place = place();
        for at in 0.. {
            let end = place.dirs.live_until_killed(place.apply(), at);
            assert!(place.processes().len() <= 1, "killed before action {at}");
            assert_eq!(place.dirs.live(Intent::Same), End::Converged);
            let process = place.processes();
            assert_eq!(process.len(), 1, "killed before action {at}");
            let again = place.dirs.live_counting(Intent::Same);
            assert_eq!(again, (End::Converged, vec![]), "after action {at}");
            assert_eq!(place.processes(), process, "after action {at}");
            place.delete();
            if end != End::Killed {
                assert!(at > 15, "only {at} actions");
                break;
            }
        }
    });
}

#[test]
fn killed_before_any_action_that_builds_a_vm_of_qemu_there_is_one_in_the_end() {
    one_process_in_the_end(|| Place::of(Hypervisor::Qemu));
}

#[test]
fn killed_before_any_action_that_builds_a_vm_of_a_jailed_firecracker_there_is_one_in_the_end() {
    one_process_in_the_end(Place::jailed);
}

#[test]
fn killed_before_any_action_that_builds_a_vm_of_firecracker_there_is_one_in_the_end() {
    one_process_in_the_end(|| Place::of(Hypervisor::Firecracker));
}

#[test]
fn killed_before_any_action_that_builds_a_vm_of_cloud_hypervisor_there_is_one_in_the_end() {
    one_process_in_the_end(|| Place::of(Hypervisor::CloudHypervisor));
}

fn lives_on(place: impl FnOnce() -> Place + Send) {
    kernel::private_sync(|| {
        let place = place();
        assert_eq!(place.dirs.live(place.apply()), End::Converged);
        let started = place.processes();
        assert_eq!(started.len(), 1);
        assert_eq!(
            place.dirs.live_counting(Intent::Same),
            (End::Converged, vec![])
        );
        assert_eq!(place.processes(), started, "a restart");
        std::fs::remove_dir_all(&place.dirs.state).unwrap();
        assert_eq!(place.dirs.live(Intent::Same), End::Converged);
        assert_eq!(place.processes(), started, "a state that is lost");
        let record = place.dirs.run.join("vm");
        for entry in std::fs::read_dir(record).unwrap() {
            std::fs::remove_file(entry.unwrap().path().join("process")).unwrap();
        }
        assert_eq!(place.dirs.live(Intent::Same), End::Converged);
        assert_eq!(place.processes(), started, "a record that is lost");
        place.delete();
    });
}

#[test]
fn a_qemu_lives_through_every_death_of_the_daemon_and_the_loss_of_its_state() {
    lives_on(|| Place::of(Hypervisor::Qemu));
}

#[test]
fn a_jailed_firecracker_lives_through_every_death_of_the_daemon_and_the_loss_of_its_state() {
    lives_on(Place::jailed);
}

#[test]
fn a_firecracker_lives_through_every_death_of_the_daemon_and_the_loss_of_its_state() {
    lives_on(|| Place::of(Hypervisor::Firecracker));
}

#[test]
fn a_cloud_hypervisor_lives_through_every_death_of_the_daemon_and_the_loss_of_its_state() {
    lives_on(|| Place::of(Hypervisor::CloudHypervisor));
}

/// What of a VM that runs is lost while no daemon is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    RunDir,
    State,
    Netns,
}

/// `told`: whether it is known without the run directory what the VMM has read when it was started. One that an object wants is kept or replaced; one that nothing on the disk knows of any more is stopped, and all of it is gone.
fn survives_or_is_stopped(place: impl FnOnce() -> Place + Send, reported: Expected) {
    use Lost::{Netns, RunDir, State};
    let cases: [(&[Lost], Expected); 7] = [
        (&[State], Expected::Kept),
        (&[RunDir], reported),
        (&[Netns], Expected::Replaced),
        (&[State, Netns], Expected::Replaced),
        (&[RunDir, Netns], Expected::Replaced),
        (&[State, RunDir], Expected::Stopped),
        (&[State, RunDir, Netns], Expected::Stopped),
    ];
    kernel::private_sync(|| {
        let place = place();
        for (lost, expected) in cases {
            assert_eq!(place.dirs.live(place.apply()), End::Converged);
            let started = place.processes();
            assert_eq!(started.len(), 1, "{lost:?}");
            lost.iter().for_each(|lost| place.lose(*lost));
            assert_eq!(place.dirs.live(Intent::Same), End::Converged, "{lost:?}");
            let now = place.processes();
            match expected {
                Expected::Kept => assert_eq!(now, started, "{lost:?}"),
                Expected::Replaced => {
                    assert_eq!(now.len(), 1, "{lost:?}");
                    assert_ne!(now, started, "{lost:?}");
                }
                Expected::Stopped => {
                    place.assert_empty();
                    let links = kernel::run("ip -o link");
                    assert!(!links.contains("slice/"), "{lost:?}: {links}");
                    continue;
                }
            }
            place.delete();
        }
    });
}

#[derive(Clone, Copy)]
enum Expected {
    Kept,
    Replaced,
    Stopped,
}

#[test]
fn a_qemu_without_run_directory_and_state_is_stopped() {
    survives_or_is_stopped(|| Place::of(Hypervisor::Qemu), Expected::Kept);
}

#[test]
fn a_jailed_firecracker_without_run_directory_and_state_is_stopped() {
    survives_or_is_stopped(Place::jailed, Expected::Replaced);
}

#[test]
fn a_firecracker_without_run_directory_and_state_is_stopped() {
    survives_or_is_stopped(|| Place::of(Hypervisor::Firecracker), Expected::Replaced);
}

#[test]
fn a_cloud_hypervisor_without_run_directory_and_state_is_stopped() {
    survives_or_is_stopped(|| Place::of(Hypervisor::CloudHypervisor), Expected::Kept);
}

fn nothing_is_left(place: impl FnOnce() -> Place + Send) {
    kernel::private_sync(|| {
        let place = place();
        for at in 0.. {
            assert_eq!(place.dirs.live(place.apply()), End::Converged);
            let end = place.dirs.live_until_killed(Intent::Delete(GROUP), at);
            assert_eq!(place.dirs.live(Intent::Same), End::Converged);
            place.assert_empty();
            if end != End::Killed {
                assert!(at > 6, "only {at} actions");
                break;
            }
        }
    });
}

#[test]
fn killed_before_any_action_of_its_end_nothing_of_a_qemu_is_left() {
    nothing_is_left(|| Place::of(Hypervisor::Qemu));
}

#[test]
fn killed_before_any_action_of_its_end_nothing_of_a_jailed_firecracker_is_left() {
    nothing_is_left(Place::jailed);
}

#[test]
fn killed_before_any_action_of_its_end_nothing_of_a_firecracker_is_left() {
    nothing_is_left(|| Place::of(Hypervisor::Firecracker));
}

#[test]
fn killed_before_any_action_of_its_end_nothing_of_a_cloud_hypervisor_is_left() {
    nothing_is_left(|| Place::of(Hypervisor::CloudHypervisor));
}

#[test]
fn killed_before_any_action_of_a_stop_the_next_life_finishes_it_and_keeps_the_log() {
    check_each_report(Power::Stopped, 3, |place, started| {
        assert_eq!(place.processes(), vec![]);
        assert!(matches!(
            process::open(started).unwrap(),
            ProcessState::Ended(_)
        ));
        assert!(place.console().exists());
        // Down, it takes no action and no process.
        assert_eq!(
            place.dirs.live_counting(Intent::Same),
            (End::Converged, vec![])
        );
        assert_eq!(
            place.dirs.live(Intent::Power(VM, Power::Running)),
            End::Converged
        );
        assert_eq!(place.processes().len(), 1);
    });
}

#[test]
fn killed_before_any_action_of_a_restart_there_is_one_other_process_in_the_end() {
    check_each_report(Power::Restarting, 4, |place, started| {
        let now = place.processes();
        assert_eq!(now.len(), 1);
        assert_ne!(now[0], *started);
        assert_eq!(
            place.dirs.live_counting(Intent::Same),
            (End::Converged, vec![]),
            "a restart is over once it has happened"
        );
        assert_eq!(place.processes(), now);
    });
}

#[test]
fn killed_before_any_action_of_a_pause_the_same_process_is_held_in_the_end() {
    check_each_report(Power::Paused, 1, |place, started| {
        assert_eq!(place.processes(), std::slice::from_ref(started));
        assert_eq!(
            place.dirs.live_counting(Intent::Same),
            (End::Converged, vec![])
        );
        let (end, actions) = place.dirs.live_counting(Intent::Power(VM, Power::Running));
        assert_eq!(end, End::Converged);
        assert!(
            actions.iter().any(|a| a.starts_with("resume")),
            "{actions:?}"
        );
        assert_eq!(place.processes(), std::slice::from_ref(started));
    });
}

fn check_each_report(power: Power, at_least: usize, check: impl Fn(&Place, &Identity) + Sync) {
    for hypervisor in [
        Hypervisor::Qemu,
        Hypervisor::Firecracker,
        Hypervisor::CloudHypervisor,
    ] {
        reported(hypervisor, power, at_least, &check);
    }
}

/// A VM that runs is told that, by a daemon that dies before every single action in turn; the next one finishes it.
fn reported(
    hypervisor: Hypervisor,
    power: Power,
    at_least: usize,
    check: &(impl Fn(&Place, &Identity) + Sync),
) {
    kernel::private_sync(|| {
        let place = Place::of(hypervisor);
        for at in 0.. {
            assert_eq!(place.dirs.live(place.apply()), End::Converged);
            let started = place.processes().remove(0);
            let end = place.dirs.live_until_killed(Intent::Power(VM, power), at);
            assert_eq!(place.dirs.live(Intent::Same), End::Converged);
            check(&place, &started);
            place.delete();
            if end != End::Killed {
                assert!(at >= at_least, "only {at} actions");
                break;
            }
        }
    });
}

struct Place {
    dirs: Dirs,
    spec: HostGroupSpec,
    /// Where its programs are.
    programs: tempfile::TempDir,
}

impl Place {
    fn of(hypervisor: Hypervisor) -> Self {
        // So that every build takes the same actions.
        kernel::run("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut template = spec(Some("169.254.100.0/22"), "");
        template.hypervisor = hypervisor;
        template.ram_bytes = 64 << 20;
        template.kernel_file = Some(tiny_guest());
        template.lifecycle.program = program(hypervisor, programs.path());
        Self {
            programs,
            // The path is in the label of every process on this machine, so it is nobody else's.
            dirs: Dirs::below(
                &PathBuf::from("/run").join(slicectl::api::meta::Uid::random().to_string()),
            ),
            spec: HostGroupSpec {
                count: 1,
                update: UpdatePolicy::Rolling,
                template,
            },
        }
    }

    /// Of Firecracker, by its jailer.
    fn jailed() -> Self {
        let mut place = Self::of(Hypervisor::Firecracker);
        let (program, jailer) = jailed_program(place.programs.path());
        let life = &mut place.spec.template.lifecycle;
        (life.program, life.jailer) = (Some(program), Some(jailer));
        place
    }

    fn apply(&self) -> Intent<'_> {
        Intent::Apply(GROUP, &self.spec)
    }

    fn delete(&self) {
        assert_eq!(self.dirs.live(Intent::Delete(GROUP)), End::Converged);
        self.assert_empty();
    }

    fn assert_empty(&self) {
        assert_eq!(self.processes(), vec![]);
        let left = |dir: &str| {
            std::fs::read_dir(self.dirs.run.join(dir))
                .into_iter()
                .flatten()
                .count()
        };
        assert_eq!((left("vm"), left("netns")), (0, 0));
    }

    fn lose(&self, lost: Lost) {
        let run = self.dirs.run.display();
        match lost {
            Lost::State => std::fs::remove_dir_all(&self.dirs.state).unwrap(),
            Lost::RunDir => {
                // The journal of this boot is in the run directory, too: with it nothing would be lost.
                kernel::run(&format!(
                    "umount -l {run}/vm/*/vmm; rm -rf {run}/vm {run}/state.*"
                ));
            }
            Lost::Netns => {
                kernel::run(&format!(
                    "for name in $(ls {run}/netns); do umount -l {run}/netns/$name; rm {run}/netns/$name /run/netns/$name; done"
                ));
            }
        }
    }

    fn console(&self) -> PathBuf {
        let vms = std::fs::read_dir(self.dirs.run.join("vm")).expect("a run directory");
        let vm = vms.flatten().next().expect("a VM").path();
        vm.join("vmm").join(CONSOLE)
    }

    fn processes(&self) -> Vec<Identity> {
        let ours = |pid: u32| {
            let dir = process::env_var(pid, RUN_DIR_VAR).ok().flatten();
            dir.is_some_and(|dir| Path::new(&dir).starts_with(&self.dirs.run))
        };
        let found = process::find(LABEL_VAR)
            .unwrap()
            .into_iter()
            .map(|found| found.identity);
        found.filter(|identity| ours(identity.pid)).collect()
    }
}

impl Drop for Place {
    /// A test that fails leaves no VMM behind.
    fn drop(&mut self) {
        for identity in self.processes() {
            if let Ok(ProcessState::Alive(process)) = process::open(&identity) {
                let _ = process.stop(StopSignal::Kill);
            }
        }
    }
}
