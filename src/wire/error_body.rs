//! The body of an error of the REST API.
//! Out of scope: that of `/v1` ([`super::problem`]).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of an error.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct ErrorBody {
    /// What is wrong, one sentence for each cause.
    #[schema(example = "vm/sbox-x4k2p not found")]
    pub(super) error: String,
}
