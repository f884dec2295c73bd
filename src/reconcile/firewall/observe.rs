//! What stands in a VM's namespace.
//! Not here: what ought to.

use super::Firewall;
use super::plan::{Desired, Observed, Rules};
use crate::api::policy::{Packet, Protocol, Verdict};
use crate::host::conntrack::{self, Flow};
use crate::host::netns::Netns;
use crate::host::rule::TableName;
use crate::host::{self, Kind, iptables, sysctl};

/// The gate.
pub(super) const GATE: &str = "net.ipv4.ip_forward";

pub(super) async fn observe(
    firewall: &Firewall,
    desired: &Desired,
) -> Result<Observed, host::Error> {
    let netns = match Netns::open(&desired.netns) {
        Ok(netns) => netns,
        // Nothing is to be there: no namespace is as good as a shut gate. Otherwise the rung below has work to do.
        Err(error) if error.kind == Kind::Absent && desired.rules.is_none() => {
            return Ok(Observed::default());
        }
        Err(error) => return Err(error),
    };
    let seen = netns.run_here(|| look(firewall, desired))?;
    let forbidden_flows = match &desired.rules {
        Some(rules) if rules.ruleset == seen.ruleset => count_forbidden(&netns, rules).await?,
        Some(_) | None => 0,
    };
    Ok(Observed {
        forbidden_flows,
        ..seen
    })
}

/// All but flows.
fn look(firewall: &Firewall, desired: &Desired) -> Result<Observed, host::Error> {
    let gate = Observed {
        netns: true,
        gate_open: sysctl::read(GATE)? == "1",
        ..Observed::default()
    };
    if desired.rules.is_none() {
        return Ok(gate);
    }
    let (ruleset, generation) = firewall.backend.read_dated(&[TableName::Filter])?;
    Ok(Observed {
        ipv6_sealed: iptables::ipv6_sealed()?,
        ruleset,
        generation,
        ..gate
    })
}

/// None when these rules have judged the flows already. To list even a few is to walk the flows of all namespaces.
async fn count_forbidden(netns: &Netns, rules: &Rules) -> Result<usize, host::Error> {
    if rules.judged.as_ref() == Some(&rules.digest) || netns.run_here(conntrack::count)? == 0 {
        return Ok(0);
    }
    let rules = rules.clone();
    netns.run(move || Ok(forbidden(&rules)?.len())).await
}

/// The calling thread's namespace's flows that the rules forbid.
pub(super) fn forbidden(rules: &Rules) -> Result<Vec<Flow>, host::Error> {
    let mut flows = conntrack::list()?;
    flows.retain(|flow| flow.src == rules.guest);
    // Rules that were written again count from 0: who has more than the limit keeps none, so that it never has more than that.
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
    !gateway_ping && rules.policy.judge(&packet).0 == Verdict::Deny
}
