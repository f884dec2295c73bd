//! Plans the actions for a namespace's rules and forwarding switch. Pure.
//! Out of scope: which rules a policy compiles to ([`super::rules`]).

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::host::rule::{Generation, Policy, Ruleset, TableName};

/// The desired state of one VM's namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The namespace.
    pub netns: PathBuf,
    /// The file that the older back end locks while it writes the rules.
    pub lock: PathBuf,
    /// The rules. `None`: forwarding is turned off, and nothing else is changed.
    pub rules: Option<Rules>,
}

/// The desired rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// The rules.
    pub ruleset: Ruleset,
    /// Their digest.
    pub digest: String,
    /// The digest of the rules against which the tracked flows were last checked.
    pub checked_against: Option<String>,
    /// Decides which flows may continue.
    pub policy: crate::api::policy::Policy,
    /// The address of the guest that the flows belong to.
    pub guest: std::net::Ipv4Addr,
    /// The maximum number of flows of the guest.
    pub limit: u32,
}

/// The observed state of the namespace.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// Whether the namespace exists.
    pub netns: bool,
    /// Its filter table.
    pub ruleset: Ruleset,
    /// Whether IPv6 is blocked.
    pub ipv6_blocked: bool,
    /// `net.ipv4.ip_forward`.
    pub forwarding: bool,
    /// Packets that exceeded the limit of connections; `None` if not read, because the VM has few.
    #[serde(skip)]
    pub refused: Option<u64>,
    /// The generation of [`ruleset`](Self::ruleset), or a later one.
    #[serde(skip)]
    pub generation: Option<Generation>,
    /// Flows that the desired rules forbid. Read only if the rules are in place and these flows have not been checked against them yet.
    pub forbidden_flows: usize,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Turn forwarding off.
    DisableForwarding,
    /// Write all rules in one transaction.
    CommitRules {
        /// Their digest.
        digest: String,
    },
    /// Policy DROP on every IPv6 chain.
    BlockIpv6,
    /// Delete flows that began under other rules and are now forbidden.
    DeleteFlows(usize),
    /// Turn forwarding on.
    EnableForwarding,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DisableForwarding => f.write_str("turn forwarding off (ip_forward=0)"),
            Self::CommitRules { .. } if f.alternate() => f.write_str("commit rules"),
            Self::CommitRules { digest } => write!(f, "commit rules {digest}"),
            Self::BlockIpv6 => f.write_str("block IPv6"),
            Self::DeleteFlows(count) => write!(f, "delete {count} flows that are now denied"),
            Self::EnableForwarding => f.write_str("turn forwarding on (ip_forward=1)"),
        }
    }
}

/// The new namespace of a VM, in which nothing is set.
pub(super) fn unbuilt() -> Observed {
    Observed {
        netns: true,
        ..Observed::default()
    }
}

/// The state after these steps. Whether the rules forbid flows that exist is known only when they are in place.
pub(super) fn predict(desired: &Desired, observed: &Observed, plan: &[Action]) -> Observed {
    let mut state = observed.clone();
    for action in plan {
        match action {
            Action::DisableForwarding => state.forwarding = false,
            Action::EnableForwarding => state.forwarding = true,
            Action::BlockIpv6 => state.ipv6_blocked = true,
            Action::DeleteFlows(_) => state.forbidden_flows = 0,
            Action::CommitRules { .. } => {
                let rules = desired.rules.as_ref();
                state.ruleset = rules.map_or_else(Ruleset::default, |rules| rules.ruleset.clone());
            }
        }
    }
    state
}

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let Some(rules) = &desired.rules else {
        return match observed.forwarding {
            true => vec![Action::DisableForwarding],
            false => vec![],
        };
    };
    let mut plan = Vec::new();
    let in_place = observed.ruleset == rules.ruleset;
    if !in_place {
        // With policy DROP a missing rule lets nothing through; the allowed flows must continue during a live change.
        let fails_open = ["INPUT", "FORWARD"]
            .iter()
            .any(|chain| observed.ruleset.policy(TableName::Filter, chain) != Policy::Drop);
        if observed.forwarding && fails_open {
            plan.push(Action::DisableForwarding);
        }
        plan.push(Action::CommitRules {
            digest: rules.digest.clone(),
        });
    }
    if !observed.ipv6_blocked {
        plan.push(Action::BlockIpv6);
    }
    if in_place && observed.forbidden_flows > 0 {
        plan.push(Action::DeleteFlows(observed.forbidden_flows));
    }
    // Forwarding is turned on only after an observation that found the rules in place.
    if in_place && observed.ipv6_blocked && !observed.forwarding {
        plan.push(Action::EnableForwarding);
    }
    plan
}
