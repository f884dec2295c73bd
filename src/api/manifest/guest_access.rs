//! Reads `vsock` and `agent`: how the host can access a guest; with what the guest gets.
//! Out of scope: the device of each VMM.

use super::super::guest_access::{Agent, GuestAccess};
use super::super::vm::Hypervisor;
use super::keys::limits::AGENTS;
use super::provision::{self, ProvisionFields};
use super::section::{Reader, Section};

/// The settings that a group may inherit from `config:` or override.
#[derive(Clone, Default)]
pub struct GuestAccessFields {
    vsock: Option<bool>,
    agent: Option<Agent>,
    provision: ProvisionFields,
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
        provision: provision::read(reader, section, default.provision),
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
    let own = ["vsock", "agent"].into_iter().chain(provision::KEYS);
    if hypervisor == Hypervisor::None {
        refuse_keys(reader, group, own, "has no effect with hypervisor \"none\"");
        return GuestAccess::default();
    }
    let vsock = fields.vsock.unwrap_or(true);
    if !vsock {
        let agent = group
            .get("agent")
            .filter(|_| fields.agent == Some(Agent::Inject));
        if let Some(field) = agent {
            let message = "found \"inject\", which needs a vsock device: remove `vsock: false`";
            reader.refuse_and_discard_others(field, message);
        }
        let is_refused = |key: &str| key == "agent" && agent.is_some();
        let keys = own.filter(|key| *key != "vsock" && !is_refused(key));
        refuse_keys(reader, group, keys, "has no effect with `vsock: false`");
        return GuestAccess {
            vsock,
            ..GuestAccess::default()
        };
    }
    let agent = fields.agent.unwrap_or_default();
    if agent == Agent::None {
        let why = "has no effect with `agent: none`";
        refuse_keys(reader, group, provision::KEYS.into_iter(), why);
        return GuestAccess {
            agent,
            ..GuestAccess::default()
        };
    }
    GuestAccess {
        vsock,
        agent,
        provision: fields.provision.into_provision(),
    }
}

fn refuse_keys(
    reader: &mut Reader,
    group: &Section,
    keys: impl Iterator<Item = &'static str>,
    why: &str,
) {
    for key in keys {
        if let Some(field) = group.get(key) {
            reader.refuse_and_discard_others(field, why);
        }
    }
}
