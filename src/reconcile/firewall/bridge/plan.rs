//! Plans the actions for a TAP's filter and forwarding switch. Pure.
//! Out of scope: the program itself.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::api::network::Mac;
use crate::host::tc::Insn;
use crate::owner::Label;
use crate::reconcile::Conflict;
use crate::reconcile::firewall::antispoof::{self, PortIsolation};

/// The desired state of one VM's TAP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The owner of the TAP.
    pub label: Label,
    /// Its name, in the host namespace.
    pub tap: String,
    /// Which frames may pass. `None`: forwarding is turned off, and nothing else is changed.
    #[serde(default)]
    pub allowed: Option<AllowedFrames>,
    /// The digest of the filter that was last verified ([`AllowedFrames::digest`]), if any.
    #[serde(default)]
    pub last_verified: Option<String>,
}

/// Which of the guest's frames may pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllowedFrames {
    /// All of them.
    Any,
    /// Those that [`antispoof::program`] passes.
    Only(Filter),
    /// All except those that reach a neighbour through the host ([`antispoof::program_isolated_port`]).
    Apart(PortIsolation),
    /// All except those that configure others, on an unmanaged bridge ([`antispoof::program_unmanaged`]); the port may be isolated, too.
    Unmanaged(Option<PortIsolation>),
}

/// The input for the filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// The guest's MAC.
    pub mac: Mac,
    /// The guest's address.
    pub ip: Ipv4Addr,
    /// Isolates the port from its neighbours, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<PortIsolation>,
}

/// The observed state.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// The link with the TAP's name.
    pub tap: Option<TapSeen>,
    /// The digest of our program that is attached to it.
    pub program: Option<String>,
    /// A foreign filter in the place of our program that prevents attaching it.
    pub foreign_filter: Option<String>,
}

/// A link with the TAP's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TapSeen {
    /// Its label.
    pub alias: Option<String>,
    /// Administratively up.
    pub up: bool,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Turn forwarding off in both directions (TAP down).
    DisableForwarding,
    /// Attach the program to the TAP's ingress, and replace the present one.
    SetFilter {
        /// Its digest.
        digest: String,
    },
    /// Remove our program.
    RemoveFilter,
    /// Turn forwarding on (TAP up).
    EnableForwarding,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DisableForwarding => f.write_str("turn forwarding off (TAP down)"),
            Self::SetFilter { .. } if f.alternate() => f.write_str("set the filter on the TAP"),
            Self::SetFilter { digest } => write!(f, "set filter {digest} on the TAP"),
            Self::RemoveFilter => f.write_str("remove the filter from the TAP"),
            Self::EnableForwarding => f.write_str("turn forwarding on (TAP up)"),
        }
    }
}

impl AllowedFrames {
    /// Its digest, for the stage status.
    pub fn digest(&self) -> String {
        self.program()
            .map_or("any".to_owned(), |program| antispoof::digest(&program))
    }

    /// The program that is attached to the TAP; `None` if all frames may pass.
    pub fn program(&self) -> Option<Vec<Insn>> {
        match self {
            Self::Any => None,
            Self::Only(Filter {
                mac,
                ip,
                isolation: apart,
            }) => Some(antispoof::program(*mac, *ip, apart.as_ref())),
            Self::Apart(apart) => Some(antispoof::program_isolated_port(apart)),
            Self::Unmanaged(apart) => Some(antispoof::program_unmanaged(apart.as_ref())),
        }
    }
}

/// The new TAP of a VM, without a filter and down.
pub(super) fn unbuilt(desired: &Desired) -> Observed {
    Observed {
        tap: Some(TapSeen {
            alias: Some(desired.label.to_string()),
            up: false,
        }),
        ..Observed::default()
    }
}

/// The state after these steps.
pub(super) fn predict(observed: &Observed, plan: &[Action]) -> Observed {
    let mut state = observed.clone();
    for action in plan {
        match action {
            Action::SetFilter { digest } => state.program = Some(digest.clone()),
            Action::RemoveFilter => state.program = None,
            Action::DisableForwarding | Action::EnableForwarding => {
                let is_up = *action == Action::EnableForwarding;
                state.tap.iter_mut().for_each(|tap| tap.up = is_up);
            }
        }
    }
    state
}

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let (Some(tap), Some(allowed)) = (&observed.tap, &desired.allowed) else {
        return Ok(plan_without_tap(desired, observed));
    };
    if !is_ours(desired, tap) {
        return Err(Conflict {
            object: format!("link {}", desired.tap),
            remedy: format!(
                "rename or remove it: ip link set {} name OTHER",
                desired.tap
            ),
        });
    }
    match allowed {
        AllowedFrames::Any => Ok(plan_unfiltered(tap, observed)),
        AllowedFrames::Only(_) | AllowedFrames::Apart(_) | AllowedFrames::Unmanaged(_) => {
            plan_filtered(desired, allowed, tap, observed)
        }
    }
}

/// Without a TAP, forwarding cannot be turned off. If it should be on, the TAP is missing, and the observation has failed before.
fn plan_without_tap(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let is_on = |tap: &&TapSeen| tap.up && is_ours(desired, tap);
    match desired.allowed {
        Some(_) => vec![Action::EnableForwarding],
        None if observed.tap.as_ref().is_some_and(|tap| is_on(&tap)) => {
            vec![Action::DisableForwarding]
        }
        None => vec![],
    }
}

fn is_ours(desired: &Desired, tap: &TapSeen) -> bool {
    desired.label.claim((), tap.alias.as_deref()).is_some()
}

fn plan_unfiltered(tap: &TapSeen, observed: &Observed) -> Vec<Action> {
    let mut plan = Vec::new();
    if observed.program.is_some() {
        plan.push(Action::RemoveFilter);
    }
    if !tap.up {
        plan.push(Action::EnableForwarding);
    }
    plan
}

fn plan_filtered(
    desired: &Desired,
    allowed: &AllowedFrames,
    tap: &TapSeen,
    observed: &Observed,
) -> Result<Vec<Action>, Conflict> {
    let digest = allowed.digest();
    // Forwarding is turned on only after an observation that found the filter in place.
    let in_place = observed.program.as_ref() == Some(&digest);
    let mut plan = Vec::new();
    match (in_place, tap.up) {
        (true, true) => {}
        (true, false) => plan.push(Action::EnableForwarding),
        (false, up) => {
            // If the state is as last verified, the spec has changed and not the host: the new filter replaces the old one at once, and
            // flows that both allow continue. Meanwhile nothing passes that did not pass before.
            let seen = observed
                .program
                .clone()
                .unwrap_or_else(|| AllowedFrames::Any.digest());
            let is_live = desired.last_verified.as_ref() == Some(&seen);
            if up && !(is_live && observed.foreign_filter.is_none()) {
                plan.push(Action::DisableForwarding);
            }
            if let Some(foreign_filter) = &observed.foreign_filter {
                // Fail closed: forwarding is turned off first, and the next plan reports the foreign filter.
                return match up {
                    true => Ok(plan),
                    false => Err(Conflict {
                        object: format!("{foreign_filter} on {}", desired.tap),
                        remedy: format!(
                            "remove it: tc filter del dev {} ingress prio 1",
                            desired.tap
                        ),
                    }),
                };
            }
            plan.push(Action::SetFilter { digest });
        }
    }
    Ok(plan)
}
