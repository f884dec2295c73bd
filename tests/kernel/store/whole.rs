//! Everything a store remembers as one value; changes that can be made to it.
//! Out of scope: assertions.

use proptest::prelude::*;
use serde_json::{Value, json};
use slicectl::api::condition::{Condition, Reason, Status};
use slicectl::api::host_group::MAX_COUNT;
use slicectl::api::lease::{Address, Lease};
use slicectl::api::meta::{Timestamp, Uid};
use slicectl::api::network::Block;
use slicectl::api::on_demand::{OnDemand, OnDemandEntry, VmOverrides};
use slicectl::api::stage::{STAGES, Stage};
use slicectl::store::{Error, HostNetworkStatus, HostRequirements, Pool, Store, Txn};

use test_support::objects::{group, name, spec, vm};

pub const NOW: Timestamp = Timestamp::UNIX_EPOCH;
pub const RANGE: &str = "169.254.100.0/22";

/// Everything, in one order.
pub fn whole(store: &Store) -> Value {
    store.read(|world| {
        let mut vms: Vec<_> = world.vms().collect();
        vms.sort_by_key(|vm| vm.meta.uid);
        let pages = |uid: Uid| STAGES.map(|stage| json!(world.status(uid, stage)));
        json!({
            "groups": world.groups().collect::<Vec<_>>(),
            "pools": world.pools().collect::<Vec<_>>(),
            "vms": vms.iter().map(|vm| json!([vm, pages(vm.meta.uid)])).collect::<Vec<_>>(),
            "leases": world.leases().collect::<Vec<_>>(),
            "leases by group": (0..3)
                .map(|g| world.leases_of(&name(&format!("group-{g}"))).collect())
                .collect::<Vec<Vec<_>>>(),
            "by name": vms
                .iter()
                .map(|vm| world.vm_named(&vm.meta.name).map(|vm| vm.meta.uid))
                .collect::<Vec<_>>(),
            "ground": world.host_network_status(),
        })
    })
}

/// One thing that a transaction may do.
#[derive(Clone, Debug)]
pub enum Step {
    Group(u8, u32),
    Made(u8, u32),
    RemoveGroup(u8),
    Vm(u8, u32),
    RemoveVm(u8, u32),
    Lease(u8, u32),
    Release(u8, u32),
    Page(u8, u32, Stage),
    HostNetwork(String),
}

pub fn step() -> impl Strategy<Value = Step> {
    let which = || (0_u8..3, 1_u32..4);
    prop_oneof![
        (0_u8..3, 0_u32..9).prop_map(|(g, count)| Step::Group(g, count)),
        (0_u8..3).prop_map(Step::RemoveGroup),
        which().prop_map(|(g, i)| Step::Vm(g, i)),
        which().prop_map(|(g, i)| Step::RemoveVm(g, i)),
        which().prop_map(|(g, i)| Step::Made(g, i)),
        which().prop_map(|(g, i)| Step::Lease(g, i)),
        which().prop_map(|(g, i)| Step::Release(g, i)),
        (which(), prop::sample::select(STAGES.to_vec()))
            .prop_map(|((g, i), stage)| Step::Page(g, i, stage)),
        "[a-z]{4}".prop_map(Step::HostNetwork),
    ]
}

/// Does it.
pub fn apply(txn: &mut Txn<'_>, step: &Step) -> Result<(), Error> {
    let group_of = |g: u8| group(&format!("group-{g}"), 3, spec(Some(RANGE), ""));
    let vm_name = |g: u8, i: u32| name(&format!("group-{g}-{i}"));
    let uid =
        |txn: &Txn<'_>, g: u8, i: u32| txn.world().vm_named(&vm_name(g, i)).map(|vm| vm.meta.uid);
    match step {
        Step::Group(g, count) => {
            let mut group = group_of(*g);
            group.spec.count = *count;
            let name = group.meta.name.clone();
            txn.put_group(group)?;
            txn.put_pool(
                &name,
                Pool {
                    range: RANGE.parse().unwrap(),
                    gateway: None,
                    in_use: Default::default(),
                },
            )
        }
        Step::RemoveGroup(g) => txn.remove_group(&group_of(*g).meta.name),
        Step::Vm(g, i) => match uid(txn, *g, *i).and_then(|uid| txn.world().vm(uid).cloned()) {
            None => txn.put_vm(vm(&group_of(*g), *i)),
            Some(mut vm) => {
                vm.meta.generation += 1;
                txn.put_vm(vm)
            }
        },
        // It comes when it is not there, and goes when it is.
        Step::Made(g, i) => {
            let (mut group, made) = (group_of(*g), name(&format!("made-{g}-x{i}")));
            if let Some(found) = txn.world().vm_named(&made) {
                let uid = found.meta.uid;
                return txn.remove_vm(uid);
            }
            let (place, ask) = (MAX_COUNT + i, VmOverrides::default());
            let mut vm = vm(&group, place);
            vm.meta.name = made.clone();
            let template = vm.spec.clone();
            vm.on_demand = Some(Box::new(OnDemand {
                fleet: None,
                overrides: ask.clone(),
                template,
            }));
            txn.put_vm(vm)?;
            let order = OnDemandEntry {
                fleet: None,
                name: made,
                overrides: ask,
            };
            group.orders.insert(place, order);
            txn.put_group(group)
        }
        Step::RemoveVm(g, i) => uid(txn, *g, *i).map_or(Ok(()), |uid| txn.remove_vm(uid)),
        Step::Lease(g, i) => txn.put_lease(Lease {
            name: vm_name(*g, *i),
            group: group_of(*g).meta.name,
            address: Address::Isolated {
                pool: RANGE.parse().unwrap(),
                block: Block::around([169, 254, 100 + g, *i as u8 * 4].into()),
            },
            since: NOW,
        }),
        Step::Release(g, i) => txn.remove_lease(&vm_name(*g, *i)),
        Step::Page(g, i, stage) => match uid(txn, *g, *i) {
            None => Ok(()),
            Some(uid) => {
                txn.set_condition(
                    uid,
                    *stage,
                    (Status::True, Reason::Converged, "so".into()),
                    1,
                    NOW,
                )?;
                txn.set_checkpoint(uid, *stage, Some("mark".into()))?;
                txn.adopt_stage(uid, *stage, NOW)
            }
        },
        Step::HostNetwork(boot_id) => txn.put_host_network_status(HostNetworkStatus {
            condition: Condition {
                status: Status::True,
                reason: Reason::Converged,
                message: String::new(),
                since: NOW,
                observed_generation: 0,
            },
            applied: txn.world().host_requirements(),
            obsolete: HostRequirements::default(),
            boot_id: boot_id.clone(),
            unenforced: None,
            conflicting_writer: None,
            warnings: Vec::new(),
            drops: Vec::new(),
        }),
    }
}

/// A store with something in it.
pub async fn fill(store: &Store) {
    let steps = [
        Step::Group(0, 2),
        Step::Vm(0, 1),
        Step::Vm(0, 2),
        Step::Lease(0, 1),
        Step::Lease(0, 2),
        Step::Page(0, 1, Stage::Net),
        Step::HostNetwork("boot".into()),
    ];
    for step in steps {
        store.write(|txn| apply(txn, &step)).await.unwrap();
    }
}
