//! The Lease stage: the address of a VM and the user of its VMM. Its actual state is the store and the claims of this daemon.
//! Out of scope: the range of the group ([`super::group`]); addresses that CNI plugins assign (`net/cni`).

mod plan;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::group::{Claim, Claims, of_address};
use super::{Conflict, InStore, Reconcile};
use crate::api::condition::Reason;
use crate::api::lease::Lease;
use crate::api::meta::Timestamp;
use crate::api::vm::Vm;
use crate::api::vmm_ids::IdRange;
use crate::store::{self, LeaseError, Txn, World};

/// The reconciler of the stage.
pub struct Leases<'a> {
    /// The claims of this daemon on the host. `None`: claims are not checked.
    pub claims: Option<&'a Claims>,
    /// The users for VMMs, and the first one that this instance assigns.
    pub users: (&'a IdRange, u32),
    /// Whether a user runs a process on this host: another daemon may assign users of the same range.
    pub user_lives: fn(u32) -> bool,
    /// Users that the guard of a fleet may kill: their VMs were lost with an earlier database of this boot.
    pub guarded_users: &'a BTreeSet<u32>,
    /// The time of new leases.
    pub now: Timestamp,
}

/// The desired state of one VM's lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The VM.
    pub vm: Vm,
    /// Its VMM runs as a user of its own.
    pub needs_user: bool,
}

/// The observed state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The stored lease.
    pub lease: StoredLease,
    /// The Net stage is acquired: the VM may exist on the host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_net: bool,
    /// What must be claimed on the host before the address is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unclaimed: Vec<Claim>,
    /// The user of its VMM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
}

/// The stored lease of a VM's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoredLease {
    /// None.
    Absent,
    /// One that the group does not assign any more.
    Outdated,
    /// The VM's address.
    Valid(Box<Lease>),
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Removes an outdated lease: the plugins assign another address.
    Release,
    /// Leases the next free address.
    Assign,
    /// Claims the address on the host. Not possible within a transaction: see [`Error::Unclaimed`].
    Claim(Vec<Claim>),
    /// Assigns a user to the VMM.
    AssignUser,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release => f.write_str("release the outdated lease"),
            Self::Assign => f.write_str("lease an address"),
            Self::Claim(claims) => {
                let claims: Vec<String> = claims.iter().map(ToString::to_string).collect();
                write!(f, "claim {} on the host", claims.join(", "))
            }
            Self::AssignUser => f.write_str("assign a user to the VMM"),
        }
    }
}

/// Why the stage does not converge. For [`Unclaimed`](Error::Unclaimed) and [`Store`](Error::Store) the caller rolls the transaction back;
/// for the others it stores the condition in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address can be leased.
    #[error(transparent)]
    Address(LeaseError),
    /// These claims must be made first.
    #[error("the address is not claimed on the host yet")]
    Unclaimed(Vec<Claim>),
    /// All users are assigned, or run processes.
    #[error("no free user for its VMM in {0} (--vmm-ids)")]
    NoUser(IdRange),
    /// The plan does not become empty.
    #[error(transparent)]
    Loop(#[from] super::Error),
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The reason for the condition of the stage.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoUser(_)
            | Self::Address(
                LeaseError::NoBlock(_)
                | LeaseError::NoAddress(_)
                | LeaseError::NotListed(_)
                | LeaseError::ListExhausted { .. },
            ) => Reason::RangeExhausted,
            Self::Address(LeaseError::Taken(..) | LeaseError::NoPool | LeaseError::Store(_))
            | Self::Unclaimed(_)
            | Self::Store(_) => Reason::Waiting,
            Self::Loop(_) => Reason::NotConverging,
        }
    }
}

impl StoredLease {
    /// The VM's address.
    pub fn valid(self) -> Option<Lease> {
        match self {
            Self::Valid(lease) => Some(*lease),
            Self::Absent | Self::Outdated => None,
        }
    }
}

impl Reconcile for Leases<'_> {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        Ok(plan::plan(desired, observed))
    }
}

impl InStore for Leases<'_> {
    type Error = Error;

    fn observe(&self, world: &World, desired: &Desired) -> Observed {
        let vm = &desired.vm;
        let lease = match (world.valid_lease(vm), world.lease(&vm.meta.name)) {
            (Some(valid), _) => StoredLease::Valid(Box::new(valid.clone())),
            (None, Some(_)) => StoredLease::Outdated,
            (None, None) => StoredLease::Absent,
        };
        // A VM that exists keeps its address, and its rules are maintained, whatever other daemons claim.
        let has_net = world.has_net(vm);
        let unclaimed = match &lease {
            StoredLease::Valid(lease) if !has_net => self.claims.map_or(Vec::new(), |claims| {
                let required = of_address(&lease.address).into_iter();
                claims.lacking(required.collect())
            }),
            StoredLease::Valid(_) | StoredLease::Outdated | StoredLease::Absent => Vec::new(),
        };
        Observed {
            lease,
            has_net,
            unclaimed,
            user: world.vmm_id(vm.meta.uid),
        }
    }

    fn act(&self, txn: &mut Txn<'_>, desired: &Desired, action: &Action) -> Result<(), Error> {
        let vm = &desired.vm;
        match action {
            Action::Release => Ok(txn.remove_lease(&vm.meta.name)?),
            Action::Assign => match txn.lease(vm, self.now) {
                Ok(_) => Ok(()),
                Err(LeaseError::Store(error)) => Err(error.into()),
                Err(error) => Err(Error::Address(error)),
            },
            Action::Claim(missing) => Err(Error::Unclaimed(missing.clone())),
            Action::AssignUser => {
                let (range, start) = self.users;
                let is_used = |user| (self.user_lives)(user) || self.guarded_users.contains(&user);
                let assigned = txn.assign_vmm_id(vm.meta.uid, range, start, is_used)?;
                assigned.map(drop).ok_or(Error::NoUser(*range))
            }
        }
    }
}
