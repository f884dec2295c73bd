//! Random sequences of what happens in a fleet: users, administrators, nodes that are lost, lag or refuse, and plans that are applied late.
//! Out of scope: single decisions (the other tests).

use std::time::Duration;

use proptest::prelude::*;

use super::super::step::Action;
use super::model::Model;
use super::world::*;
use crate::api::host_group::UpdatePolicy;
use crate::fleet::object::{Drain, Group, Node, Reconcile, Replacement, Strategy as Order};

const GROUPS: [&str; 3] = ["a", "b", "c"];
const NODES: usize = 4;

#[derive(Clone, Debug)]
enum Event {
    Plan,
    /// A plan is made, and applied after the next event, unless that is a plan: a scheduler makes one after the other.
    LatePlan,
    /// All nodes see everything and act on it, this often.
    Everyone(usize),
    Sync(usize),
    Turn(usize),
    Advance(u64),
    Lose(usize),
    Regain(usize),
    Fence(usize),
    Unfence(usize),
    Cordon(usize, bool),
    Drain(usize, bool),
    Refuse(usize, bool),
    Count(usize, u32),
    Size(usize, u32),
    Replacement(usize, Option<Reconcile>, u64),
    MaxUnavailable(usize, u32),
    Order(usize, Order),
    OnDelete(usize, bool),
    Delete(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let node = || 0..NODES;
    let group = || 0..GROUPS.len();
    let reconcile = prop_oneof![
        Just(None),
        Just(Some(Reconcile::KeepReplacement)),
        Just(Some(Reconcile::KeepOriginal)),
    ];
    prop_oneof![
        12 => Just(Event::Plan),
        3 => Just(Event::LatePlan),
        8 => (1..4_usize).prop_map(Event::Everyone),
        6 => node().prop_map(Event::Sync),
        8 => node().prop_map(Event::Turn),
        8 => (1..200_u64).prop_map(Event::Advance),
        4 => node().prop_map(Event::Lose),
        4 => node().prop_map(Event::Regain),
        1 => node().prop_map(Event::Fence),
        1 => node().prop_map(Event::Unfence),
        2 => (node(), any::<bool>()).prop_map(|(n, is)| Event::Cordon(n, is)),
        3 => (node(), any::<bool>()).prop_map(|(n, is)| Event::Drain(n, is)),
        2 => (node(), any::<bool>()).prop_map(|(n, is)| Event::Refuse(n, is)),
        3 => (group(), 0..7_u32).prop_map(|(g, count)| Event::Count(g, count)),
        2 => (group(), 1..4_u32).prop_map(|(g, vcpu)| Event::Size(g, vcpu)),
        3 => (group(), reconcile, 0..60_u64).prop_map(|(g, it, s)| Event::Replacement(g, it, s)),
        1 => (group(), 1..4_u32).prop_map(|(g, max)| Event::MaxUnavailable(g, max)),
        1 => (group(), prop_oneof![Just(Order::Spread), Just(Order::Pack)])
            .prop_map(|(g, it)| Event::Order(g, it)),
        1 => (group(), any::<bool>()).prop_map(|(g, is)| Event::OnDelete(g, is)),
        1 => group().prop_map(Event::Delete),
    ]
}

fn change(model: &mut Model, group: usize, change: impl FnOnce(&mut Group)) {
    let group = GROUPS[group];
    if !model.world.view.groups.contains_key(&name(group)) {
        model.world.add_group(group, 0);
    }
    model.world.group(group, change);
}

fn happen(model: &mut Model, event: &Event) {
    let node = |at: &usize| name(&format!("n{}", at + 1));
    match event {
        Event::Plan | Event::LatePlan => drop(model.plan()),
        Event::Everyone(times) => (0..*times).for_each(|_| {
            drop(model.plan());
            model.everyone();
        }),
        Event::Sync(n) => model.sync(&node(n)),
        Event::Turn(n) => drop(model.turn(&node(n))),
        Event::Advance(seconds) => model.advance(*seconds),
        Event::Lose(n) => model.lose(&node(n)),
        Event::Regain(n) => regain(model, &node(n)),
        Event::Fence(n) => model.fence(&node(n)),
        Event::Unfence(n) => model.unfence(&node(n)),
        Event::Cordon(n, is) => model
            .world
            .admin(node(n).as_str(), |it| it.unschedulable = *is),
        Event::Drain(n, is) => model.world.admin(node(n).as_str(), |it| {
            it.drain = is.then_some(Drain {
                delete_local: false,
            });
        }),
        Event::Refuse(n, is) => model.refuse(&node(n), *is),
        Event::Count(g, count) => change(model, *g, |it| it.spec.count = *count),
        Event::Size(g, vcpu) => change(model, *g, |it| it.spec.template.vcpu = *vcpu),
        Event::Replacement(g, reconcile, stop) => change(model, *g, |it| {
            it.replacement = reconcile.map(|reconcile| Replacement {
                replace_after: Duration::from_secs(stop + 33),
                stop_after: Duration::from_secs(*stop),
                reconcile,
            });
        }),
        Event::MaxUnavailable(g, max) => {
            change(model, *g, |it| it.placement.max_unavailable = *max)
        }
        Event::Order(g, strategy) => change(model, *g, |it| it.placement.strategy = *strategy),
        Event::OnDelete(g, is) => change(model, *g, |it| {
            it.spec.update = if *is {
                UpdatePolicy::OnDelete
            } else {
                UpdatePolicy::Rolling
            };
        }),
        Event::Delete(g) => change(model, *g, |it| it.meta.deleting = true),
    }
}

/// A node that is gone does not come back before the statement is withdrawn.
fn regain(model: &mut Model, node: &crate::api::meta::Name) {
    let admin = model.world.view.nodes[node].admin.as_ref();
    if admin.is_none_or(|it| it.value.gone.is_none()) {
        model.regain(node);
    }
}

/// VMs that are replaced and return, that are replaced, and that are never replaced.
fn start() -> Model {
    let mut model = Model::new(NODES, 4);
    let settings = [
        Some(Reconcile::KeepOriginal),
        Some(Reconcile::KeepReplacement),
        None,
    ];
    for (group, reconcile) in settings.into_iter().enumerate() {
        happen(&mut model, &Event::Replacement(group, reconcile, 20));
        happen(&mut model, &Event::Count(group, 3));
    }
    model.settle();
    model
}

/// All happens, with the checks of the model after each event.
fn run(model: &mut Model, events: &[Event]) {
    let mut late = None;
    for event in events {
        match event {
            Event::LatePlan => {
                late = Some(model.world.plan());
                continue;
            }
            Event::Plan | Event::Everyone(_) => late = None,
            _ => {}
        }
        happen(model, event);
        model.check();
        if let Some(plan) = late.take() {
            model.apply(&plan);
        }
    }
}

/// Everything works again.
fn heal(model: &mut Model) {
    for node in model.nodes() {
        model.refuse(&node, false);
        model.unfence(&node);
        model.regain(&node);
        model.world.admin(node.as_str(), |it| *it = Node::default());
    }
    // Backoffs end.
    model.advance(1000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn no_vm_runs_twice_and_after_all_is_healed_each_runs_that_fits(
        events in proptest::collection::vec(event(), 1..120),
    ) {
        let mut model = start();
        run(&mut model, &events);
        heal(&mut model);
        model.settle();
        let view = &model.world.view;
        let groups = view.groups.values().map(|it| &it.value);
        let desired: u32 = groups.clone().filter(|it| !it.meta.deleting).map(|it| it.spec.count).sum();
        prop_assert_eq!(view.vms.len(), desired as usize);
        let largest = groups.map(|it| u64::from(it.spec.template.vcpu)).max().unwrap_or(1);
        for vm in view.vms.values().map(|it| &it.value) {
            // An original that does not fit its node any more.
            prop_assert!(vm.previous.iter().all(|it| it.keep));
            prop_assert_eq!(vm.binding.is_none(), vm.pending.is_some());
        }
        let pending = view.vms.values().filter(|it| it.value.binding.is_none()).count();
        prop_assert_eq!(model.running(), view.vms.len() - pending);
        if pending > 0 {
            let index = super::super::index::Index::new(view);
            prop_assert!(index.nodes.iter().all(|it| it.used.vcpus + largest > 4));
        }
        prop_assert_eq!(model.world.plan().steps, vec![]);
    }

    #[test]
    fn the_same_view_has_the_same_plan(events in proptest::collection::vec(event(), 1..60)) {
        let mut model = start();
        run(&mut model, &events);
        let plans = [1, 2].map(|_| {
            let mut uids = 0;
            super::super::plan(&model.world.view.clone(), &mut || { uids += 1; uid(uids) })
        });
        prop_assert_eq!(&plans[0], &plans[1]);
    }

    #[test]
    fn what_is_absent_from_a_converged_view_deletes_nothing(
        events in proptest::collection::vec(event(), 1..60),
        nodes in proptest::collection::vec(0..4_u8, NODES),
        keep in any::<u64>(),
    ) {
        let mut model = start();
        run(&mut model, &events);
        heal(&mut model);
        model.settle();
        let view = &mut model.world.view;
        for (node, what) in (1..=NODES).map(|it| name(&format!("n{it}"))).zip(nodes) {
            match what {
                0 => drop(view.nodes.remove(&node)),
                1 => view.nodes.get_mut(&node).unwrap().status = None,
                2 => model_lost(view, &node),
                _ => {}
            }
        }
        let mut number = 0;
        view.statuses.retain(|_, _| { number += 1; keep >> (number % 64) & 1 == 1 });
        for step in model.world.plan().steps {
            // A replaced VM may return to its original copy.
            let is_allowed = matches!(
                step.action,
                Action::Pending | Action::Replace | Action::Return | Action::Bind
            );
            prop_assert!(is_allowed, "{:?}", step);
        }
    }
}

fn model_lost(view: &mut super::super::view::View, node: &crate::api::meta::Name) {
    let elapsed = Duration::from_secs(1_000_000);
    view.nodes.get_mut(node).unwrap().contact = super::super::view::Contact::Lost { elapsed };
}
