//! Whether what is to replace VMs could run: asked before the VMs that stand are taken down.
//! Out of scope: finding out (`processes`), which VMs are to be replaced (`plan`).

use std::collections::{BTreeMap, HashMap};

use super::plan::{Action, Desired};
use crate::api::condition::Reason;
use crate::api::meta::{Name, Uid};
use crate::api::vm::{Vm, VmSpec};
use crate::store::World;

/// What has been found out, in one run: by VM, of what it is to be replaced by.
#[derive(Debug, Default)]
pub struct Fitness {
    known: HashMap<Uid, Judgement>,
}

#[derive(Debug)]
struct Judgement {
    wanted: VmSpec,
    found: Result<(), String>,
}

/// Could this host run that in the place of a VM?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The one that stands.
    pub vm: Vm,
    /// What it is to be replaced by.
    pub wanted: VmSpec,
}

impl Fitness {
    /// Takes an answer in: nothing is in the way, or what is, in words.
    pub fn note(&mut self, question: Question, found: Result<(), String>) {
        let wanted = question.wanted;
        let judgement = Judgement { wanted, found };
        self.known.insert(question.vm.meta.uid, judgement);
    }

    /// What must be known before this plan may be carried out.
    pub fn asks(&self, world: &World, desired: &Desired, plan: &[Action]) -> Option<Question> {
        let going = plan.iter().filter_map(|action| match action {
            Action::Delete { uid } => world.vm(*uid),
            Action::Create { .. }
            | Action::Update { .. }
            | Action::Release { .. }
            | Action::RemoveGroup => None,
        });
        going
            .filter_map(|vm| Some((vm, desired.spec(vm.index)?)))
            .find(|(vm, wanted)| self.of(vm.meta.uid, wanted).is_none())
            .map(|(vm, wanted)| Question {
                vm: vm.clone(),
                wanted: wanted.into_owned(),
            })
    }

    /// Why a VM cannot become that, if it cannot.
    pub fn unfit(&self, uid: Uid, wanted: &VmSpec) -> Option<&str> {
        self.of(uid, wanted)?
            .found
            .as_ref()
            .err()
            .map(String::as_str)
    }

    fn of(&self, uid: Uid, wanted: &VmSpec) -> Option<&Judgement> {
        self.known.get(&uid).filter(|known| known.wanted == *wanted)
    }
}

/// What keeps a group from what it wants, beside its VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// It has no addresses, and why.
    NoRange(String),
    /// VMs that go on as they are, and why each is not replaced.
    Unfit(BTreeMap<Name, String>),
}

impl Hindrance {
    /// One word.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoRange(_) => Reason::Conflict,
            Self::Unfit(_) => Reason::Invalid,
        }
    }

    /// For people.
    pub fn words(&self) -> String {
        match self {
            Self::NoRange(why) => why.clone(),
            Self::Unfit(held) => match held.first_key_value() {
                None => String::new(),
                Some((vm, why)) if held.len() == 1 => format!("{vm} goes on as it was: {why}"),
                Some((vm, why)) => {
                    let more = held.len() - 1;
                    format!("{vm} and {more} more go on as they were: {why}")
                }
            },
        }
    }

    /// Why this VM is not replaced, if it is one of those.
    pub fn of_vm(&self, name: &Name) -> Option<&str> {
        match self {
            Self::NoRange(_) => None,
            Self::Unfit(held) => held.get(name).map(String::as_str),
        }
    }
}
