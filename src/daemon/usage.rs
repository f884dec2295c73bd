//! Reads what the VMM of a VM uses on the host.
//! Out of scope: reading it ([`crate::host::process`]), the counters of VMMs (`metrics`).

use super::not_found::not_found;
use crate::api::meta::Name;
use crate::api::usage::Usage;
use crate::api::view::Kind;
use crate::engine::Engine;
use crate::host::process;
use crate::wire::Refusal;

/// The use of the VMM's process.
pub(super) fn read(engine: &Engine, vm: Name) -> Result<Usage, Refusal> {
    let uid = engine.store.read(|world| {
        let found = world.vm_named(&vm);
        found
            .map(|vm| vm.meta.uid)
            .ok_or_else(|| not_found(world, Kind::Vm, &vm))
    })?;
    let running = engine.processes.running(uid);
    let Some(running) = running else {
        return Err(Refusal::Conflict(vec![format!(
            "vm/{vm} has no running VMM"
        )]));
    };
    let used = process::usage(running.pid).map_err(|error| Refusal::Failed(error.to_string()))?;
    Ok(Usage {
        vm,
        cpu_ns: used.cpu_ns,
        memory_bytes: used.memory_bytes,
        disk_read_bytes: used.disk_read_bytes,
        disk_written_bytes: used.disk_written_bytes,
    })
}
