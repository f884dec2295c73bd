//! Reads `vsock` and `agent`: how the host can access a guest.
//! Out of scope: the device of each VMM.

use super::super::guest_access::{Agent, GuestAccess};
use super::super::vm::Hypervisor;
use super::keys::limits::AGENTS;
use super::section::{Reader, Section};

/// The settings that a group may inherit from `config:` or override.
#[derive(Clone, Default)]
pub struct GuestAccessFields {
    vsock: Option<bool>,
    agent: Option<Agent>,
}

/// The settings of this section, with `default` for those that are missing.
pub fn read(
    reader: &mut Reader,
    section: &Section,
    default: GuestAccessFields,
) -> GuestAccessFields {
    let vsock = section.get("vsock").and_then(|field| reader.flag(field));
    let agent = section
        .get("agent")
        .and_then(|field| reader.one_of(field, &AGENTS));
    GuestAccessFields {
        vsock: vsock.or(default.vsock),
        agent: agent.or(default.agent),
    }
}

/// Selects the settings for a VM of this group. A setting of the group without an effect is refused; one of `config:` applies to the groups
/// in which it has an effect.
pub fn choose(
    reader: &mut Reader,
    group: &Section,
    hypervisor: Hypervisor,
    fields: GuestAccessFields,
) -> GuestAccess {
    if hypervisor == Hypervisor::None {
        for key in ["vsock", "agent"] {
            if let Some(field) = group.get(key) {
                reader.refuse_and_discard_others(field, "has no effect with hypervisor \"none\"");
            }
        }
        return GuestAccess::default();
    }
    let vsock = fields.vsock.unwrap_or(true);
    if let (Some(field), false) = (group.get("agent"), vsock) {
        let message = match fields.agent {
            Some(Agent::Inject) => {
                "found \"inject\", which needs a vsock device: remove `vsock: false`"
            }
            Some(Agent::Baked | Agent::None) | None => "has no effect with `vsock: false`",
        };
        reader.refuse_and_discard_others(field, message);
    }
    GuestAccess {
        vsock,
        agent: match vsock {
            true => fields.agent.unwrap_or_default(),
            false => Agent::default(),
        },
    }
}
