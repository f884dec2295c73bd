//! Executes one step for a namespace's rules and forwarding switch.
//! Out of scope: which steps are executed, and in which order.

use super::Firewall;
use super::observe::{GATE, forbidden};
use super::plan::{Action, Desired};
use crate::host::iptables::Lock;
use crate::host::netns::Netns;
use crate::host::{Error, Kind, conntrack, iptables};

pub(super) async fn act(
    firewall: &Firewall,
    desired: &Desired,
    action: &Action,
) -> Result<(), Error> {
    let netns = match Netns::open(&desired.netns) {
        Ok(netns) => netns,
        Err(error) if error.kind == Kind::Absent && *action == Action::ShutGate => return Ok(()),
        Err(error) => return Err(error),
    };
    match (action, &desired.rules) {
        (Action::ShutGate, _) => netns.write_sysctl(GATE, "0"),
        (Action::OpenGate, _) => netns.write_sysctl(GATE, "1"),
        (Action::SealIpv6, _) => netns.run_here(iptables::seal_ipv6),
        (Action::CommitRules { .. }, Some(rules)) => {
            let backend = firewall.backend.clone();
            let lock = desired.lock.clone();
            let ruleset = rules.ruleset.clone();
            let commit = move || iptables::restore_whole(&backend, &ruleset, Lock::Private(&lock));
            netns.run_for(firewall.backend.deadline, commit).await
        }
        (Action::CutFlows(_), Some(rules)) => {
            let rules = rules.clone();
            let flows = netns.run(move || forbidden(&rules)).await?;
            // First on the host: flows that remain in the namespace are found again after a crash.
            let here = flows.clone();
            let cut = move || conntrack::delete_same_ends(&here);
            firewall.home.run(cut).await?;
            netns.run(move || conntrack::delete(&flows)).await
        }
        (Action::CommitRules { .. } | Action::CutFlows(_), None) => Ok(()),
    }
}
