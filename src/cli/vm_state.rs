//! Why a VM is not in the power state that a user waits for, and the command that changes it.
//! Out of scope: conditions that are not True; the wait itself.

use super::args::Goal;
use crate::api::view::{VmView, VmmState};
use crate::api::vm::Power;

/// The reason, if it is the requested power state of the VM. `None`: its conditions contain the reason.
pub fn reason(vm: &VmView, goal: Goal) -> Option<String> {
    let verb = match goal {
        Goal::Stopped => "stop",
        Goal::Paused => "pause",
        Goal::Ready | Goal::Agent | Goal::Userdata | Goal::Deleted => return None,
    };
    let name = &vm.metadata.name;
    if vm.metadata.deleting {
        return Some("it is being deleted".to_owned());
    }
    let command = |verb: &str| format!("{verb} it with slicectl vm {verb} {name}");
    match (vm.power, vm.status.vmm.state, goal) {
        (_, VmmState::None, _) => Some("it has no VMM: hypervisor is none".to_owned()),
        (Power::Running, VmmState::Running, _) => Some(format!("it is running: {}", command(verb))),
        (Power::Running, VmmState::Starting, _) => {
            Some(format!("it is starting: {}", command(verb)))
        }
        (Power::Paused, VmmState::Paused, Goal::Stopped) => {
            Some(format!("it is paused: {}", command(verb)))
        }
        (Power::Stopped, VmmState::Stopped, Goal::Paused) => {
            Some(format!("it is stopped: {}", command("start")))
        }
        (Power::Restarting, _, _) => Some("it is restarting".to_owned()),
        // The request is stored, and not carried out yet.
        (Power::Running | Power::Paused | Power::Stopped, _, _) => None,
    }
}
