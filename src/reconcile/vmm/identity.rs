//! Determines the owner of a process from what only root can have set up.
//! Out of scope: reading it ([`crate::host::process::Origin`]); the process on record, which belongs to the VM in any case.
//!
//! # In which order
//! 1. The labels on the root file system that the process was started in: they name daemon and VM.
//! 2. Its control group beside the daemon's own: it names the VM.
//! 3. Its user, where that is the VM's and no other VM's.
//! 4. Its environment, for a process that an earlier version has started, which left no labels: only together with a user out of the
//!    range that we assign, and only if nothing above contradicts it.
//!
//! A process of a user that we give to no VM is nobody's: somebody may have entered a VMM's namespaces. A process of root is nobody's unless its record names it: a shell in which somebody has exported our variables is not a VMM.

use std::collections::HashMap;

use super::LABEL_VAR;
use crate::api::meta::Uid;
use crate::api::vmm_ids::IdRange;
use crate::host::cgroup::Member;
use crate::host::process::{Origin, Root};
use crate::owner::{self, Label};

/// Which VM has which user, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Users {
    /// Out of which they are given.
    pub(super) range: IdRange,
    /// By user.
    pub(super) of: HashMap<u32, Uid>,
}

impl Users {
    /// Whether VMMs are given this user.
    pub(super) fn are_given(&self, user: u32) -> bool {
        self.range.contains(user) || self.of.contains_key(&user)
    }
}

/// What identifies a process of one user who is not root.
pub(super) struct Evidence {
    /// Its user.
    pub(super) user: u32,
    /// The label on its root file system, if there is one.
    pub(super) marked: Option<Label>,
    /// Whether an earlier version has made its root file system.
    pub(super) unmarked: bool,
    /// Its control group.
    pub(super) group: Member,
    /// The label in its environment, if there is one.
    pub(super) told: Option<Label>,
}

/// The owner of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Of the VM that this label names.
    Of(Label),
    /// Of this VM of ours, whose name is not known.
    OfUid(Uid),
    /// Nobody's, as far as can be seen.
    Unknown,
}

impl Evidence {
    /// `told`: reads the environment, where it is needed.
    pub(super) fn of(
        origin: &Origin,
        group: impl Fn(&str) -> Member,
        told: impl Fn(u32) -> Option<String>,
    ) -> Self {
        let label = |text: &str| text.parse::<Label>().ok();
        let marked = origin.root.mark(LABEL_VAR).and_then(label);
        let unmarked = origin.root == Root::Unmarked;
        let told = match (&marked, unmarked) {
            (None, true) => told(origin.identity.pid).as_deref().and_then(label),
            _ => None,
        };
        Self {
            user: origin.user,
            marked,
            unmarked,
            group: origin.cgroup.as_deref().map_or(Member::Elsewhere, group),
            told,
        }
    }

    pub(super) fn owner(self, users: &Users) -> Owner {
        if !users.are_given(self.user) {
            return Owner::Unknown;
        }
        if let Some(label) = self.marked {
            return Owner::Of(label);
        }
        match self.group {
            Member::Ours(name) => {
                if let Ok(uid) = name.parse() {
                    return match self.told {
                        Some(told) if owner::uid_of(&told) == uid => Owner::Of(told),
                        Some(_) | None => Owner::OfUid(uid),
                    };
                }
            }
            Member::Another => return Owner::Unknown,
            Member::Elsewhere => {}
        }
        let known = users.of.get(&self.user);
        match (known, self.told.filter(|_| self.unmarked)) {
            (Some(uid), Some(told)) if owner::uid_of(&told) == *uid => Owner::Of(told),
            (Some(uid), _) => Owner::OfUid(*uid),
            (None, Some(told)) => Owner::Of(told),
            (None, _) => Owner::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u32 = 2_013_265_920;
    const B: u32 = 2_013_265_921;

    fn label(text: &str) -> Label {
        text.parse().unwrap()
    }

    fn vm(digit: char) -> (Label, Uid) {
        let uid = "00000000-0000-4000-8000-000000000000".replace('0', &digit.to_string());
        let label = label(&format!("slice/abcde/vm/vm-{digit}@{uid}"));
        let uid = owner::uid_of(&label);
        (label, uid)
    }

    /// Every source of identity, and every way in which a VMM that a guest has taken over may lie.
    #[test]
    fn a_process_is_whose_root_has_made_it_whatever_it_says() {
        let ((a, a_uid), (b, b_uid), (c, c_uid)) = (vm('1'), vm('2'), vm('3'));
        let theirs = label("slice/zzzzz/vm/other@44444444-4444-4444-8444-444444444444");
        let ours = |uid: Uid| Member::Ours(uid.to_string());
        let known = Users {
            range: IdRange::default(),
            of: HashMap::from([(A, a_uid), (B, b_uid)]),
        };
        let lost = Users::default();
        let nothing = || Member::Elsewhere;
        // What is seen: user, marks, made by an earlier version, group, environment. What is known. Whose it is.
        let cases = [
            (
                "marks",
                (A, Some(&a), false, nothing(), None),
                &lost,
                Owner::Of(a.clone()),
            ),
            (
                "marks against the environment",
                (A, Some(&a), false, nothing(), Some(&b)),
                &known,
                Owner::Of(a.clone()),
            ),
            (
                "marks against a group",
                (A, Some(&a), false, Member::Another, None),
                &known,
                Owner::Of(a.clone()),
            ),
            (
                "another daemon's marks",
                (A, Some(&theirs), false, nothing(), Some(&a)),
                &known,
                Owner::Of(theirs.clone()),
            ),
            (
                "another daemon's marks, nothing known",
                (C, Some(&theirs), false, nothing(), Some(&a)),
                &lost,
                Owner::Of(theirs.clone()),
            ),
            (
                "marks, entered by somebody",
                (1000, Some(&a), false, nothing(), Some(&a)),
                &known,
                Owner::Unknown,
            ),
            (
                "a group",
                (C, None, false, ours(a_uid), None),
                &lost,
                Owner::OfUid(a_uid),
            ),
            (
                "a group against the environment",
                (C, None, true, ours(a_uid), Some(&b)),
                &known,
                Owner::OfUid(a_uid),
            ),
            (
                "a group and the environment",
                (C, None, true, ours(a_uid), Some(&a)),
                &lost,
                Owner::Of(a.clone()),
            ),
            (
                "a group of another daemon",
                (C, None, true, Member::Another, Some(&a)),
                &lost,
                Owner::Unknown,
            ),
            (
                "a known user in new namespaces",
                (B, None, false, nothing(), None),
                &known,
                Owner::OfUid(b_uid),
            ),
            (
                "a known user that claims another VM",
                (B, None, true, nothing(), Some(&a)),
                &known,
                Owner::OfUid(b_uid),
            ),
            (
                "a known user that claims a VM that is none",
                (B, None, true, nothing(), Some(&c)),
                &known,
                Owner::OfUid(b_uid),
            ),
            (
                "a known user that tells the truth",
                (A, None, true, nothing(), Some(&a)),
                &known,
                Owner::Of(a.clone()),
            ),
            (
                "an earlier version's, nothing known",
                (C, None, true, nothing(), Some(&c)),
                &lost,
                Owner::Of(c.clone()),
            ),
            (
                "the same words without our root",
                (C, None, false, nothing(), Some(&c)),
                &lost,
                Owner::Unknown,
            ),
            (
                "a stranger with our words",
                (1000, None, false, nothing(), Some(&a)),
                &known,
                Owner::Unknown,
            ),
            (
                "a stranger in a root called like ours",
                (1000, None, true, nothing(), Some(&a)),
                &known,
                Owner::Unknown,
            ),
            (
                "silence",
                (C, None, true, nothing(), None),
                &lost,
                Owner::Unknown,
            ),
        ];
        for (what, (user, marked, unmarked, group, told), users, expected) in cases {
            let evidence = Evidence {
                user,
                marked: marked.cloned(),
                unmarked,
                group,
                told: told.cloned(),
            };
            assert_eq!(evidence.owner(users), expected, "{what}");
        }
        assert_ne!(c_uid, a_uid);
    }

    /// Given, but not known.
    const C: u32 = 2_013_265_999;
}
