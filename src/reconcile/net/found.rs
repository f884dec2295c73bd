//! Links by their names, asked for once between two looks.
//! Out of scope: what a look sees.
//!
//! # Why
//! A path in the making is changed ten times over three links. To act on the index that a name had is also to act on that
//! very link, whatever has the name by now: if it went, the kernel says so.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::host::link::{self, Link};
use crate::host::netlink::Handle;
use crate::host::{self, Error};

/// Names to indexes. Whoever uses it for links of several namespaces sees to it that their names differ.
#[derive(Default)]
pub(super) struct Found(Mutex<BTreeMap<String, u32>>);

impl Found {
    /// The index of the link of this name, if it passes `check` when it is seen.
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

    /// Something was made, taken away or looked at anew.
    pub fn forget(&self) {
        self.indexes().clear();
    }

    fn indexes(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The link of this name, which has to be there.
pub(super) async fn get(netlink: &Handle, name: &str) -> Result<Link, host::Error> {
    let gone = std::io::Error::from_raw_os_error(libc::ENODEV);
    let found = link::get(netlink, name).await?;
    found.ok_or_else(|| Error::io("find link", name, gone))
}
