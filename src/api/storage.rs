//! What disks a VM is to have.
//! Not here: making them.

use serde::{Deserialize, Serialize};

/// A VM's disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {}

impl Storage {
    /// Nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
