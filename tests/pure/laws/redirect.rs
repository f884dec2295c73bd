//! The laws of CNI mode's Firewall stage, and two links with filters made of data.
//! Out of scope: the laws in general.

use proptest::prelude::*;
use slicectl::owner::Instance;
use slicectl::reconcile::firewall::cni::{
    Action, CniFirewall, Desired, Direction, End, Filter, Observed, TapLink,
};
use slicectl::reconcile::{Conflict, Reconcile};

use crate::laws::model::{self, Model};

pub struct RedirectModel;

const ETH: u32 = 2;
const TAP: u32 = 3;

fn expected() -> Desired {
    let uid = "7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a44".parse().unwrap();
    Desired {
        label: Instance::of("/state".as_ref()).vm_label(&"web-1".parse().unwrap(), uid),
        netns: "/run/slice/netns/slice-abc".into(),
        tap: "tap0".to_owned(),
        tap_link: Some(TapLink::Redirect("eth0".to_owned())),
    }
}

fn end(index: u32, up: bool, filter: Filter) -> Option<End> {
    Some(End { index, up, filter })
}

fn filters() -> impl Strategy<Value = Filter> {
    prop_oneof![
        Just(Filter::Absent),
        Just(Filter::Wrong),
        prop::sample::select(vec![ETH, TAP, 9]).prop_map(Filter::To),
    ]
}

prop_compose! {
    fn anyones()(label in 0..3, up in any::<bool>(), eth in filters(), tap in filters()) -> Observed {
        Observed {
            netns: match label {
                0 => Some("a stranger's".to_owned()),
                _ => Some(expected().label.to_string()),
            },
            eth: end(ETH, true, eth),
            tap: end(TAP, up, tap),
        }
    }
}

fn ours() -> impl Strategy<Value = Observed> {
    anyones().prop_map(|world| Observed {
        netns: Some(expected().label.to_string()),
        ..world
    })
}

proptest! {
    #[test]
    fn a_redirect_at_rest_has_an_empty_plan(world in ours()) {
        let world = Observed {
            eth: end(ETH, true, Filter::To(TAP)),
            tap: end(TAP, true, Filter::To(ETH)),
            ..world
        };
        model::rest::<RedirectModel>(&expected(), &world)?;
    }

    #[test]
    fn any_redirect_converges_after_a_crash_between_any_two_actions(world in ours()) {
        model::convergence::<RedirectModel>(&expected(), world.clone())?;
        model::prefix_safety::<RedirectModel>(&expected(), world)?;
    }

    #[test]
    fn a_strangers_namespace_is_not_redirected(world in anyones()) {
        model::modesty::<RedirectModel>(&expected(), world)?;
    }

    #[test]
    fn deletion_shuts_the_forwarding_switch_of_a_redirect(world in anyones()) {
        let nothing = Desired { tap_link: None, ..expected() };
        model::deletion::<RedirectModel>(&nothing, world)?;
    }

    #[test]
    fn the_forwarding_switch_opens_only_after_a_look_that_found_both_redirects(world in ours()) {
        let existing = RedirectModel::is_joined(&world);
        let plan = RedirectModel::plan(&expected(), &world).unwrap();
        prop_assert!(existing || !plan.contains(&Action::EnableForwarding));
        let up = world.tap.as_ref().is_some_and(|tap| tap.up);
        prop_assert_eq!(!existing && up, plan.first() == Some(&Action::DisableForwarding));
    }

    #[test]
    fn the_chains_own_redirect_is_left_alone(world in ours()) {
        let desired = Desired { tap_link: Some(TapLink::Chain), ..expected() };
        let up = world.tap.as_ref().is_some_and(|tap| tap.up);
        let plan = RedirectModel::plan(&desired, &world).unwrap();
        prop_assert_eq!(plan, if up { vec![] } else { vec![Action::EnableForwarding] });
    }
}

impl RedirectModel {
    fn is_joined(world: &Observed) -> bool {
        let filter = |end: &Option<End>| end.as_ref().map(|end| end.filter);
        filter(&world.eth) == Some(Filter::To(TAP)) && filter(&world.tap) == Some(Filter::To(ETH))
    }

    fn is_ours(desired: &Desired, world: &Observed) -> bool {
        world.netns == Some(desired.label.to_string())
    }
}

impl Model for RedirectModel {
    type Desired = Desired;
    type World = Observed;
    type Action = Action;

    fn plan(desired: &Desired, world: &Observed) -> Result<Vec<Action>, Conflict> {
        CniFirewall::plan(desired, world)
    }

    fn apply(desired: &Desired, world: &mut Observed, action: &Action) {
        assert!(
            Self::is_ours(desired, world),
            "that namespace is a stranger's"
        );
        let (eth, tap) = (world.eth.as_mut().unwrap(), world.tap.as_mut().unwrap());
        let (from, to) = match action {
            Action::Redirect(Direction::Out) | Action::RemoveRedirect(Direction::Out) => {
                (&mut tap.filter, ETH)
            }
            _ => (&mut eth.filter, TAP),
        };
        match action {
            Action::DisableForwarding => tap.up = false,
            Action::EnableForwarding => tap.up = true,
            Action::RemoveRedirect(_) => *from = Filter::Absent,
            Action::Redirect(_) => {
                assert_eq!(*from, Filter::Absent, "its place is taken");
                *from = Filter::To(to);
            }
        }
    }

    fn foreign(desired: &Desired, world: &Observed) -> Vec<String> {
        match Self::is_ours(desired, world) {
            true => vec![],
            false => vec![format!("{world:?}")],
        }
    }

    fn ours(desired: &Desired, world: &Observed) -> Vec<String> {
        let open = world.tap.as_ref().is_some_and(|tap| tap.up);
        match Self::is_ours(desired, world) && open {
            true => vec!["an open gate".to_owned()],
            false => vec![],
        }
    }

    fn is_as_desired(desired: &Desired, world: &Observed) -> bool {
        match desired.tap_link {
            None => Self::ours(desired, world).is_empty(),
            Some(_) => Self::is_joined(world) && !Self::ours(desired, world).is_empty(),
        }
    }
}
