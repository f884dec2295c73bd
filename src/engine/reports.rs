//! Events about the life of a VM: it is created, its VMM is started, its rules are updated.
//! Out of scope: faults and their repair, which are reported where they are found.

use std::time::{Duration, Instant};

use super::Engine;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::stage::Stage;
use crate::api::vm::Vm;
use crate::clock;
use crate::host::process::Identity;

/// The resolution of the age of a process is 10 ms.
const AGE_TOLERANCE: Duration = Duration::from_millis(20);

impl Engine {
    /// Reports a VM that is run for the first time. The daemon reports VMs that are made on demand when it answers the request.
    pub(super) fn report_creation(&self, vm: &Vm) {
        let uid = vm.meta.uid;
        let is_new = self
            .store
            .read(|world| world.status(uid, Stage::Lease).is_none());
        if is_new && vm.on_demand.is_none() && !vm.meta.deleting {
            let message = format!("created in hostgroup/{}", vm.group);
            self.record_life(vm, EventReason::Created, &message);
        }
    }

    /// Reports a VMM that was started since `began`. One that runs since an earlier run of the key or of the daemon was reported then.
    pub(super) fn report_start(&self, vm: &Vm, process: &Identity, began: Instant) {
        let known = self.process_checkpoint(vm.meta.uid).process;
        let is_known = known.is_some_and(|known| known.identity == *process);
        let since = clock::monotonic().saturating_duration_since(began);
        let is_young = process.age().is_ok_and(|age| age <= since + AGE_TOLERANCE);
        if is_young && !is_known {
            let message = format!("{} started, pid {}", vm.spec.hypervisor, process.pid);
            self.record_life(vm, EventReason::Started, &message);
        }
    }

    /// Reports that the rules of a VM were changed for a newer generation. A repair is reported as drift.
    pub(super) fn report_updated_rules(&self, vm: &Vm) {
        let (uid, generation) = (vm.meta.uid, vm.meta.generation);
        let is_newer = self.store.read(|world| {
            let status = world.status(uid, Stage::Firewall);
            status.is_some_and(|status| {
                let observed = status.condition.observed_generation;
                status.condition.is_true_at(observed) && (1..generation).contains(&observed)
            })
        });
        if is_newer {
            let message = format!("the firewall rules are those of generation {generation}");
            self.record_life(vm, EventReason::PolicyUpdated, &message);
        }
    }

    fn record_life(&self, vm: &Vm, reason: EventReason, message: &str) {
        let object = ObjectRef::vm(&vm.meta.name);
        self.record_event(EventType::Normal, &object, reason, message);
    }
}
