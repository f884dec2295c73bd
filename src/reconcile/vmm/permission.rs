//! Permission to start VMMs that may run only under a condition outside this host: the contact of this node with its fleet.
//! Out of scope: the condition.

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::api::meta::Uid;

/// Whether the VMM of a VM may be started now; otherwise the reason, a sentence.
pub type Check = Arc<dyn Fn(Uid) -> Result<(), String> + Send + Sync>;

/// The check; without one, no VMM that needs the permission is started.
#[derive(Default)]
pub struct StartPermission(RwLock<Option<Check>>);

impl StartPermission {
    /// Replaces the check.
    pub fn set(&self, check: Option<Check>) {
        *self.0.write() = check;
    }

    /// Asks for the permission, directly before the start.
    ///
    /// # Errors
    /// Why the VMM is not started, a sentence.
    pub fn check(&self, vm: Uid) -> Result<(), String> {
        let check = self.0.read().clone();
        match check {
            Some(check) => check(vm),
            None => Err(
                "it is of a fleet that may replace it, and the settings file has no `fleet:`"
                    .to_owned(),
            ),
        }
    }
}

impl fmt::Debug for StartPermission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StartPermission")
    }
}
