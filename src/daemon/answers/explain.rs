//! `explain`: observes what a packet of a VM passes, and whether the rules that it is evaluated with are in place.
//! Out of scope: the evaluation ([`crate::status::explain`]).

use std::net::Ipv4Addr;

use super::super::not_found::not_found;
use crate::api::lease::Lease;
use crate::api::meta::Name;
use crate::api::policy::Packet;
use crate::api::stage::Stage;
use crate::api::view::{Explanation, Kind};
use crate::api::vm::Vm;
use crate::engine::Engine;
use crate::host::rule::{AddrType, TableName};
use crate::host::{Error, addr, link, route};
use crate::owner::{self, link_group};
use crate::reconcile::OnHost;
use crate::reconcile::host_network::{self, HostNetwork, Scope};
use crate::status::explain::{HostPath, PacketPath, explain};
use crate::status::traverse::PacketLink;
use crate::store::{HostFault, World};
use crate::wire::{Refusal, packet};

/// A VM as it is stored.
struct Known {
    vm: Vm,
    lease: Option<Lease>,
    /// Why its rules may not be in place.
    note: Option<String>,
}

pub(super) async fn answer(
    engine: &Engine,
    name: Name,
    request: Packet,
) -> Result<Explanation, Refusal> {
    let known = engine.store.read(|world| {
        let vm = world.vm_named(&name);
        let vm = vm.ok_or_else(|| not_found(world, Kind::Vm, &name))?;
        Ok::<_, Refusal>(Known {
            vm: vm.clone(),
            lease: world.lease(&vm.meta.name).cloned(),
            note: unsettled(world, vm),
        })
    });
    let Known { vm, lease, note } = known?;
    if vm.spec.network.policy().is_none() {
        return Err(has_no_policy(&vm));
    }
    let Some(lease) = lease else {
        return Err(Refusal::Conflict(vec![format!(
            "vm/{name} has no lease yet"
        )]));
    };
    let Some(block) = lease.address.block() else {
        return Err(has_no_policy(&vm));
    };
    let rules = engine.rules(&vm, block, None);
    let (host, host_note) = observe(engine, &vm, request.destination)
        .await
        .map_err(|error| Refusal::Failed(error.to_string()))?;
    let path = PacketPath {
        vm: &vm,
        block,
        guest_mac: owner::vm_names(&engine.instance, vm.meta.uid).guest_mac,
        ruleset: &rules.ruleset,
        host: &host,
        note: note.or(host_note),
    };
    Ok(explain(&path, &request, packet::text(&request)))
}

/// Why the VM's rules may not be in place, from its stored status.
fn unsettled(world: &World, vm: &Vm) -> Option<String> {
    if let Some(HostFault::Unenforced(condition)) = world.host_fault(vm) {
        return Some(format!(
            "nothing is forwarded now, the host's rules are not in place: {}",
            condition.message
        ));
    }
    let status = world.status(vm.meta.uid, Stage::Firewall);
    let condition = status.map(|status| &status.condition);
    match condition {
        Some(condition) if condition.is_true_at(vm.meta.generation) => None,
        Some(condition) if !condition.message.is_empty() => Some(format!(
            "these rules are not in place yet: {}",
            condition.message
        )),
        Some(_) | None => Some("these rules are not in place yet".to_owned()),
    }
}

/// Observes the host, and what there is to note about it.
async fn observe(
    engine: &Engine,
    vm: &Vm,
    destination: Ipv4Addr,
) -> Result<(HostPath, Option<String>), Error> {
    let host = &engine.host;
    let desired = engine.desired_host_network();
    let reconciler = HostNetwork {
        scope: Scope::NamedOnly,
        ..engine.host_network_reconciler()
    };
    let observed = reconciler.observe(&desired).await?;
    let backend = host.backend.clone();
    let read = move || Ok((backend.translations()?, backend.read(&[TableName::Mangle])?));
    let (nat_tables, mangle) = host.host_netns.run(read).await?;
    let addresses = addr::list(&host.netlink, addr::Of::All).await?;
    let route = route::destination(&host.netlink, destination).await?;
    let out_link = match route {
        Some((_, index)) => link::at(&host.netlink, index).await?,
        None => None,
    };
    let is_enforced = host_network::enforces(&desired, &observed);
    let note = (!is_enforced).then(|| "the host's rules are not in place yet".to_owned());
    let path = HostPath {
        instance: engine.instance.clone(),
        in_link: PacketLink {
            name: owner::vm_names(&engine.instance, vm.meta.uid).host_link,
            group: link_group::ISOLATED,
        },
        ruleset: host_network::compiled(&desired, &observed, &mangle),
        nat_tables,
        addresses: addresses.iter().map(|addr| addr.net.ip()).collect(),
        destination_type: route.map_or(AddrType::Unicast, |(kind, _)| kind),
        out_link: out_link.map(|link| PacketLink {
            name: link.name,
            group: link.group,
        }),
    };
    Ok((path, note))
}

fn has_no_policy(vm: &Vm) -> Refusal {
    let mode = vm.spec.network.mode();
    Refusal::Conflict(vec![format!(
        "vm/{} is in {mode} mode, which has no allow and drop lists: they need mode: isolated",
        vm.meta.name
    )])
}
