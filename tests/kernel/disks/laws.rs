//! Laws that hold for every plan, whatever was found.
//! Out of scope: the kernel; a small model of the directory carries out the actions.

use proptest::prelude::*;
use slicectl::api::meta::Uid;
use slicectl::host::image::Edition;
use slicectl::owner::{Instance, Label};
use slicectl::reconcile::Reconcile;
use slicectl::reconcile::disk::{Action, Desired, DiskSeen, DiskSpec, Disks, Observed, Record};

proptest! {
    #[test]
    fn carrying_out_a_plan_leaves_nothing_to_plan((desired, observed) in world(), stop_after in 0_usize..6) {
        let halfway = carry_out(&desired, observed.clone(), stop_after);
        prop_assume!(Disks::plan(&desired, &observed).is_ok());
        let done = carry_out(&desired, halfway, usize::MAX);
        prop_assert_eq!(Disks::plan(&desired, &done).unwrap(), vec![]);
    }

    #[test]
    fn what_may_be_kept_is_never_removed((desired, observed) in world()) {
        let keeps = observed.record.as_ref().is_none_or(|record| record.persistent);
        let plan = Disks::plan(&desired, &observed).unwrap_or_default();
        let removes = plan.iter().any(|action| matches!(action, Action::RemoveDisk(_)));
        prop_assert!(!(keeps && removes), "{plan:?}");
    }

    #[test]
    fn a_disk_is_noted_before_it_is_made_and_forgotten_after_it_is_removed((desired, observed) in world()) {
        let plan = Disks::plan(&desired, &observed).unwrap_or_default();
        let at = |expected: fn(&Action) -> bool| plan.iter().position(expected);
        let noted = at(|action| matches!(action, Action::Note(_)));
        let made = at(|action| matches!(action, Action::Copy { .. }));
        let removed = at(|action| matches!(action, Action::RemoveDisk(_)));
        let forgotten = at(|action| matches!(action, Action::Forget));
        prop_assert!(made.is_none() || noted.is_some() && noted < made || observed.record.is_some());
        prop_assert!(removed.is_none() || made.is_none() || removed < made);
        prop_assert!(forgotten.is_none() || removed < forgotten);
    }

    #[test]
    fn a_vms_going_takes_its_own_and_nobody_elses((desired, observed) in world()) {
        let desired = Desired { spec: None, ..desired };
        let own = observed.record.as_ref().is_some_and(|record| record.label == desired.label);
        let after = carry_out(&desired, observed.clone(), usize::MAX);
        if !own {
            prop_assert_eq!(after, observed);
        } else {
            prop_assert!(!after.draft);
            let kept = matches!(observed.disk, DiskSeen::File(_)) && observed.record.unwrap().persistent;
            prop_assert_eq!(after.record.is_some(), kept);
            prop_assert_eq!(matches!(after.disk, DiskSeen::File(_)), kept);
        }
    }

    #[test]
    fn a_disk_never_becomes_shorter((desired, observed) in world()) {
        for action in Disks::plan(&desired, &observed).unwrap_or_default() {
            if let (Action::Grow { to, .. }, DiskSeen::File(length)) = (action, &observed.disk) {
                prop_assert!(to > *length);
            }
        }
    }
}

fn carry_out(desired: &Desired, mut world: Observed, at_most: usize) -> Observed {
    let plan = Disks::plan(desired, &world).unwrap_or_default();
    for action in plan.into_iter().take(at_most) {
        match action {
            Action::RemoveDraft => world.draft = false,
            Action::RemoveDisk(_) => world.disk = DiskSeen::Absent,
            Action::Note(record) => world.record = Some(record),
            Action::Copy { at_least, .. } => {
                assert_eq!(world.disk, DiskSeen::Absent, "nothing is overwritten");
                assert!(!world.draft && world.record.is_some());
                world.disk = DiskSeen::File(at_least.max(100));
            }
            Action::Grow { to, .. } => world.disk = DiskSeen::File(to),
            Action::Forget => world.record = None,
        }
    }
    world
}

fn label(uid: &str) -> Label {
    let uid: Uid = uid.parse().unwrap();
    Instance::of("/state".as_ref()).vm_label(&"web-1".parse().unwrap(), uid)
}

const OURS: &str = "7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a44";
const ANOTHER: &str = "00000000-8c1d-4e53-9a3e-0d6b7f1c2a44";

fn world() -> impl Strategy<Value = (Desired, Observed)> {
    let edition = |modified| Edition {
        length: 100,
        modified,
    };
    let want = (
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(vec![0, 100, 200]),
    );
    let record = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop::option::of(0..2_i128),
    );
    let disk = prop::sample::select(vec![
        DiskSeen::Absent,
        DiskSeen::File(100),
        DiskSeen::File(300),
        DiskSeen::Foreign,
    ]);
    (
        prop::option::weighted(0.7, want),
        disk,
        any::<bool>(),
        prop::option::weighted(0.8, record),
    )
        .prop_map(move |(want, disk, draft, record)| {
            let desired = Desired {
                label: label(OURS),
                dir: "/state/disks".into(),
                name: "web-1".parse().unwrap(),
                boot: "now".into(),
                user: None,
                spec: want.map(|(persistent, there, at_least)| DiskSpec {
                    image: "/image".into(),
                    edition: there.then(|| edition(1)),
                    at_least,
                    persistent,
                }),
            };
            let record = record.map(|(ours, persistent, now, modified)| Record {
                label: label(if ours { OURS } else { ANOTHER }),
                persistent,
                boot: if now { "now" } else { "before" }.into(),
                image: modified.map(|_| "/image".into()),
                edition: modified.map(edition),
            });
            (
                desired,
                Observed {
                    disk,
                    draft,
                    record,
                },
            )
        })
}
