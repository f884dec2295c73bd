//! Caches the indexes of links by name between two observations.
//! Out of scope: what an observation reads.
//!
//! # Why
//! Creating a data path takes ten changes of three links. An action on the cached index also affects exactly the link that was observed,
//! whatever link has the name now: if the link was removed, the kernel returns an error.

use std::collections::BTreeMap;

use parking_lot::{Mutex, MutexGuard};

use crate::host::link::{self, Link};
use crate::host::netlink::Handle;
use crate::host::{self, Error};

/// Names to indexes. The names must differ if links of several namespaces are cached.
#[derive(Default)]
pub(super) struct LinkIndexes(Mutex<BTreeMap<String, u32>>);

impl LinkIndexes {
    /// Returns the index of the link of this name. A link that is not cached must pass `check`.
    pub async fn index(
        &self,
        netlink: &Handle,
        name: &str,
        check: impl FnOnce(&Link) -> Result<(), Error>,
    ) -> Result<u32, Error> {
        if let Some(index) = self.indexes().get(name) {
            return Ok(*index);
        }
        let found = get(netlink, name).await?;
        check(&found)?;
        self.indexes().insert(name.to_owned(), found.index);
        Ok(found.index)
    }

    /// Clears the cache, after a change or before an observation.
    pub fn clear(&self) {
        self.indexes().clear();
    }

    fn indexes(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.0.lock()
    }
}

/// Returns the link of this name, which must exist.
pub(super) async fn get(netlink: &Handle, name: &str) -> Result<Link, host::Error> {
    let not_found = std::io::Error::from_raw_os_error(libc::ENODEV);
    let found = link::get(netlink, name).await?;
    found.ok_or_else(|| Error::io("find link", name, not_found))
}
