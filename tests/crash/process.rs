//! A VM that runs: adopted by every next life with its process, and gone with it in the end. QEMU, with a real kernel.
//! Not here: what the guest does.

use std::path::{Path, PathBuf};

use slicectl::api::host_group::{HostGroupSpec, UpdatePolicy};
use slicectl::api::vm::{Hypervisor, Power};
use slicectl::host::process::{self, Identity, Life, Stop};
use slicectl::reconcile::vmm::{CONSOLE, LABEL_VAR, RUN_DIR_VAR};

use crate::life::{Dirs, End, Intent};
use crate::support::kernel;
use crate::support::objects::spec;

const GROUP: &str = "real";
const VM: &str = "real-1";

#[test]
fn killed_around_the_birth_of_a_process_there_is_one_process_in_the_end() {
    kernel::private_sync(|| {
        let place = Place::new();
        let (end, actions) = place.dirs.live_counting(place.apply());
        assert_eq!(end, End::Converged, "{actions:#?}");
        let birth = actions.len() - 1;
        place.delete();
        for at in [birth - 1, birth] {
            assert_eq!(place.dirs.live_until_killed(place.apply(), at), End::Killed);
            assert_eq!(place.dirs.live(Intent::Same), End::Converged);
            assert_eq!(place.processes().len(), 1);
            place.delete();
        }
    });
}

#[test]
fn a_process_lives_through_every_death_of_the_daemon_and_the_loss_of_its_state() {
    kernel::private_sync(|| {
        let place = Place::new();
        assert_eq!(place.dirs.live(place.apply()), End::Converged);
        let born = place.processes();
        assert_eq!(born.len(), 1);
        assert_eq!(
            place.dirs.live_counting(Intent::Same),
            (End::Converged, vec![])
        );
        assert_eq!(place.processes(), born, "a restart");
        std::fs::remove_dir_all(&place.dirs.state).unwrap();
        assert_eq!(place.dirs.live(Intent::Same), End::Converged);
        assert_eq!(place.processes(), born, "a state that is lost");
        let record = place.dirs.run.join("vm");
        for entry in std::fs::read_dir(record).unwrap() {
            std::fs::remove_file(entry.unwrap().path().join("process")).unwrap();
        }
        assert_eq!(place.dirs.live(Intent::Same), End::Converged);
        assert_eq!(place.processes(), born, "a record that is lost");
        place.delete();
    });
}

#[test]
fn killed_before_any_action_of_its_end_nothing_of_a_process_is_left() {
    kernel::private_sync(|| {
        let place = Place::new();
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
fn killed_before_any_action_of_a_stop_the_next_life_finishes_it_and_keeps_the_log() {
    told(Power::Stopped, 4, |place, born| {
        assert_eq!(place.processes(), vec![]);
        assert!(matches!(process::look(born).unwrap(), Life::Ended(_)));
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
    told(Power::Restarting, 5, |place, born| {
        let now = place.processes();
        assert_eq!(now.len(), 1);
        assert_ne!(now[0], *born);
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
    told(Power::Paused, 1, |place, born| {
        assert_eq!(place.processes(), std::slice::from_ref(born));
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
        assert_eq!(place.processes(), std::slice::from_ref(born));
    });
}

/// A VM that runs is told that, by a daemon that dies before every single action in turn; the next one finishes it.
fn told(power: Power, at_least: usize, check: impl Fn(&Place, &Identity) + Sync) {
    kernel::private_sync(|| {
        let place = Place::new();
        for at in 0.. {
            assert_eq!(place.dirs.live(place.apply()), End::Converged);
            let born = place.processes().remove(0);
            let end = place.dirs.live_until_killed(Intent::Power(VM, power), at);
            assert_eq!(place.dirs.live(Intent::Same), End::Converged);
            check(&place, &born);
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
}

impl Place {
    fn new() -> Self {
        // So that every build takes the same actions.
        kernel::run("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let guest = guest_dir();
        let mut template = spec(Some("169.254.100.0/22"), "");
        template.hypervisor = Hypervisor::Qemu;
        template.kernel_file = Some(guest.join("vmlinuz"));
        template.initrd_file = Some(guest.join("initrd"));
        Self {
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
            if let Ok(Life::Alive(process)) = process::look(&identity) {
                let _ = process.stop(Stop::Kill);
            }
        }
    }
}

fn guest_dir() -> PathBuf {
    let dir = std::env::var_os("SLICE_GUEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest"),
        PathBuf::from,
    );
    assert!(
        dir.join("vmlinuz").exists() && dir.join("initrd").exists(),
        "there is no guest in {0}: make it with `examples/guest/build.sh {0}`, or name another place in SLICE_GUEST_DIR",
        dir.display()
    );
    dir
}
