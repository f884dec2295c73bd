//! Executes one step for a namespace's rules and forwarding switch.
//! Out of scope: which steps are executed, and in which order.

use super::observe::{FORWARDING, forbidden};
use super::plan::{Action, Desired};
use crate::host::iptables::Lock;
use crate::host::netns::Netns;
use crate::host::{Error, Kind, conntrack, iptables};
use crate::reconcile::firewall::isolated::IsolatedFirewall;

pub(super) async fn act(
    firewall: &IsolatedFirewall,
    desired: &Desired,
    action: &Action,
) -> Result<(), Error> {
    let netns = match Netns::open(&desired.netns) {
        Ok(netns) => netns,
        Err(error) if error.kind == Kind::Absent && *action == Action::DisableForwarding => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    match (action, &desired.rules) {
        (Action::DisableForwarding, _) => netns.write_sysctl(FORWARDING, "0"),
        (Action::EnableForwarding, _) => netns.write_sysctl(FORWARDING, "1"),
        (Action::BlockIpv6, _) => netns.run_here(iptables::block_ipv6),
        (Action::CommitRules { .. }, Some(rules)) => {
            let backend = firewall.backend.clone();
            let lock = desired.lock.clone();
            let ruleset = rules.ruleset.clone();
            let commit = move || iptables::restore_tables(&backend, &ruleset, Lock::Private(&lock));
            netns.run_for(firewall.backend.timeout, commit).await
        }
        (Action::DeleteFlows(_), Some(rules)) => {
            let rules = rules.clone();
            let flows = netns.run(move || forbidden(&rules)).await?;
            // First on the host: flows that remain in the namespace are found again after a crash.
            let host_flows = flows.clone();
            let cut = move || conntrack::delete_same_tuples(&host_flows);
            firewall.home.run(cut).await?;
            netns.run(move || conntrack::delete(&flows)).await
        }
        (Action::CommitRules { .. } | Action::DeleteFlows(_), None) => Ok(()),
    }
}
