//! What is to be done for the redirect between a CNI interface and a TAP, and for the gate. Pure.
//! Out of scope: who made the two.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::super::Conflict;
use crate::owner::Label;

/// What ought to be in one VM's namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// Whose namespace it is.
    pub label: Label,
    /// The namespace.
    pub netns: PathBuf,
    /// The TAP. It is the gate: while it is down, nothing passes.
    pub tap: String,
    /// How it is joined; none: the gate is shut, and that is all.
    pub join: Option<Join>,
}

/// How the TAP is joined with the plugins' interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Join {
    /// By us, with the interface of this name: all that comes in at one goes out by the other.
    Ours(String),
    /// By a plugin of the chain.
    Chains,
}

/// What is in the namespace.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// There is a namespace, with this label.
    pub netns: Option<String>,
    /// The plugins' interface; looked for when we join.
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
    /// What bears our number among the filters of what comes in there.
    pub filter: Filter,
}

/// Our filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Filter {
    /// There is none.
    #[default]
    Absent,
    /// Everything goes out by the link with this index.
    To(u32),
    /// It does something else.
    Wrong,
}

/// What comes in where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// From the network to the guest.
    In,
    /// From the guest to the network.
    Out,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Nothing passes any more.
    ShutGate,
    /// Remove our filter of this way, which is not as it must be.
    Unredirect(Way),
    /// Redirect this way.
    Redirect(Way),
    /// From here on packets pass.
    OpenGate,
}

impl fmt::Display for Way {
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
            Self::ShutGate => f.write_str("shut the gate (TAP down)"),
            Self::Unredirect(way) => write!(f, "remove the wrong redirect {way}"),
            Self::Redirect(way) => write!(f, "redirect {way}"),
            Self::OpenGate => f.write_str("open the gate (TAP up)"),
        }
    }
}

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let ours = desired.label.claim((), observed.netns.as_deref()).is_some();
    let up = observed.tap.as_ref().is_some_and(|tap| tap.up);
    let Some(join) = &desired.join else {
        // No namespace is as good as a shut gate; a stranger's has no gate of ours.
        return Ok(match ours && up {
            true => vec![Action::ShutGate],
            false => vec![],
        });
    };
    if observed.netns.is_some() && !ours {
        let path = desired.netns.display();
        return Err(Conflict {
            thing: format!("namespace {path}"),
            remedy: format!("move it away, or unmount it: umount {path}"),
        });
    }
    let mut plan = match join {
        Join::Ours(_) => filters(observed),
        Join::Chains => Vec::new(),
    };
    let standing = plan.is_empty();
    match (standing, up) {
        // Only a look that found both redirects opens the gate.
        (true, false) => plan.push(Action::OpenGate),
        (false, true) => plan.insert(0, Action::ShutGate),
        (true, true) | (false, false) => {}
    }
    Ok(plan)
}

fn filters(observed: &Observed) -> Vec<Action> {
    let index = |end: &Option<End>| end.as_ref().map(|end| end.index);
    let ways = [
        (Way::In, &observed.eth, index(&observed.tap)),
        (Way::Out, &observed.tap, index(&observed.eth)),
    ];
    let mut plan = Vec::new();
    for (way, from, to) in ways {
        let filter = from.as_ref().map(|end| end.filter).unwrap_or_default();
        match filter {
            Filter::To(found) if Some(found) == to => continue,
            Filter::To(_) | Filter::Wrong => plan.push(Action::Unredirect(way)),
            Filter::Absent => {}
        }
        plan.push(Action::Redirect(way));
    }
    plan
}
