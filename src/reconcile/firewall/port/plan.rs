//! What is to be done for a TAP's filter and gate. Pure.
//! Out of scope: the program itself.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::api::network::Mac;
use crate::host::tc::Insn;
use crate::owner::Label;
use crate::reconcile::Conflict;
use crate::reconcile::firewall::antispoof::{self, Apart};

/// What ought to be at one VM's TAP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// Whose the TAP is.
    pub label: Label,
    /// Its name, in the host namespace.
    pub tap: String,
    /// What may come in; none: the gate is shut, and that is all.
    #[serde(default)]
    pub pass: Option<Pass>,
    /// The name of what was last verified to stand there ([`Pass::digest`]), if anything was.
    #[serde(default)]
    pub before: Option<String>,
}

/// What of the guest's frames may pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pass {
    /// All of them.
    Any,
    /// What [`antispoof::program`] lets pass.
    Only(Filter),
    /// All but what reaches a neighbour by way of the host ([`antispoof::program_apart`]).
    Apart(Apart),
    /// All but what configures others, on a bridge that is not ours ([`antispoof::program_unmanaged`]); kept apart, too.
    Unmanaged(Option<Apart>),
}

/// What the filter is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// The guest's.
    pub mac: Mac,
    /// The guest's.
    pub ip: Ipv4Addr,
    /// Kept apart from its neighbours, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apart: Option<Apart>,
}

/// What is.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// What bears the TAP's name.
    pub tap: Option<TapSeen>,
    /// The name of the program of ours that stands at it.
    pub program: Option<String>,
    /// What stands where our program must be, and lets none stand beside it.
    pub in_the_way: Option<String>,
}

/// A link called as the TAP.
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
    /// Nothing passes any more, either way.
    ShutGate,
    /// Put the program where frames come in, in place of the one that is there.
    SetFilter {
        /// Its name.
        digest: String,
    },
    /// Take our program away.
    RemoveFilter,
    /// From here on frames pass.
    OpenGate,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShutGate => f.write_str("shut the gate (TAP down)"),
            Self::SetFilter { digest } => write!(f, "set filter {digest} on the TAP"),
            Self::RemoveFilter => f.write_str("remove the filter from the TAP"),
            Self::OpenGate => f.write_str("open the gate (TAP up)"),
        }
    }
}

impl Pass {
    /// A name for it, for the rung's page.
    pub fn digest(&self) -> String {
        self.program()
            .map_or("any".to_owned(), |program| antispoof::digest(&program))
    }

    /// What stands at the TAP; nothing when all may pass.
    pub fn program(&self) -> Option<Vec<Insn>> {
        match self {
            Self::Any => None,
            Self::Only(Filter { mac, ip, apart }) => {
                Some(antispoof::program(*mac, *ip, apart.as_ref()))
            }
            Self::Apart(apart) => Some(antispoof::program_apart(apart)),
            Self::Unmanaged(apart) => Some(antispoof::program_unmanaged(apart.as_ref())),
        }
    }
}

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let (Some(tap), Some(pass)) = (&observed.tap, &desired.pass) else {
        return Ok(without_one(desired, observed));
    };
    if !is_ours(desired, tap) {
        return Err(Conflict {
            thing: format!("link {}", desired.tap),
            remedy: format!(
                "rename or remove it: ip link set {} name OTHER",
                desired.tap
            ),
        });
    }
    match pass {
        Pass::Any => Ok(unfiltered(tap, observed)),
        Pass::Only(_) | Pass::Apart(_) | Pass::Unmanaged(_) => {
            filtered(desired, pass, tap, observed)
        }
    }
}

/// Without a TAP there is nothing to shut, and something is missing if it ought to be open: looking says so first.
fn without_one(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let open = |tap: &&TapSeen| tap.up && is_ours(desired, tap);
    match desired.pass {
        Some(_) => vec![Action::OpenGate],
        None if observed.tap.as_ref().is_some_and(|tap| open(&tap)) => vec![Action::ShutGate],
        None => vec![],
    }
}

fn is_ours(desired: &Desired, tap: &TapSeen) -> bool {
    desired.label.claim((), tap.alias.as_deref()).is_some()
}

fn unfiltered(tap: &TapSeen, observed: &Observed) -> Vec<Action> {
    let mut plan = Vec::new();
    if observed.program.is_some() {
        plan.push(Action::RemoveFilter);
    }
    if !tap.up {
        plan.push(Action::OpenGate);
    }
    plan
}

fn filtered(
    desired: &Desired,
    pass: &Pass,
    tap: &TapSeen,
    observed: &Observed,
) -> Result<Vec<Action>, Conflict> {
    let digest = pass.digest();
    // Only a look that found the filter standing opens the gate.
    let standing = observed.program.as_ref() == Some(&digest);
    let mut plan = Vec::new();
    match (standing, tap.up) {
        (true, true) => {}
        (true, false) => plan.push(Action::OpenGate),
        (false, up) => {
            // Where all stands as it was last verified, the wish has changed and not the world: the new filter takes the old one's
            // place at once, and flows that both allow go on. Nothing passes meanwhile that did not before.
            let seen = observed
                .program
                .clone()
                .unwrap_or_else(|| Pass::Any.digest());
            let is_live = desired.before.as_ref() == Some(&seen);
            if up && !(is_live && observed.in_the_way.is_none()) {
                plan.push(Action::ShutGate);
            }
            if let Some(stranger) = &observed.in_the_way {
                // Fail closed: first the gate, and what is in the way is told by the plan that follows.
                return match up {
                    true => Ok(plan),
                    false => Err(Conflict {
                        thing: format!("{stranger} on {}", desired.tap),
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
