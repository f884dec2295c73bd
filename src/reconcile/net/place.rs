//! A VM's location on the host: its run directory with its record, its namespace, and the namespace's handle for `ip netns`.
//! Out of scope: the content of the namespace.

use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};

use super::super::Conflict;
use super::files;
use crate::host::error::exists_is_done;
use crate::host::link::{Change, State};
use crate::host::netlink::Handle;
use crate::host::netns::{self, Netns};
use crate::host::{Error, Kind, fs, link};
use crate::owner::{self, Label, RunDir, VmNames};
use serde::{Deserialize, Serialize};

/// The namespace at the VM's path.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub enum NetnsSeen {
    /// No namespace; possibly an empty file that a crash left.
    #[default]
    Absent,
    /// A namespace, and the alias of its `lo`.
    Present(Option<String>),
}

/// The owner and the directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct VmPaths<'a> {
    pub label: &'a Label,
    pub run_dir: &'a Path,
}

/// The parts of the namespace that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub netns: bool,
    pub handle: bool,
}

/// The parts that exist.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub record: Option<String>,
    pub dir: bool,
    pub handle: Option<PathBuf>,
}

/// The VM's namespace, entered once per run.
#[derive(Clone)]
pub(super) struct EnteredNetns {
    pub netns: Netns,
    pub netlink: Handle,
}

/// Keeps a netlink socket in a namespace for a run.
#[derive(Default)]
pub(super) struct NetnsSession(Mutex<Option<EnteredNetns>>);

impl VmPaths<'_> {
    pub fn names(&self) -> VmNames {
        owner::names_of(self.label)
    }

    pub fn netns(&self) -> PathBuf {
        self.run_dir().netns(&self.names())
    }

    pub fn handle(&self) -> PathBuf {
        owner::ip_netns_path(&self.names().netns)
    }

    pub fn vm_dir(&self) -> PathBuf {
        self.run_dir().vm_dir(owner::uid_of(self.label))
    }

    fn run_dir(&self) -> RunDir {
        RunDir(self.run_dir.to_owned())
    }

    /// Returns what is missing of the namespace; a conflict if a foreign namespace has its path.
    pub fn missing(
        &self,
        netns: &NetnsSeen,
        handle: Option<&PathBuf>,
    ) -> Result<Missing, Conflict> {
        let netns_missing = match netns {
            NetnsSeen::Absent => true,
            NetnsSeen::Present(alias) => {
                let path = self.netns();
                if self.label.claim((), alias.as_deref()).is_none() {
                    return Err(Conflict {
                        object: format!("namespace {}", path.display()),
                        remedy: format!("move it away, or unmount it: umount {}", path.display()),
                    });
                }
                false
            }
        };
        let handle_missing = match handle {
            None => true,
            Some(target) if *target == self.netns() => false,
            Some(target) => {
                let handle = self.handle();
                // `ip netns del` would follow a symlink and remove the namespace that it leads to.
                let remedy = match *target == handle {
                    true => format!("remove it: ip netns del {}", self.names().netns),
                    false => format!("remove the link: rm {}", handle.display()),
                };
                let thing = handle.display().to_string();
                return Err(Conflict {
                    object: thing,
                    remedy,
                });
            }
        };
        Ok(Missing {
            netns: netns_missing,
            handle: handle_missing,
        })
    }

    pub fn observe(&self) -> Result<Seen, Error> {
        let files::Seen { record, dir } = files::observe(&self.vm_dir())?;
        Ok(Seen {
            record,
            dir,
            handle: read_link(&self.handle())?,
        })
    }

    /// Opens the namespace at the VM's path, whoever its owner is.
    pub fn open(&self) -> Result<Option<Netns>, Error> {
        match Netns::open(&self.netns()) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind == Kind::Absent => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Enters the namespace at the VM's path if the alias of its `lo` is the VM's label. A foreign namespace is present and not entered.
    pub async fn observe_netns(
        &self,
        session: &NetnsSession,
    ) -> Result<(NetnsSeen, Option<EnteredNetns>), Error> {
        let Some(netns) = self.open()? else {
            return Ok((NetnsSeen::Absent, None));
        };
        let entered = session.enter(netns).await?;
        let lo = link::get(&entered.netlink, "lo").await?;
        let alias = lo.and_then(|lo| lo.alias);
        let ours = self.label.claim((), alias.as_deref()).is_some();
        Ok((NetnsSeen::Present(alias), ours.then_some(entered)))
    }

    /// Creates a namespace with its label on `lo`, which is up. `settle` runs before the namespace is visible to others. `None`: a
    /// namespace exists already.
    pub async fn create_netns(
        &self,
        configure: fn(&Netns) -> Result<(), Error>,
    ) -> Result<Option<Netns>, Error> {
        let label = self.label.to_string();
        let created = netns::create(&self.netns(), move |netns| {
            configure(netns)?;
            let attributes = Change {
                alias: Some(label),
                state: Some(State::Up),
                ..Change::default()
            };
            link::set_blocking("lo", &attributes)
        })
        .await;
        match created {
            Ok(netns) => Ok(Some(netns)),
            Err(error) if error.kind == Kind::Exists => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn link_handle(&self) -> Result<(), Error> {
        let handle = self.handle();
        if let Some(dir) = handle.parent() {
            fs::make_dir(dir, 0o755)?;
        }
        let created = std::os::unix::fs::symlink(self.netns(), &handle)
            .map_err(|e| Error::io("create", handle.display().to_string(), e));
        exists_is_done(created)
    }

    /// Removes the run directory, and the file below the mount of a namespace.
    pub fn remove_dir(&self) -> Result<(), Error> {
        files::remove_empty_file(&self.netns())?;
        files::remove(&self.vm_dir())
    }
}

impl NetnsSession {
    /// Enters a namespace and keeps it open. If it is entered already, nothing changes.
    pub async fn enter(&self, netns: Netns) -> Result<EnteredNetns, Error> {
        let previous = self.entered().take();
        let entered = match previous {
            Some(current) if current.netns.inode()? == netns.inode()? => current,
            _ => EnteredNetns {
                netlink: netns.netlink()?,
                netns,
            },
        };
        *self.entered() = Some(entered.clone());
        Ok(entered)
    }

    /// `Absent` if no namespace was entered.
    pub fn inside(&self) -> Result<EnteredNetns, Error> {
        let not_found = std::io::Error::from_raw_os_error(libc::ENOENT);
        let entered = self.entered().clone();
        entered.ok_or_else(|| Error::io("enter", "the VM's namespace", not_found))
    }

    /// Closes the namespace: a socket in it would keep it alive.
    pub fn close(&self) {
        self.entered().take();
    }

    fn entered(&self) -> MutexGuard<'_, Option<EnteredNetns>> {
        self.0.lock()
    }
}

fn read_link(path: &Path) -> Result<Option<PathBuf>, Error> {
    let fail = |e| Error::io("read", path.display().to_string(), e);
    match std::fs::read_link(path) {
        Ok(target) => Ok(Some(target)),
        Err(e) if Kind::of(&e) == Kind::Absent => Ok(None),
        // Not a symlink but a mount point or a file. It is reported as pointing to itself.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(Some(path.to_owned())),
        Err(e) => Err(fail(e)),
    }
}
