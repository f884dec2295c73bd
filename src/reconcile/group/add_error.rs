//! Why a VM on demand was not added or changed.
//! Out of scope: adding it ([`super::on_demand`]).

use super::choosing::Rollback;
use crate::store;

/// The reason why a VM was not added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// There is no group with this name, or it is being deleted.
    #[error("group not found")]
    NoGroup,
    /// The request is invalid, with one message per problem.
    #[error("invalid request: {}", .0.join("; "))]
    Invalid(Vec<String>),
    /// It conflicts with existing objects.
    #[error("{0}")]
    Conflict(String),
    /// The group has no addresses.
    #[error(transparent)]
    Group(#[from] super::Error),
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl From<AddError> for Rollback<AddError> {
    fn from(error: AddError) -> Self {
        Self::Failed(error)
    }
}
