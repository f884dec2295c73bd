//! What a VM's VMM has counted, as it is asked for on the socket.
//! Not here: talking with the VMM ([`crate::reconcile::vmm::Control`]), HTTP.

use super::orders::{nearest, not_found};
use crate::api::meta::Name;
use crate::api::metrics::{Metrics, Since};
use crate::reconcile::engine::Engine;
use crate::reconcile::fold::House;
use crate::reconcile::vmm::Control;
use crate::wire::Refusal;

/// Asks the VMM.
pub async fn ask(engine: &Engine, house: &House, name: Name) -> Result<Metrics, Refusal> {
    let found: Result<_, Refusal> = engine.store.read(|world| {
        let vm = world.vm_named(&name).ok_or_else(|| {
            let names = world.vms().map(|vm| &vm.meta.name);
            not_found("vm", &name, nearest(&name, names))
        })?;
        Ok((vm.clone(), house.vm(world, vm).status.vmm))
    });
    let (vm, vmm) = found?;
    let uid = vm.meta.uid;
    let refuse = |why: &str| Err(Refusal::Conflict(vec![format!("vm/{name} {why}")]));
    let Some(control) = Control::of(vmm.hypervisor) else {
        return refuse("has no VMM of ours that could count: its hypervisor is none");
    };
    let dir = vmm.api_socket.as_deref().and_then(std::path::Path::parent);
    let (Some(pid), Some(dir)) = (vmm.pid, dir) else {
        return refuse("does not run: nothing is counted");
    };
    match control.metrics(dir, pid).await {
        Ok(mut counters) => {
            let ours = engine.connections(&vm).into_iter();
            counters.extend(ours.map(|(name, count)| (name, count.into())));
            Ok(Metrics {
                vm: name,
                hypervisor: vmm.hypervisor,
                since: Since::of(vmm.hypervisor),
                counters,
            })
        }
        Err(_) if !engine.processes.runs(uid) => refuse("does not run: nothing is counted"),
        Err(error) => {
            let why = format!(
                "its VMM does not tell what it has counted: {error}: {}",
                error.source
            );
            Err(Refusal::Failed(format!("vm/{name}: {why}")))
        }
    }
}
