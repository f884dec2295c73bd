//! Plans the actions for the redirect between a CNI interface and a TAP, and for the forwarding switch. Pure.
//! Out of scope: creating the two links.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::owner::Label;
use crate::reconcile::Conflict;

/// The desired state of one VM's namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The owner of the namespace.
    pub label: Label,
    /// The namespace.
    pub netns: PathBuf,
    /// The TAP. It is the forwarding switch: while it is down, nothing passes.
    pub tap: String,
    /// How it is connected. `None`: forwarding is turned off, and nothing else is changed.
    pub tap_link: Option<TapLink>,
}

/// How the TAP is connected to the plugins' interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TapLink {
    /// By us, to the interface of this name: packets that arrive on one leave by the other.
    Redirect(String),
    /// By a plugin of the chain.
    Chain,
}

/// The observed state of the namespace.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// The label of the namespace; `None` if it does not exist.
    pub netns: Option<String>,
    /// The plugins' interface; read only if we connect it.
    pub eth: Option<End>,
    /// The TAP.
    pub tap: Option<End>,
}

/// One end of the redirect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Its index.
    pub index: u32,
    /// Administratively up.
    pub up: bool,
    /// The filter with our number at its ingress.
    pub filter: Filter,
}

/// Our filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Filter {
    /// It does not exist.
    #[default]
    Absent,
    /// All packets are redirected to the link with this index.
    To(u32),
    /// It has another action.
    Wrong,
}

/// The direction of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the network to the guest.
    In,
    /// From the guest to the network.
    Out,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Turn forwarding off.
    DisableForwarding,
    /// Remove our filter of this direction, which is not as specified.
    RemoveRedirect(Direction),
    /// Redirect in this direction.
    Redirect(Direction),
    /// Turn forwarding on.
    EnableForwarding,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "to the guest",
            Self::Out => "from the guest",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DisableForwarding => f.write_str("turn forwarding off (TAP down)"),
            Self::RemoveRedirect(direction) => write!(f, "remove the wrong redirect {direction}"),
            Self::Redirect(way) => write!(f, "redirect {way}"),
            Self::EnableForwarding => f.write_str("turn forwarding on (TAP up)"),
        }
    }
}

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let ours = desired.label.claim((), observed.netns.as_deref()).is_some();
    let up = observed.tap.as_ref().is_some_and(|tap| tap.up);
    let Some(join) = &desired.tap_link else {
        // Without a namespace, forwarding is off; a foreign namespace has no forwarding switch of ours.
        return Ok(match ours && up {
            true => vec![Action::DisableForwarding],
            false => vec![],
        });
    };
    if observed.netns.is_some() && !ours {
        let path = desired.netns.display();
        return Err(Conflict {
            object: format!("namespace {path}"),
            remedy: format!("move it away, or unmount it: umount {path}"),
        });
    }
    let mut plan = match join {
        TapLink::Redirect(_) => filters(observed),
        TapLink::Chain => Vec::new(),
    };
    let in_place = plan.is_empty();
    match (in_place, up) {
        // Forwarding is turned on only after an observation that found both redirects.
        (true, false) => plan.push(Action::EnableForwarding),
        (false, true) => plan.insert(0, Action::DisableForwarding),
        (true, true) | (false, false) => {}
    }
    Ok(plan)
}

fn filters(observed: &Observed) -> Vec<Action> {
    let index = |end: &Option<End>| end.as_ref().map(|end| end.index);
    let directions = [
        (Direction::In, &observed.eth, index(&observed.tap)),
        (Direction::Out, &observed.tap, index(&observed.eth)),
    ];
    let mut plan = Vec::new();
    for (direction, from, to) in directions {
        let filter = from.as_ref().map(|end| end.filter).unwrap_or_default();
        match filter {
            Filter::To(found) if Some(found) == to => continue,
            Filter::To(_) | Filter::Wrong => plan.push(Action::RemoveRedirect(direction)),
            Filter::Absent => {}
        }
        plan.push(Action::Redirect(direction));
    }
    plan
}
