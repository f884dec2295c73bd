//! Plans the lease of a VM. Pure.
//! Out of scope: which address is the next free one (the store).

use super::{Action, Desired, Observed, StoredLease};
use crate::api::network::NetworkSpec;

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let address = match (&desired.vm.spec.network, &observed.lease) {
        (_, StoredLease::Valid(_)) | (NetworkSpec::Cni(_), StoredLease::Absent) => None,
        // The plugins assign the address; until then there is none.
        (NetworkSpec::Cni(_), StoredLease::Outdated) if observed.has_net => None,
        (NetworkSpec::Cni(_), StoredLease::Outdated) => Some(Action::Release),
        (
            NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_),
            StoredLease::Outdated | StoredLease::Absent,
        ) => Some(Action::Assign),
    };
    let claim = match observed.unclaimed.is_empty() {
        true => None,
        false => Some(Action::Claim(observed.unclaimed.clone())),
    };
    let lacks_user = desired.needs_user && observed.user.is_none();
    // After the address: if no user is free, nothing is stored that is not claimed.
    match address.or(claim) {
        Some(action) => vec![action],
        None if lacks_user => vec![Action::AssignUser],
        None => Vec::new(),
    }
}
