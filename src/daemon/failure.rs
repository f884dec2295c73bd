//! The error of a transaction, converted to a response.
//! Out of scope: the transactions.

use crate::store;
use crate::wire::Refusal;

/// Why a transaction was aborted.
pub(super) enum Failure {
    Refused(Refusal),
    Store(store::Error),
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refusal) => refusal,
            Failure::Store(error) => Self::Failed(error.to_string()),
        }
    }
}
