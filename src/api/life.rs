//! How a VM's VMM is started and stopped.
//! Not here: doing it.

use serde::{Deserialize, Serialize};

/// From its start to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {}

impl Life {
    /// Nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
