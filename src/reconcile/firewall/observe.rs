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

pub(super) fn observe(firewall: &Firewall, desired: &Desired) -> Result<Observed, host::Error> {
    let netns = match Netns::open(&desired.netns) {
        Ok(netns) => netns,
        // Nothing is to be there: no namespace is as good as a shut gate. Otherwise the rung below has work to do.
        Err(error) if error.kind == Kind::Absent && desired.rules.is_none() => {
            return Ok(Observed::default());
        }
        Err(error) => return Err(error),
    };
    let backend = firewall.backend.clone();
    let rules = desired.rules.clone();
    netns.run_here(move || {
        let gate_open = sysctl::read(GATE)? == "1";
        let Some(rules) = rules else {
            return Ok(Observed {
                netns: true,
                gate_open,
                ..Observed::default()
            });
        };
        let (ruleset, generation) = backend.read_dated(&[TableName::Filter])?;
        let forbidden_flows = match ruleset == rules.ruleset {
            true => forbidden(&rules)?.len(),
            false => 0,
        };
        Ok(Observed {
            netns: true,
            ipv6_sealed: iptables::ipv6_sealed()?,
            gate_open,
            ruleset,
            generation,
            forbidden_flows,
        })
    })
}

/// The calling thread's namespace's flows that the rules forbid; none when these rules have judged them already.
pub(super) fn forbidden(rules: &Rules) -> Result<Vec<Flow>, host::Error> {
    if rules.judged.as_ref() == Some(&rules.digest) || conntrack::count()? == 0 {
        return Ok(Vec::new());
    }
    let flows = conntrack::list()?;
    Ok(flows
        .into_iter()
        .filter(|flow| flow.src == rules.guest && denied(rules, flow))
        .collect())
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
