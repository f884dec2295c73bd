//! Counts the requests that are forwarded to agents, per VM and per user.
//! Out of scope: forwarding ([`super::agent`]); why they are limited ([`super::limits`]).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::user::User;
use crate::api::meta::{Name, Timestamp};

/// All requests that are forwarded.
#[derive(Debug)]
pub(super) struct Agents {
    limit: usize,
    open: Mutex<Vec<(User, Name)>>,
    /// When a user last used the agent of a VM.
    used: Mutex<HashMap<Name, Timestamp>>,
}

/// The maximum number of VMs with a recorded last use.
const USED_LIMIT: usize = 16 << 10;

/// A request that is counted, until dropped.
#[derive(Debug)]
pub(super) struct AgentPermit {
    user: User,
    vm: Name,
    all: Arc<Agents>,
}

/// When users last used agents.
pub(super) struct Uses<'a>(MutexGuard<'a, HashMap<Name, Timestamp>>);

impl Uses<'_> {
    /// The last use of the agent of a VM that was created at `created`: another VM may have had its name.
    pub(super) fn last(&self, vm: &Name, created: Timestamp) -> Option<Timestamp> {
        self.0.get(vm).copied().filter(|at| *at >= created)
    }
}

impl Agents {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            open: Mutex::default(),
            used: Mutex::default(),
        }
    }

    /// Records that a user uses the agent of a VM now.
    pub(super) fn note_use(&self, vm: &Name, now: Timestamp) {
        let mut used = self.used.lock();
        // The VMs of the past are not told from those that exist; what is lost is a time in a list.
        if used.len() >= USED_LIMIT && !used.contains_key(vm) {
            used.clear();
        }
        used.insert(vm.clone(), now);
    }

    /// When users last used agents, for a list: nobody else can read or record it meanwhile.
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses(self.used.lock())
    }

    /// The number of requests to the agent of a VM.
    pub(super) fn open(&self, vm: &Name) -> usize {
        let open = self.open.lock();
        open.iter().filter(|(_, other)| other == vm).count()
    }

    /// Counts a request.
    ///
    /// # Errors
    /// A limit is reached; the message specifies which one.
    pub(super) fn acquire(self: &Arc<Self>, user: User, vm: &Name) -> Result<AgentPermit, String> {
        let mut open = self.open.lock();
        let count = |matches: &dyn Fn(&(User, Name)) -> bool| {
            open.iter().filter(|entry| matches(entry)).count()
        };
        let of_vm = count(&|(_, other)| other == vm);
        let of_user = count(&|(other, _)| *other == user);
        let of_others = count(&|(other, _)| *other != User::Privileged);
        let half = (self.limit / 2).max(1);
        let full = |what: &str, count: usize| {
            Err(format!(
                "{what} has {count} requests to agents, which is the limit"
            ))
        };
        match user {
            _ if of_vm >= half => return full(&format!("vm/{vm}"), of_vm),
            User::Of(_) | User::Remote(_) | User::Forwarded(_) if of_user >= half => {
                return full(&user.to_string(), of_user);
            }
            User::Of(_) | User::Remote(_) | User::Forwarded(_)
                if of_others >= self.limit - self.limit / 4 =>
            {
                return full("this host", of_others);
            }
            _ if open.len() >= self.limit => return full("this host", open.len()),
            _ => {}
        }
        open.push((user, vm.clone()));
        Ok(AgentPermit {
            user,
            vm: vm.clone(),
            all: Arc::clone(self),
        })
    }
}

impl Drop for AgentPermit {
    fn drop(&mut self) {
        let mut open = self.all.open.lock();
        let is_this = |(user, vm): &(User, Name)| *user == self.user && *vm == self.vm;
        if let Some(at) = open.iter().position(is_this) {
            open.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_vm_and_no_user_takes_up_all_requests_and_root_has_a_reserve() {
        let all = Arc::new(Agents::new(16));
        let name = |text: &str| text.parse::<Name>().unwrap();
        let fill = |user, vm: &str| -> Vec<AgentPermit> {
            std::iter::from_fn(|| all.acquire(user, &name(vm)).ok()).collect()
        };
        let first = fill(User::Of(1000), "a");
        assert_eq!(first.len(), 8, "half of all for a VM and for a user");
        let error = all.acquire(User::Privileged, &name("a")).unwrap_err();
        assert_eq!(error, "vm/a has 8 requests to agents, which is the limit");
        let error = all.acquire(User::Of(1000), &name("b")).unwrap_err();
        assert!(error.starts_with("user 1000 has 8"), "{error}");
        let second = fill(User::Of(1001), "b");
        assert_eq!(second.len(), 4, "three quarters for all users but root");
        assert_eq!(fill(User::Of(1002), "c").len(), 0);
        assert_eq!(fill(User::Privileged, "c").len(), 4);
        drop(first);
        assert_eq!(fill(User::Of(1000), "c").len(), 8);
        drop(second);
        assert!(all.open.lock().is_empty());
    }
}
