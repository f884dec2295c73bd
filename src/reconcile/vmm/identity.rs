//! Determines the owner of a process from properties that only root can set.
//! Out of scope: reading them ([`crate::host::process::Origin`]); the recorded process, which always belongs to the VM.
//!
//! # Order of evaluation
//! 1. The labels on the root file system that the process was started in: they name daemon and VM.
//! 2. Its control group next to the daemon's: it names the VM.
//! 3. Its user, if that is assigned to this VM and to no other.
//! 4. Its environment, for a process that was started by an earlier version, which left no labels: only together with a user of the range
//!    that is assigned to VMs, and only if nothing above contradicts it.
//!
//! A process of any other user has no owner: a user of the host may have entered a VMM's namespaces. A process of root has no owner unless
//! the record names it: a shell with exported `SLICE_` variables is not a VMM.

use std::collections::HashMap;

use super::LABEL_VAR;
use crate::api::meta::Uid;
use crate::api::vmm_ids::IdRange;
use crate::host::cgroup::Member;
use crate::host::process::{Origin, Root};
use crate::owner::{self, Label};

/// The known assignments of users to VMs.
#[derive(Clone, Debug, Default)]
pub(super) struct Users {
    /// The range that users are assigned from.
    pub(super) range: IdRange,
    /// The VM of each user.
    pub(super) of: HashMap<u32, Uid>,
}

impl Users {
    /// Whether this user may be assigned to a VMM.
    pub(super) fn are_assignable(&self, user: u32) -> bool {
        self.range.contains(user) || self.of.contains_key(&user)
    }
}

/// The properties that identify a process of a user other than root.
pub(super) struct Evidence {
    /// Its user.
    pub(super) user: u32,
    /// The label on its root file system, if there is one.
    pub(super) label: Option<Label>,
    /// Whether its root file system was created by an earlier version.
    pub(super) has_legacy_root: bool,
    /// Its control group.
    pub(super) group: Member,
    /// The label in its environment, if there is one.
    pub(super) from_env: Option<Label>,
}

/// The owner of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The VM that this label names.
    Named(Label),
    /// A VM of this daemon with this UID and an unknown name.
    Uid(Uid),
    /// No owner can be determined.
    Unknown,
}

impl Evidence {
    /// `from_env` reads the label from the environment of a process; it is called only if required.
    pub(super) fn of(
        origin: &Origin,
        group: impl Fn(&str) -> Member,
        read_env_label: impl Fn(u32) -> Option<String>,
    ) -> Self {
        let label = |text: &str| text.parse::<Label>().ok();
        let marked = origin.root.label(LABEL_VAR).and_then(label);
        let unmarked = origin.root == Root::Unlabelled;
        let env_label = match (&marked, unmarked) {
            (None, true) => read_env_label(origin.identity.pid)
                .as_deref()
                .and_then(label),
            _ => None,
        };
        Self {
            user: origin.user,
            label: marked,
            has_legacy_root: unmarked,
            group: origin.cgroup.as_deref().map_or(Member::Unmanaged, group),
            from_env: env_label,
        }
    }

    pub(super) fn owner(self, users: &Users) -> Owner {
        if !users.are_assignable(self.user) {
            return Owner::Unknown;
        }
        if let Some(label) = self.label {
            return Owner::Named(label);
        }
        match self.group {
            Member::Managed(name) => {
                if let Ok(uid) = name.parse() {
                    return match self.from_env {
                        Some(from_env) if owner::uid_of(&from_env) == uid => Owner::Named(from_env),
                        Some(_) | None => Owner::Uid(uid),
                    };
                }
            }
            Member::OtherDaemon => return Owner::Unknown,
            Member::Unmanaged => {}
        }
        let known = users.of.get(&self.user);
        match (known, self.from_env.filter(|_| self.has_legacy_root)) {
            (Some(uid), Some(from_env)) if owner::uid_of(&from_env) == *uid => {
                Owner::Named(from_env)
            }
            (Some(uid), _) => Owner::Uid(*uid),
            (None, Some(from_env)) => Owner::Named(from_env),
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

    /// Every source of identity, and every way in which a compromised VMM can forge one.
    #[test]
    fn the_owner_of_a_process_is_determined_by_properties_that_only_root_can_set() {
        let ((a, a_uid), (b, b_uid), (c, c_uid)) = (vm('1'), vm('2'), vm('3'));
        let theirs = label("slice/zzzzz/vm/other@44444444-4444-4444-8444-444444444444");
        let managed = |uid: Uid| Member::Managed(uid.to_string());
        let known = Users {
            range: IdRange::default(),
            of: HashMap::from([(A, a_uid), (B, b_uid)]),
        };
        let none_known = Users::default();
        let unmanaged = || Member::Unmanaged;
        // Evidence: user, label, created by an earlier version, group, environment. Known users. Expected owner.
        let cases = [
            (
                "label",
                (A, Some(&a), false, unmanaged(), None),
                &none_known,
                Owner::Named(a.clone()),
            ),
            (
                "label contradicts the environment",
                (A, Some(&a), false, unmanaged(), Some(&b)),
                &known,
                Owner::Named(a.clone()),
            ),
            (
                "label contradicts a group",
                (A, Some(&a), false, Member::OtherDaemon, None),
                &known,
                Owner::Named(a.clone()),
            ),
            (
                "label of another daemon",
                (A, Some(&theirs), false, unmanaged(), Some(&a)),
                &known,
                Owner::Named(theirs.clone()),
            ),
            (
                "label of another daemon, nothing known",
                (C, Some(&theirs), false, unmanaged(), Some(&a)),
                &none_known,
                Owner::Named(theirs.clone()),
            ),
            (
                "label, namespaces entered by another user",
                (1000, Some(&a), false, unmanaged(), Some(&a)),
                &known,
                Owner::Unknown,
            ),
            (
                "a group",
                (C, None, false, managed(a_uid), None),
                &none_known,
                Owner::Uid(a_uid),
            ),
            (
                "a group contradicts the environment",
                (C, None, true, managed(a_uid), Some(&b)),
                &known,
                Owner::Uid(a_uid),
            ),
            (
                "a group and the environment",
                (C, None, true, managed(a_uid), Some(&a)),
                &none_known,
                Owner::Named(a.clone()),
            ),
            (
                "a group of another daemon",
                (C, None, true, Member::OtherDaemon, Some(&a)),
                &none_known,
                Owner::Unknown,
            ),
            (
                "a known user in new namespaces",
                (B, None, false, unmanaged(), None),
                &known,
                Owner::Uid(b_uid),
            ),
            (
                "a known user that claims another VM",
                (B, None, true, unmanaged(), Some(&a)),
                &known,
                Owner::Uid(b_uid),
            ),
            (
                "a known user that claims a VM that does not exist",
                (B, None, true, unmanaged(), Some(&c)),
                &known,
                Owner::Uid(b_uid),
            ),
            (
                "a known user with a correct label in the environment",
                (A, None, true, unmanaged(), Some(&a)),
                &known,
                Owner::Named(a.clone()),
            ),
            (
                "process of an earlier version, nothing known",
                (C, None, true, unmanaged(), Some(&c)),
                &none_known,
                Owner::Named(c.clone()),
            ),
            (
                "the same environment with another root file system",
                (C, None, false, unmanaged(), Some(&c)),
                &none_known,
                Owner::Unknown,
            ),
            (
                "another user with our label in the environment",
                (1000, None, false, unmanaged(), Some(&a)),
                &known,
                Owner::Unknown,
            ),
            (
                "another user in a root file system with our source",
                (1000, None, true, unmanaged(), Some(&a)),
                &known,
                Owner::Unknown,
            ),
            (
                "no label",
                (C, None, true, unmanaged(), None),
                &none_known,
                Owner::Unknown,
            ),
        ];
        for (what, (user, marked, unmarked, group, from_env), users, expected) in cases {
            let evidence = Evidence {
                user,
                label: marked.cloned(),
                has_legacy_root: unmarked,
                group,
                from_env: from_env.cloned(),
            };
            assert_eq!(evidence.owner(users), expected, "{what}");
        }
        assert_ne!(c_uid, a_uid);
    }

    /// In the range, but not known.
    const C: u32 = 2_013_265_999;
}
