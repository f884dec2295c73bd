//! Permission to start VMMs that may run only under a condition outside this host: the contact of this node with its fleet.
//! Out of scope: the condition.

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::api::fleet::HOLD_AFTER_BOOT;
use crate::api::meta::Uid;

/// Why a VMM needs the permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It needs none.
    No,
    /// Its fleet may replace the VM, or has stopped it.
    Replaceable,
    /// The host was booted a short time ago, and the fleet may have moved the VM before.
    Booted,
}

/// The need of the VMM of a VM, by what is stored of the VM now.
pub type Needs = Arc<dyn Fn(Uid) -> Need + Send + Sync>;

/// Whether the VMM of a VM may be started now; otherwise the reason, a sentence.
pub type Check = Arc<dyn Fn(Uid) -> Result<(), String> + Send + Sync>;

/// The check. A VMM that needs the permission is not started without one.
#[derive(Default)]
pub struct StartPermission {
    needs: RwLock<Option<Needs>>,
    check: RwLock<Option<Check>>,
}

impl StartPermission {
    /// Sets which VMMs need the permission; before, none does.
    pub fn set_needs(&self, needs: Needs) {
        *self.needs.write() = Some(needs);
    }

    /// Replaces the check.
    pub fn set(&self, check: Option<Check>) {
        *self.check.write() = check;
    }

    /// Asks for the permission, directly before the start. What was decided before the disk was made may be minutes old.
    ///
    /// # Errors
    /// Why the VMM is not started, a sentence.
    pub fn check(&self, vm: Uid) -> Result<(), String> {
        let needs = self.needs.read().clone();
        let need = needs.map_or(Need::No, |needs| needs(vm));
        let check = self.check.read().clone();
        match (need, check) {
            (Need::No, _) => Ok(()),
            (Need::Replaceable | Need::Booted, Some(check)) => check(vm),
            (Need::Replaceable, None) => Err(
                "it is of a fleet that may replace it, and the settings file has no `fleet:`"
                    .to_owned(),
            ),
            (Need::Booted, None) => Err(format!(
                "it may have been moved while this host was off: it is started {} s after the boot",
                HOLD_AFTER_BOOT.as_secs()
            )),
        }
    }
}

impl fmt::Debug for StartPermission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StartPermission")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_need_is_that_of_the_time_of_the_start() {
        let permission = StartPermission::default();
        let vm = Uid(uuid::Uuid::from_u128(1));
        assert_eq!(permission.check(vm), Ok(()), "no VM is of a fleet");
        let need = Arc::new(RwLock::new(Need::No));
        let stored = Arc::clone(&need);
        permission.set_needs(Arc::new(move |_| *stored.read()));
        let checks: [Option<Check>; 3] = [
            None,
            Some(Arc::new(|_| Ok(()))),
            Some(Arc::new(|_| Err("no contact".to_owned()))),
        ];
        let may_start = [
            (Need::No, [true, true, true]),
            (Need::Replaceable, [false, true, false]),
            (Need::Booted, [false, true, false]),
        ];
        for (found, expected) in may_start {
            *need.write() = found;
            let may = checks.clone().map(|check| {
                permission.set(check);
                permission.check(vm).is_ok()
            });
            assert_eq!(may, expected, "{found:?}");
        }
    }
}
