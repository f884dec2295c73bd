//! Every single action: killed before it, failing at it, the state lost at it; for each scene.
//! Out of scope: how a life is lived and ended; the scenes of single modes beside these ([`crate::crash::bridges`]).

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use slicectl::api::host_group::{HostGroupSpec, UpdatePolicy};
use slicectl::api::vm::VmSpec;

use crate::crash::life::{Dirs, End, Intent};
use crate::crash::world::whole;
use test_support::kernel::{self, Canaries};
use test_support::objects::spec;

/// Private kernels at once; more than the cores, because lives wait for disks and backoffs.
const KERNELS: usize = 4;

pub const GROUP: &str = "web";

/// What is built and taken down again and again.
pub struct Scene {
    /// Two of these.
    pub template: fn() -> VmSpec,
    /// So many of the two are counted; another is made on demand.
    pub counted: u32,
    /// A shell command that puts strangers' things there before anything of ours.
    pub strangers: &'static str,
    /// A shell command by which strangers settle where ours stands; they must be as before when it is gone.
    pub settlers: &'static str,
    /// A build takes at least so many actions.
    pub build: usize,
    /// A teardown, too.
    pub teardown: usize,
}

const ISOLATED: Scene = Scene {
    template: || spec(Some("169.254.100.0/22"), "192.168.1.0/24"),
    counted: 2,
    strangers: "true",
    settlers: "true",
    build: 35,
    teardown: 10,
};

#[test]
fn killed_before_any_action_of_a_build_the_next_life_finishes_it() {
    killed_building(&ISOLATED);
}

#[test]
fn killed_before_any_action_of_a_teardown_the_next_life_finishes_it() {
    killed_taking_down(&ISOLATED);
}

#[test]
fn an_action_of_a_build_that_fails_is_tried_again() {
    failing_building(&ISOLATED);
}

#[test]
fn an_action_of_a_teardown_that_fails_is_tried_again() {
    failing_taking_down(&ISOLATED);
}

#[test]
fn killed_during_a_bring_up_and_without_its_state_the_next_daemon_adopts_what_exists() {
    robbed_building(&ISOLATED);
}

#[test]
fn killed_and_robbed_of_its_state_during_a_teardown_nothing_is_left_over_in_the_end() {
    robbed_taking_down(&ISOLATED);
}

pub fn killed_building(scene: &Scene) {
    sweep(scene, scene.build, |place, at| {
        let end = place.dirs.live_until_killed(place.apply(), at);
        assert_eq!(place.dirs.live(Intent::Same), End::Converged);
        place.assert_built();
        place.delete();
        end
    });
}

pub fn killed_taking_down(scene: &Scene) {
    sweep(scene, scene.teardown, |place, at| {
        place.build();
        let end = place.dirs.live_until_killed(Intent::Delete(GROUP), at);
        assert_eq!(place.dirs.live(Intent::Same), End::Converged);
        place.assert_empty();
        end
    });
}

pub fn failing_building(scene: &Scene) {
    sweep(scene, scene.build, |place, at| {
        let (end, failed) = place.dirs.live_with_an_error(place.apply(), at);
        assert_eq!(end, End::Converged);
        place.assert_built();
        place.delete();
        ended(failed)
    });
}

pub fn failing_taking_down(scene: &Scene) {
    sweep(scene, scene.teardown, |place, at| {
        place.build();
        let (end, failed) = place.dirs.live_with_an_error(Intent::Delete(GROUP), at);
        assert_eq!(end, End::Converged);
        place.assert_empty();
        ended(failed)
    });
}

pub fn robbed_building(scene: &Scene) {
    sweep(scene, scene.build, |place, at| {
        let end = place.dirs.live_until_killed(place.apply(), at);
        place.lose_state(at);
        // By the records alone it comes to rest; then the folder of manifests is read.
        assert_eq!(place.dirs.live(Intent::Same), End::Converged);
        assert_eq!(place.dirs.live(place.apply()), End::Converged);
        place.assert_built();
        place.delete();
        end
    });
}

pub fn robbed_taking_down(scene: &Scene) {
    sweep(scene, scene.teardown, |place, at| {
        place.build();
        let end = place.dirs.live_until_killed(Intent::Delete(GROUP), at);
        place.lose_state(at);
        // What had its record is a VM again: nobody remembers that it was to go.
        assert_eq!(place.dirs.live(Intent::Same), End::Converged);
        place.delete();
        end
    });
}

/// A private kernel, and what it looks like without and with the group.
pub struct Place {
    dirs: Dirs,
    spec: HostGroupSpec,
    settlers: &'static str,
    empty: String,
    built: String,
    canaries: Canaries,
}

impl Place {
    pub fn new(scene: &Scene) -> Self {
        kernel::run(scene.strangers);
        // As after any first build: switching it off again is never ours.
        kernel::run("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let mut place = Self {
            dirs: Dirs::below(Path::new("/run/place")),
            spec: HostGroupSpec {
                count: scene.counted,
                update: UpdatePolicy::Rolling,
                template: (scene.template)(),
            },
            settlers: scene.settlers,
            empty: String::new(),
            built: String::new(),
            canaries: Canaries::release(),
        };
        assert_eq!(place.dirs.live(Intent::Same), End::Converged);
        place.empty = whole(&place.dirs);
        assert_eq!(place.dirs.live(place.apply()), End::Converged);
        place.built = whole(&place.dirs);
        assert_eq!(
            place.dirs.live_counting(Intent::Same),
            (End::Converged, vec![]),
            "a restart takes no action"
        );
        assert_eq!(whole(&place.dirs), place.built);
        place.delete();
        place
    }

    fn apply(&self) -> Intent<'_> {
        match self.spec.count {
            2 => Intent::Apply(GROUP, &self.spec),
            _ => Intent::Order(GROUP, &self.spec),
        }
    }

    /// Builds it, and strangers settle there.
    fn build(&self) {
        assert_eq!(self.dirs.live(self.apply()), End::Converged);
        kernel::run(self.settlers);
    }

    fn assert_built(&self) {
        same(&whole(&self.dirs), &self.built);
        self.canaries.assert_alive();
    }

    /// With its copy in the run directory or, every other time, without.
    fn lose_state(&self, at: usize) {
        match at % 2 {
            0 => self.dirs.lose_state_and_journal(),
            _ => fs::remove_dir_all(&self.dirs.state).unwrap(),
        }
    }

    fn delete(&self) {
        assert_eq!(self.dirs.live(Intent::Delete(GROUP)), End::Converged);
        self.assert_empty();
    }

    fn assert_empty(&self) {
        same(&whole(&self.dirs), &self.empty);
        self.canaries.assert_alive();
    }
}

/// Line by line, so that a failure shows the line.
fn same(found: &str, desired: &str) {
    let only = |a: &str, b: &str| -> Vec<String> {
        let known: Vec<&str> = b.lines().collect();
        a.lines()
            .filter(|line| !known.contains(line))
            .map(str::to_owned)
            .collect()
    };
    assert!(
        found == desired,
        "not the world of an undisturbed life\n  left over: {:#?}\n  missing: {:#?}",
        only(found, desired),
        only(desired, found)
    );
}

fn ended(failed: bool) -> End {
    match failed {
        true => End::Killed,
        false => End::Converged,
    }
}

/// Runs `one` for every action from the first until one that is not reached any more, over several kernels.
fn sweep(scene: &Scene, at_least: usize, one: impl Fn(&Place, usize) -> End + Sync) {
    let (next, reached) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..KERNELS {
            scope.spawn(|| {
                kernel::private_sync(|| {
                    let place = Place::new(scene);
                    loop {
                        let at = next.fetch_add(1, SeqCst);
                        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                            one(&place, at)
                        }));
                        match done {
                            Ok(End::Killed) => reached.fetch_max(at + 1, SeqCst),
                            Ok(End::Converged | End::Unconverged) => return,
                            Err(_) => panic!("at action {at}"),
                        };
                    }
                })
            });
        }
    });
    let reached = reached.load(SeqCst);
    assert!(reached >= at_least, "only {reached} actions");
}
