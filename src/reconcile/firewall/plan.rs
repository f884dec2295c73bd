//! Plans the actions for a namespace's rules and forwarding switch. Pure.
//! Out of scope: which rules a policy compiles to ([`super::rules`]).

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::host::rule::{Generation, Policy, Ruleset, TableName};

/// What ought to be in one VM's namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The namespace.
    pub netns: PathBuf,
    /// What the older back end locks while it writes them.
    pub lock: PathBuf,
    /// The rules; none: the gate is shut, and that is all.
    pub rules: Option<Rules>,
}

/// Rules that ought to stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Them.
    pub ruleset: Ruleset,
    /// Their name.
    pub digest: String,
    /// The rules by which the tracked flows were last judged.
    pub judged: Option<String>,
    /// Decides which flows may go on.
    pub policy: crate::api::policy::Policy,
    /// Whose flows they are.
    pub guest: std::net::Ipv4Addr,
    /// How many flows it may have.
    pub limit: u32,
}

/// What is in the namespace.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// There is a namespace.
    pub netns: bool,
    /// Its filter table.
    pub ruleset: Ruleset,
    /// IPv6 is shut.
    pub ipv6_sealed: bool,
    /// `net.ipv4.ip_forward`.
    pub gate_open: bool,
    /// Packets that exceeded the limit of connections; none: not looked for, because the VM has few.
    #[serde(skip)]
    pub refused: Option<u64>,
    /// The generation that [`ruleset`](Self::ruleset) is of, or of a later one.
    #[serde(skip)]
    pub generation: Option<Generation>,
    /// Flows that the desired rules forbid: looked for only when the rules stand and these flows were not yet judged by them.
    pub forbidden_flows: usize,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Nothing passes any more.
    ShutGate,
    /// All rules, or none.
    CommitRules {
        /// Their name.
        digest: String,
    },
    /// Policy DROP on every IPv6 chain.
    SealIpv6,
    /// What the rules now forbid, and began under others.
    CutFlows(usize),
    /// From here on packets pass.
    OpenGate,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShutGate => f.write_str("shut the gate (ip_forward off)"),
            Self::CommitRules { digest } => write!(f, "commit rules {digest}"),
            Self::SealIpv6 => f.write_str("seal IPv6"),
            Self::CutFlows(count) => write!(f, "cut {count} flows that are now forbidden"),
            Self::OpenGate => f.write_str("open the gate (ip_forward on)"),
        }
    }
}

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let Some(rules) = &desired.rules else {
        return match observed.gate_open {
            true => vec![Action::ShutGate],
            false => vec![],
        };
    };
    let mut plan = Vec::new();
    let standing = observed.ruleset == rules.ruleset;
    if !standing {
        // With the policy on DROP a missing rule lets nothing through; the allowed flows of a live change must go on.
        let fails_open = ["INPUT", "FORWARD"]
            .iter()
            .any(|chain| observed.ruleset.policy(TableName::Filter, chain) != Policy::Drop);
        if observed.gate_open && fails_open {
            plan.push(Action::ShutGate);
        }
        plan.push(Action::CommitRules {
            digest: rules.digest.clone(),
        });
    }
    if !observed.ipv6_sealed {
        plan.push(Action::SealIpv6);
    }
    if standing && observed.forbidden_flows > 0 {
        plan.push(Action::CutFlows(observed.forbidden_flows));
    }
    // Only a look that found the rules standing opens the gate.
    if standing && observed.ipv6_sealed && !observed.gate_open {
        plan.push(Action::OpenGate);
    }
    plan
}
