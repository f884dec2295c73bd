//! The laws of CNI mode's Net stage, and a namespace, plugins and their cache made of data.
//! Out of scope: the laws in general.

use proptest::prelude::*;
use slicectl::reconcile::net::NetnsSeen;
use slicectl::reconcile::net::cni::{
    Action, Added, AddedSeen, CniNet, ConflistSeen, Desired, Eth, Inside, Intent, IntentSeen,
    Observed, Tap,
};
use slicectl::reconcile::{Conflict, Reconcile};

use self::states::{MTU, anyones, converged, eth, expected, network, ours, result};
use crate::laws::model::{self, Model};

mod states;

pub struct CniModel;

proptest! {
    #[test]
    fn an_attached_vm_at_rest_has_an_empty_plan(changed in any::<bool>()) {
        let mut world = converged(&expected());
        if changed {
            world.conflist = ConflistSeen::Found(Box::new(network("10.8.0.0/16")));
            prop_assert!(world.network_changed());
        }
        model::rest::<CniModel>(&expected(), &world)?;
    }

    #[test]
    fn any_attachment_converges(world in ours()) {
        model::convergence::<CniModel>(&expected(), world)?;
    }

    #[test]
    fn an_attachment_converges_after_a_crash_between_any_two_actions(world in ours()) {
        model::prefix_safety::<CniModel>(&expected(), world)?;
    }

    #[test]
    fn a_strangers_namespace_or_handle_is_never_touched_for_an_attachment(world in anyones()) {
        model::modesty::<CniModel>(&expected(), world)?;
    }

    #[test]
    fn deletion_leaves_nothing_of_an_attachment_and_all_that_is_a_strangers(world in anyones(), forced in any::<bool>()) {
        let nothing = Desired { data_path: None, forced, ..expected() };
        model::deletion::<CniModel>(&nothing, world)?;
    }

    #[test]
    fn an_existing_attachment_is_never_detached_whatever_the_configuration_contains_now(world in ours()) {
        let exists = CniModel::is_attached(&world);
        let plan = CniModel::plan(&expected(), &world).unwrap();
        let detaches = plan.iter().any(|action| matches!(action, Action::Detach(_) | Action::Abandon(_) | Action::Attach));
        prop_assert_eq!(detaches, !exists);
    }

    #[test]
    fn no_plugin_is_called_with_add_before_the_intent_is_written_and_the_former_attachment_deleted(world in ours()) {
        let plan = CniModel::plan(&expected(), &world).unwrap();
        let at = |expected: fn(&Action) -> bool| plan.iter().position(expected);
        if let Some(add) = at(|action| matches!(action, Action::Attach)) {
            prop_assert!(at(|action| matches!(action, Action::WriteIntent)) < Some(add));
            prop_assert!(at(|action| matches!(action, Action::Detach(_) | Action::Abandon(_))) < Some(add));
            let was = world.intent != IntentSeen::Absent || world.added != AddedSeen::Absent;
            prop_assert_eq!(at(|action| matches!(action, Action::Detach(_) | Action::Abandon(_))).is_some(), was);
        }
    }
}

impl CniModel {
    /// The plugins' part of the world is as they made it.
    fn is_attached(world: &Observed) -> bool {
        let eth_is_right = world
            .inside
            .as_ref()
            .and_then(|inside| inside.eth.as_ref())
            .is_some_and(|found| {
                found.mac == eth().mac && found.addresses.is_superset(&eth().addresses)
            });
        let remembered =
            matches!(&world.added, AddedSeen::Recorded(added) if added.result == result());
        let adding = matches!(&world.intent, IntentSeen::Written(intent) if intent.adding);
        eth_is_right && remembered && world.check_failure.is_none() && failed(world) == 0 && !adding
    }
}

impl Model for CniModel {
    type Desired = Desired;
    type World = Observed;
    type Action = Action;

    fn plan(desired: &Desired, world: &Observed) -> Result<Vec<Action>, Conflict> {
        CniNet::plan(desired, world)
    }

    fn apply(desired: &Desired, world: &mut Observed, action: &Action) {
        match action {
            Action::WriteRecord | Action::UpdateRecord => {
                world.record = desired.data_path.as_ref().map(|want| want.record.clone());
                world.dir = true;
            }
            Action::Detach(basis) | Action::Abandon(basis) => {
                assert_eq!(basis.network.name, "net");
                assert_eq!(
                    basis.attachment.container_id,
                    desired.attachment().container_id
                );
                if let Some(netns) = &basis.attachment.netns {
                    assert_eq!(*netns, desired.netns());
                    let eth = inside(desired, world).eth.take();
                    assert!(
                        basis.addresses_lost || knows_its_addresses(world, eth.as_ref()),
                        "rules would be left"
                    );
                } else {
                    assert!(basis.addresses_lost, "rules would be left");
                }
                let gives_up = matches!(action, Action::Abandon(_));
                let tries = match desired.forced && desired.data_path.is_none() {
                    true => 1,
                    false => 5,
                };
                assert_eq!(gives_up, failed(world) >= tries, "given up when it is time");
                world.added = AddedSeen::Absent;
                world.check_failure = None;
            }
            Action::Forget(network) => {
                assert_eq!(network, "net");
                world.added = AddedSeen::Absent;
            }
            Action::RemoveIntent => world.intent = IntentSeen::Absent,
            Action::CreateNetns => {
                assert_eq!(world.netns, NetnsSeen::Absent, "its place is taken");
                world.netns = NetnsSeen::Present(Some(desired.label.to_string()));
                world.inside = Some(Inside::default());
            }
            Action::LinkHandle => {
                assert_eq!(world.handle, None, "its place is taken");
                world.handle = Some(desired.netns());
            }
            Action::WriteIntent => {
                let ConflistSeen::Found(network) = &world.conflist else {
                    panic!("no configuration");
                };
                world.dir = true;
                let intent =
                    Intent::new(network.digest(), (**network).clone(), desired.attachment());
                world.intent = IntentSeen::Written(Box::new(intent));
            }
            Action::RestoreIntent(intent) => {
                world.dir = true;
                world.intent = IntentSeen::Written(intent.clone());
            }
            Action::Attach => attach(desired, world),
            Action::SetEthUp => inside(desired, world).eth.as_mut().expect("eth0").up = true,
            Action::DeleteTap => inside(desired, world).tap = None,
            Action::CreateTap(owner, mtu) => {
                let tap = &mut inside(desired, world).tap;
                assert!(tap.is_none(), "its place is taken");
                *tap = Some(Tap {
                    owner: Some(*owner),
                    mtu: *mtu,
                    ipv6_off: true,
                });
            }
            Action::SetTapMtu(mtu) => tap(desired, world).mtu = *mtu,
            Action::DisableIpv6 => tap(desired, world).ipv6_off = true,
            Action::UnlinkHandle => {
                let handle = world.handle.take();
                assert_eq!(handle, Some(desired.netns()), "that handle is a stranger's");
            }
            Action::DeleteNetns(path) => {
                assert_eq!(*path.resource(), desired.netns());
                assert!(is_ours(desired, world), "that namespace is a stranger's");
                let attached = world.added != AddedSeen::Absent;
                assert!(!attached, "DEL wants the namespace");
                world.netns = NetnsSeen::Absent;
                world.inside = None;
            }
            Action::RemoveRunDir => {
                assert_eq!(world.intent, IntentSeen::Absent, "DEL goes by it");
                world.record = None;
                world.dir = false;
            }
        }
    }

    fn foreign(desired: &Desired, world: &Observed) -> Vec<String> {
        let mut foreign = Vec::new();
        if let NetnsSeen::Present(alias) = &world.netns
            && !is_ours(desired, world)
        {
            foreign.push(format!("namespace {alias:?}"));
        }
        let handle = world
            .handle
            .iter()
            .filter(|handle| **handle != desired.netns());
        foreign.extend(handle.map(|handle| format!("handle {}", handle.display())));
        foreign
    }

    fn ours(desired: &Desired, world: &Observed) -> Vec<String> {
        let there = [
            (is_ours(desired, world), "namespace"),
            (world.handle == Some(desired.netns()), "handle"),
            (world.dir || world.record.is_some(), "run directory"),
            (world.intent != IntentSeen::Absent, "intent"),
            (world.added != AddedSeen::Absent, "attachment"),
        ];
        let there = there.iter().filter(|(there, _)| *there);
        there.map(|(_, what)| (*what).to_owned()).collect()
    }

    fn is_as_desired(desired: &Desired, world: &Observed) -> bool {
        let Some(want) = &desired.data_path else {
            return Self::ours(desired, world).is_empty();
        };
        let Some(Inside {
            eth: Some(eth),
            tap: Some(tap),
        }) = &world.inside
        else {
            return false;
        };
        world.dir
            && world.record.as_ref() == Some(&want.record)
            && world.handle == Some(desired.netns())
            && is_ours(desired, world)
            && Self::is_attached(world)
            && matches!(world.intent, IntentSeen::Written(_))
            && eth.up
            && tap.owner == Some(want.tap_owner)
            && tap.mtu == eth.mtu
            && tap.ipv6_off
            && world.connection().is_some()
    }
}

fn failed(world: &Observed) -> u32 {
    match &world.intent {
        IntentSeen::Written(intent) => intent.failed,
        IntentSeen::Absent | IntentSeen::Damaged => 0,
    }
}

/// What the plugins made elsewhere, they find by the addresses.
fn knows_its_addresses(world: &Observed, eth: Option<&Eth>) -> bool {
    match &world.added {
        AddedSeen::Recorded(added) if added.result == result() => {
            eth.is_some_and(|found| found.addresses.is_superset(&self::eth().addresses))
        }
        AddedSeen::Recorded(_) | AddedSeen::Absent | AddedSeen::Damaged => true,
    }
}

/// As the plugins would: they refuse when anything of an ADD before is there.
fn attach(desired: &Desired, world: &mut Observed) {
    let IntentSeen::Written(intent) = &mut world.intent else {
        panic!("no intent");
    };
    assert_eq!(world.added, AddedSeen::Absent, "no DEL before ADD");
    intent.adding = false;
    let added = Added {
        network: intent.network.clone(),
        attachment: intent.attachment.clone(),
        result: result(),
    };
    let place = &mut inside(desired, world).eth;
    assert!(place.is_none(), "no DEL before ADD");
    *place = Some(eth());
    assert_eq!(eth().mtu, MTU);
    world.added = AddedSeen::Recorded(Box::new(added));
}

fn is_ours(desired: &Desired, world: &Observed) -> bool {
    world.netns == NetnsSeen::Present(Some(desired.label.to_string()))
}

fn inside<'w>(desired: &Desired, world: &'w mut Observed) -> &'w mut Inside {
    assert!(
        is_ours(desired, world),
        "that namespace is none, or a stranger's"
    );
    world.inside.as_mut().expect("a namespace")
}

fn tap<'w>(desired: &Desired, world: &'w mut Observed) -> &'w mut Tap {
    inside(desired, world).tap.as_mut().expect("a TAP")
}
