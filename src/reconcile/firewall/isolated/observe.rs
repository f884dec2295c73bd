//! Observes the rules and the forwarding switch of a VM's namespace.
//! Out of scope: what is desired.

use super::plan::{Desired, Observed, Rules};
use crate::api::policy::{Packet, Protocol, Verdict};
use crate::host::conntrack::{self, Flow};
use crate::host::iptables::{Backend, Netfilter};
use crate::host::netns::Netns;
use crate::host::rule::TableName;
use crate::host::{self, Kind, iptables};
use crate::reconcile::firewall::isolated::{IsolatedFirewall, rules};

/// The forwarding switch: the same as `net.ipv4.ip_forward` (net/ipv4/devinet.c), in a directory that is open already.
pub(super) const FORWARDING: &str = "net.ipv4.conf.all.forwarding";

pub(super) async fn observe(
    firewall: &IsolatedFirewall,
    desired: &Desired,
) -> Result<Observed, host::Error> {
    let netns = match Netns::open(&desired.netns) {
        Ok(netns) => netns,
        // Forwarding is to be off: a missing namespace is equivalent. Otherwise the stage below has to create it.
        Err(error) if error.kind == Kind::Absent && desired.rules.is_none() => {
            return Ok(Observed::default());
        }
        Err(error) => return Err(error),
    };
    let backend = &firewall.backend;
    let (seen, flows) = match backend.runs_a_program() {
        false => netns.run_here(|| observe_rules(backend, &netns, desired))?,
        true => {
            let (backend, inside, desired) = (backend.clone(), netns.clone(), desired.clone());
            let observe = move || observe_rules(&backend, &inside, &desired);
            netns.run_for(firewall.backend.timeout, observe).await?
        }
    };
    let forbidden_flows = match &desired.rules {
        // Listing even a few flows traverses the flows of all namespaces. The flows may have been checked against these rules already.
        Some(rules)
            if rules.ruleset == seen.ruleset
                && rules.checked_against.as_ref() != Some(&rules.digest)
                && flows > 0 =>
        {
            let rules = rules.clone();
            netns.run(move || Ok(forbidden(&rules)?.len())).await?
        }
        Some(_) | None => 0,
    };
    Ok(Observed {
        forbidden_flows,
        ..seen
    })
}

/// Observes all except which flows are forbidden; also returns how many flows exist after the rules were read.
fn observe_rules(
    backend: &Backend,
    netns: &Netns,
    desired: &Desired,
) -> Result<(Observed, u32), host::Error> {
    let observed = Observed {
        netns: true,
        forwarding: netns.read_sysctl(FORWARDING)? == "1",
        ..Observed::default()
    };
    let Some(rules) = &desired.rules else {
        return Ok((observed, 0));
    };
    let mut netfilter = Netfilter::open()?;
    let (ruleset, generation) = backend.read_with(&mut netfilter, &[TableName::Filter])?;
    let flows = conntrack::count_with(&mut netfilter)?;
    let refused = match flows >= rules.limit / 2 {
        true => Some(backend.matched(rules::ALLOW, rules::LIMIT)?),
        false => None,
    };
    let seen = Observed {
        ipv6_blocked: iptables::is_ipv6_blocked_with(&mut netfilter)?,
        ruleset,
        generation,
        refused,
        ..observed
    };
    Ok((seen, flows))
}

/// The flows of the calling thread's namespace that the rules forbid.
pub(super) fn forbidden(rules: &Rules) -> Result<Vec<Flow>, host::Error> {
    let mut flows = conntrack::list()?;
    flows.retain(|flow| flow.src == rules.guest);
    // Rules that were written again count from 0: all flows of a VM that is over its limit are deleted, so that it never has more than the
    // limit.
    if flows.len() <= rules.limit as usize {
        flows.retain(|flow| denied(rules, flow));
    }
    Ok(flows)
}

fn denied(rules: &Rules, flow: &Flow) -> bool {
    let transport = match i32::from(flow.protocol) {
        libc::IPPROTO_TCP => Some((Protocol::Tcp, Some(flow.dport))),
        libc::IPPROTO_UDP => Some((Protocol::Udp, Some(flow.dport))),
        _ => None,
    };
    let packet = Packet {
        destination: flow.dst,
        transport,
    };
    let gateway_ping = crate::api::network::Block::around(rules.guest).gateway() == flow.dst;
    !gateway_ping && rules.policy.evaluate(&packet).0 == Verdict::Deny
}
