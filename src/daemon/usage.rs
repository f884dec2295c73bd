//! Reads what the VMM of a VM uses on the host.
//! Out of scope: reading it ([`crate::host::process`]), the counters of VMMs (`metrics`).

use super::not_found::not_found;
use crate::api::meta::Name;
use crate::api::usage::{Traffic, Usage};
use crate::api::view::Kind;
use crate::engine::Engine;
use crate::host::{Error, process};
use crate::status::StatusBuilder;
use crate::wire::Refusal;

/// The use of the VMM's process.
pub(super) fn read(
    engine: &Engine,
    status_builder: &StatusBuilder,
    vm: Name,
) -> Result<Usage, Refusal> {
    let (uid, tap) = engine.store.read(|world| {
        let found = world.vm_named(&vm);
        let found = found.ok_or_else(|| not_found(world, Kind::Vm, &vm))?;
        let network = status_builder.vm(world, found).status.network;
        Ok::<_, Refusal>((found.meta.uid, network.map(|network| network.tap)))
    })?;
    let running = engine.processes.running(uid);
    let Some(running) = running else {
        return Err(Refusal::Conflict(vec![format!(
            "vm/{vm} has no running VMM"
        )]));
    };
    let failed = |error: Error| Refusal::Failed(error.to_string());
    let used = process::usage(running.pid).map_err(failed)?;
    let network = tap.map(|tap| process::link_counters(running.pid, &tap));
    let network = network.transpose().map_err(failed)?.flatten();
    Ok(Usage {
        vm,
        cpu_ns: used.cpu_ns,
        memory_bytes: used.memory_bytes,
        disk_read_bytes: used.disk_read_bytes,
        disk_written_bytes: used.disk_written_bytes,
        // What a TAP device receives is what its guest sends.
        network: network.map(|link| Traffic {
            received_bytes: link.sent_bytes,
            sent_bytes: link.received_bytes,
        }),
    })
}
