//! Collects the metrics of a VM from its VMM and from the kernel.
//! Out of scope: the protocol of the VMM ([`crate::vmm::Control`]), HTTP.

use super::not_found::not_found;
use crate::api::meta::Name;
use crate::api::metrics::{Counters, CountingSince, Metrics};
use crate::api::view::Kind;
use crate::engine::Engine;
use crate::reconcile::vmm::VmmPaths;
use crate::vmm::Control;
use crate::wire::Refusal;

/// Reads the counters of the kernel and the VMM. If the VMM does not respond, only those of the kernel are returned.
pub async fn read(engine: &Engine, name: Name) -> Result<Metrics, Refusal> {
    let found: Result<_, Refusal> = engine.store.read(|world| {
        let vm = world.vm_named(&name);
        let vm = vm.ok_or_else(|| not_found(world, Kind::Vm, &name))?;
        let paths = VmmPaths::of(&engine.run_dir, world, vm);
        Ok((vm.clone(), paths))
    });
    let (vm, paths) = found?;
    let (uid, hypervisor) = (vm.meta.uid, vm.spec.hypervisor);
    let refuse = |message: &str| Err(Refusal::Conflict(vec![format!("vm/{name} {message}")]));
    let metrics = |counters: Counters, vmm_error| Metrics {
        vm: name.clone(),
        hypervisor,
        since: CountingSince::of(hypervisor),
        counters,
        vmm_error,
    };
    let kernel_counters = async || -> Counters {
        let connections = engine.connections(&vm).await.into_iter();
        connections
            .map(|(name, count)| (name, count.into()))
            .collect()
    };
    let Some(control) = Control::of(hypervisor) else {
        return match kernel_counters().await {
            ours if ours.is_empty() => refuse("has no metrics: hypervisor is none"),
            ours => Ok(metrics(ours, None)),
        };
    };
    let Some(process) = engine.processes.running(uid) else {
        return refuse("is not running: no metrics");
    };
    match control.metrics(&paths.dir, process.pid).await {
        Ok(mut counters) => {
            counters.extend(kernel_counters().await);
            Ok(metrics(counters, None))
        }
        Err(_) if !engine.processes.may_be_running(uid) => refuse("is not running: no metrics"),
        Err(error) => {
            let why = format!("cannot read the metrics of its VMM: {error}");
            match kernel_counters().await {
                ours if ours.is_empty() => Err(Refusal::Failed(format!("vm/{name}: {why}"))),
                ours => Ok(metrics(ours, Some(why))),
            }
        }
    }
}
