//! A group's laws, and VMs and leases made of data.
//! Out of scope: ranges; how a VM becomes Ready.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use slicectl::api::host_group::{HostGroup, MAX_COUNT, UpdatePolicy};
use slicectl::api::meta::{Name, Uid};
use slicectl::api::network::{IsolatedSpec, NetworkSpec, TapOwner};
use slicectl::api::on_demand::{OnDemandEntry, VmOverrides};
use slicectl::api::policy::Policy;
use slicectl::api::vm::{Hypervisor, VmSpec};
use slicectl::reconcile::Conflict;
use slicectl::reconcile::group::{self, Action, Desired, Extra, Member, Observed};

use crate::laws::model::{self, Model};

pub struct GroupModel;

proptest! {
    #[test]
    fn a_group_at_rest_has_an_empty_plan(count in 0_u32..6) {
        let desired = expected(count);
        model::rest::<GroupModel>(&desired, &converged(&desired))?;
    }

    #[test]
    fn any_group_converges_as_its_vms_come_and_go((desired, world) in case()) {
        let world = roll_out(&desired, world)?;
        prop_assert!(GroupModel::is_as_desired(&desired, &world) || desired.update == UpdatePolicy::OnDelete);
        let places: BTreeSet<u32> = world.members.keys().copied().collect();
        let expected = (1..=desired.count).chain(desired.orders.keys().copied());
        prop_assert_eq!(places, expected.collect::<BTreeSet<_>>());
    }

    #[test]
    fn a_group_converges_after_a_crash_between_any_two_actions((desired, world) in case()) {
        let plan = GroupModel::plan(&desired, &world).unwrap();
        for done in 0..=plan.len() {
            let mut half = world.clone();
            plan[..done].iter().for_each(|action| GroupModel::apply(&desired, &mut half, action));
            let straight = roll_out(&desired, world.clone())?;
            let resumed = roll_out(&desired, half)?;
            prop_assert_eq!(specs(&resumed), specs(&straight));
        }
    }

    #[test]
    fn deletion_leaves_neither_vm_nor_lease_nor_group((_, world) in case()) {
        let gone = roll_out(&Desired::default(), world)?;
        prop_assert_eq!(GroupModel::ours(&Desired::default(), &gone), Vec::<String>::new());
    }

    #[test]
    fn the_group_itself_goes_last((_, world) in case()) {
        let plan = GroupModel::plan(&Desired::default(), &world).unwrap();
        prop_assert!(world.members.is_empty() || !plan.contains(&Action::RemoveGroup));
    }

    #[test]
    fn a_rolling_update_takes_down_one_vm_at_a_time(count in 1_u32..6) {
        let old = converged(&expected(count));
        let desired = Desired { template: Some(spec(4, "")), ..expected(count) };
        let mut world = old;
        for _ in 0..6 * count {
            for action in GroupModel::plan(&desired, &world).unwrap() {
                GroupModel::apply(&desired, &mut world, &action);
            }
            let up = world.members.values().filter(|m| m.ready && !m.deleting).count();
            prop_assert!(up + 1 >= count as usize, "{up} of {count} are up");
            one_step(&mut world);
        }
        prop_assert!(GroupModel::is_as_desired(&desired, &world));
    }

    #[test]
    fn a_vm_whose_replacement_could_not_run_is_never_taken_down_for_it(
        count in 1_u32..6, held in prop::collection::btree_set(1_u32..6, 0..6),
    ) {
        let mut world = converged(&expected(count));
        let unfit = |index: &u32| held.contains(index);
        for (index, member) in &mut world.members {
            member.preflight_failed = unfit(index);
        }
        let before = world.clone();
        let desired = Desired { template: Some(spec(4, "")), ..expected(count) };
        for _ in 0..6 * count {
            for action in GroupModel::plan(&desired, &world).unwrap() {
                GroupModel::apply(&desired, &mut world, &action);
            }
            one_step(&mut world);
        }
        for (index, member) in &world.members {
            prop_assert_eq!(member.uid == before.members[index].uid, unfit(index));
        }
        // One that is not wanted any more goes all the same.
        let plan = GroupModel::plan(&Desired::default(), &world).unwrap();
        prop_assert_eq!(deleted(&plan).len(), world.members.len());
    }

    #[test]
    fn on_delete_takes_down_nothing_that_is_counted((desired, world) in case()) {
        let desired = Desired { update: UpdatePolicy::OnDelete, ..desired };
        let deleted = deleted(&GroupModel::plan(&desired, &world).unwrap());
        let counted = world.members.iter().filter(|(index, _)| (1..=desired.count).contains(index));
        prop_assert!(counted.into_iter().all(|(_, member)| !deleted.contains(&member.uid)));
    }

    #[test]
    fn scaling_never_touches_what_was_made_on_demand((desired, world) in case(), count in 0_u32..6) {
        let settled = roll_out(&Desired { update: UpdatePolicy::Rolling, ..desired.clone() }, world)?;
        let scaled = Desired { count, update: UpdatePolicy::Rolling, ..desired };
        let made = |world: &Observed| -> BTreeMap<u32, Member> {
            let on_demand = world.members.iter().filter(|(_, member)| member.on_demand.is_some());
            on_demand.map(|(place, member)| (*place, member.clone())).collect()
        };
        prop_assert_eq!(made(&settled).len(), scaled.orders.len());
        let after = roll_out(&scaled, settled.clone())?;
        prop_assert_eq!(made(&after), made(&settled));
        prop_assert_eq!(after.members.len(), count as usize + scaled.orders.len());
    }

    #[test]
    fn orders_that_come_and_go_in_any_order_leave_nothing(
        (desired, world) in case(),
        steps in prop::collection::vec(prop::collection::btree_set(1_u32..4, 0..4), 1..6),
    ) {
        let mut world = world;
        for numbers in steps {
            let desired = Desired { orders: orders(&numbers), ..desired.clone() };
            world = roll_out(&desired, world)?;
        }
        let bare = Desired { orders: BTreeMap::new(), ..desired };
        let world = roll_out(&bare, world)?;
        prop_assert!(world.members.values().all(|member| member.on_demand.is_none()));
        prop_assert!(world.leases.is_subset(&names(&world)), "{:?}", world.leases);
    }

    #[test]
    fn a_live_change_replaces_nothing(count in 1_u32..6) {
        let world = converged(&expected(count));
        let desired = Desired { template: Some(spec(2, "10.0.0.0/8")), ..expected(count) };
        let plan = GroupModel::plan(&desired, &world).unwrap();
        prop_assert!(deleted(&plan).is_empty());
        prop_assert_eq!(plan.len(), count as usize);
    }

    #[test]
    fn a_vm_that_comes_again_finds_its_lease((desired, world) in case()) {
        let leases = world.leases.clone();
        let mut world = world;
        for _ in 0..30 {
            for action in GroupModel::plan(&desired, &world).unwrap() {
                GroupModel::apply(&desired, &mut world, &action);
            }
            for index in 1..=desired.count {
                let name = HostGroup::vm_name(&world.name, index).unwrap();
                prop_assert!(!leases.contains(&name) || world.leases.contains(&name));
            }
            one_step(&mut world);
        }
    }
}

impl Model for GroupModel {
    type Desired = Desired;
    type World = Observed;
    type Action = Action;

    fn plan(desired: &Desired, world: &Observed) -> Result<Vec<Action>, Conflict> {
        Ok(group::plan(desired, world))
    }

    fn apply(desired: &Desired, world: &mut Observed, action: &Action) {
        match action {
            Action::Create { index, spec, order } => {
                let id = 100 + world.members.len() as u128 * 1_000_000 + u128::from(*index);
                let mut member = member(id, spec, false);
                let name = match order {
                    None => HostGroup::vm_name(&world.name, *index).unwrap(),
                    Some(order) => order.name.clone(),
                };
                member.on_demand = order.is_some().then(|| extra(&name, desired));
                let before = world.members.insert(*index, member);
                assert!(before.is_none(), "its place is taken");
                world.leases.insert(name);
            }
            Action::Update { uid, spec } => {
                let member = find(world, *uid);
                member.spec = (**spec).clone();
                member.ready = false;
                if let Some(extra) = &mut member.on_demand {
                    extra.template = desired.template.clone().expect("a group that is there");
                }
            }
            Action::Delete { uid } => {
                let member = find(world, *uid);
                (member.deleting, member.ready) = (true, false);
            }
            Action::Release { lease } => {
                let existing = names(world).contains(lease);
                assert!(!existing, "a VM has {lease}");
                assert!(world.leases.remove(lease));
            }
            Action::RemoveGroup => {
                assert!(world.members.is_empty());
                world.group = false;
            }
        }
    }

    fn foreign(_: &Desired, _: &Observed) -> Vec<String> {
        Vec::new()
    }

    fn ours(_: &Desired, world: &Observed) -> Vec<String> {
        let group = world.group.then(|| "group".to_owned());
        let vms = world.members.keys().map(|index| format!("VM {index}"));
        let leases = world.leases.iter().map(|name| format!("lease {name}"));
        group.into_iter().chain(vms).chain(leases).collect()
    }

    fn is_as_desired(desired: &Desired, world: &Observed) -> bool {
        let Some(template) = &desired.template else {
            return Self::ours(desired, world).is_empty();
        };
        let ordered = desired.orders.keys().copied();
        world
            .members
            .keys()
            .copied()
            .eq((1..=desired.count).chain(ordered))
            && world.members.iter().all(|(index, m)| {
                let spec = match desired.orders.get(index) {
                    None => template.clone(),
                    Some(order) => order.overrides.spec(template),
                };
                let basis = m.on_demand.as_ref().map(|extra| &extra.template);
                m.ready
                    && !m.deleting
                    && m.spec == spec
                    && basis.is_none_or(|basis| basis == template)
            })
            && world.leases.is_subset(&names(world))
    }
}

/// The names of all VMs that stand.
fn names(world: &Observed) -> BTreeSet<Name> {
    let name = |(index, member): (&u32, &Member)| match &member.on_demand {
        None => HostGroup::vm_name(&world.name, *index).unwrap(),
        Some(extra) => extra.name.clone(),
    };
    world.members.iter().map(name).collect()
}

fn extra(name: &Name, desired: &Desired) -> Box<Extra> {
    Box::new(Extra {
        name: name.clone(),
        template: desired.template.clone().expect("a group that is there"),
    })
}

/// Orders by their number: `dem-a` of nothing of its own, `dem-b` of a vcpu and `dem-c` of a list.
fn orders(numbers: &BTreeSet<u32>) -> BTreeMap<u32, OnDemandEntry> {
    let asks = [
        ("dem-a", VmOverrides::default()),
        (
            "dem-b",
            VmOverrides {
                vcpu: Some(1),
                ..VmOverrides::default()
            },
        ),
        (
            "dem-c",
            VmOverrides {
                drop: Some(vec!["192.168.0.0/16".parse().unwrap()]),
                ..VmOverrides::default()
            },
        ),
    ];
    let all = (MAX_COUNT + 1..).zip(asks);
    all.filter(|(place, _)| numbers.contains(&(place - MAX_COUNT)))
        .map(|(place, (name, ask))| {
            let name = name.parse().unwrap();
            (
                place,
                OnDemandEntry {
                    fleet: None,
                    name,
                    overrides: ask,
                },
            )
        })
        .collect()
}

fn find(world: &mut Observed, uid: Uid) -> &mut Member {
    let mut members = world.members.values_mut();
    members
        .find(|member| member.uid == uid)
        .expect("a VM of the group")
}

fn deleted(plan: &[Action]) -> Vec<Uid> {
    let uid = |action: &Action| match action {
        Action::Delete { uid } => Some(*uid),
        Action::Create { .. }
        | Action::Update { .. }
        | Action::Release { .. }
        | Action::RemoveGroup => None,
    };
    plan.iter().filter_map(uid).collect()
}

fn specs(world: &Observed) -> BTreeMap<u32, VmSpec> {
    world
        .members
        .iter()
        .map(|(index, m)| (*index, m.spec.clone()))
        .collect()
}

/// What VMs do by themselves: one that is to go goes, one that is not Ready becomes Ready.
fn one_step(world: &mut Observed) {
    world.members.retain(|_, member| !member.deleting);
    world
        .members
        .values_mut()
        .for_each(|member| member.ready = true);
}

/// Until neither the plan nor the VMs have anything left to do.
fn roll_out(desired: &Desired, mut world: Observed) -> Result<Observed, TestCaseError> {
    for _ in 0..40 {
        world = model::converge::<GroupModel>(desired, world)?;
        let before = world.clone();
        one_step(&mut world);
        if world == before {
            return Ok(world);
        }
    }
    Err(TestCaseError::fail("the group never comes to rest"))
}

/// Virtual processors cannot change live, the list can.
pub fn spec(vcpu: u32, drop: &str) -> VmSpec {
    let drop = drop
        .split_whitespace()
        .map(|entry| entry.parse().unwrap())
        .collect();
    VmSpec {
        hypervisor: Hypervisor::None,
        vcpu,
        ram_bytes: 128 << 20,
        kernel_file: None,
        initrd_file: None,
        dns_servers: vec![],
        storage: Default::default(),
        lifecycle: Default::default(),
        guest_access: Default::default(),
        network: NetworkSpec::Isolated(IsolatedSpec {
            max_connections: None,
            range: None,
            policy: Policy {
                drop,
                ..Policy::default()
            },
            tap_owner: TapOwner::default(),
        }),
    }
}

/// So many of them.
pub fn expected(count: u32) -> Desired {
    Desired {
        count,
        update: UpdatePolicy::Rolling,
        template: Some(spec(2, "")),
        orders: BTreeMap::new(),
    }
}

/// One VM; `ready`, or on its way there.
pub fn member(id: u128, spec: &VmSpec, ready: bool) -> Member {
    Member {
        uid: Uid(uuid::Uuid::from_u128(id)),
        spec: spec.clone(),
        misplaced: false,
        preflight_failed: false,
        deleting: false,
        ready,
        on_demand: None,
    }
}

/// They, up.
pub fn converged(desired: &Desired) -> Observed {
    let name = "web".parse().unwrap();
    let template = desired.template.clone().unwrap();
    let up = (1..=desired.count).map(|index| (index, member(u128::from(index), &template, true)));
    let leases = (1..=desired.count).filter_map(|index| HostGroup::vm_name(&name, index));
    Observed {
        group: true,
        members: up.collect(),
        leases: leases.collect(),
        name,
    }
}

fn case() -> impl Strategy<Value = (Desired, Observed)> {
    let spec = || {
        prop_oneof![
            Just(spec(2, "")),
            Just(spec(4, "")),
            Just(spec(2, "10.0.0.0/8"))
        ]
    };
    let update = prop_oneof![Just(UpdatePolicy::Rolling), Just(UpdatePolicy::OnDelete)];
    let found = prop::collection::btree_map(1_u32..6, (spec(), any::<[bool; 2]>()), 0..5);
    let made = prop::collection::btree_map(1_u32..4, (spec(), any::<[bool; 2]>()), 0..3);
    let ordered = prop::collection::btree_set(1_u32..4, 0..4);
    let leases = prop::collection::btree_set(1_u32..8, 0..5);
    ((0_u32..5, update, spec()), (found, leases), (made, ordered)).prop_map(
        |((count, update, template), (found, leases), (made, ordered))| {
            let desired = Desired {
                count,
                update,
                template: Some(template),
                orders: orders(&ordered),
            };
            let members = found.into_iter().map(|(index, (spec, [ready, deleting]))| {
                let found = member(u128::from(index), &spec, ready && !deleting);
                (index, Member { deleting, ..found })
            });
            // As it was ordered, of a template that may be an old one.
            let every = orders(&(1..4).collect());
            let made = made
                .into_iter()
                .map(|(number, (template, [ready, deleting]))| {
                    let place = number + MAX_COUNT;
                    let order = &every[&place];
                    let spec = order.overrides.spec(&template);
                    let found = member(u128::from(place), &spec, ready && !deleting);
                    let on_demand = Some(Box::new(Extra {
                        name: order.name.clone(),
                        template,
                    }));
                    (
                        place,
                        Member {
                            deleting,
                            on_demand,
                            ..found
                        },
                    )
                });
            let members = members.chain(made);
            let name = "web".parse().unwrap();
            let leases = leases
                .into_iter()
                .filter_map(|index| HostGroup::vm_name(&name, index));
            (
                desired,
                Observed {
                    group: true,
                    members: members.collect(),
                    leases: leases.collect(),
                    name,
                },
            )
        },
    )
}
