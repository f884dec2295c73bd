//! A VM's location on the host: its run directory with its record, its namespace, and the namespace's handle for `ip netns`.
//! Out of scope: the content of the namespace.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::Conflict;
use super::files;
use super::plan::NetnsSeen;
use crate::host::error::exists_is_done;
use crate::host::link::{Change, State};
use crate::host::netlink::Handle;
use crate::host::netns::{self, Netns};
use crate::host::{Error, Kind, fs, link};
use crate::owner::{self, Label, RunDir, VmNames};

/// The owner and the directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub label: &'a Label,
    pub run_dir: &'a Path,
}

/// The parts of the namespace that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gaps {
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
pub(super) struct Room {
    pub netns: Netns,
    pub netlink: Handle,
}

/// Keeps a netlink socket in a namespace for a run.
#[derive(Default)]
pub(super) struct Door(Mutex<Option<Room>>);

impl Place<'_> {
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
    pub fn gaps(&self, netns: &NetnsSeen, handle: Option<&PathBuf>) -> Result<Gaps, Conflict> {
        let absent = match netns {
            NetnsSeen::Absent => true,
            NetnsSeen::Present(alias) => {
                let path = self.netns();
                if self.label.claim((), alias.as_deref()).is_none() {
                    return Err(Conflict {
                        thing: format!("namespace {}", path.display()),
                        remedy: format!("move it away, or unmount it: umount {}", path.display()),
                    });
                }
                false
            }
        };
        let unseen = match handle {
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
                return Err(Conflict { thing, remedy });
            }
        };
        Ok(Gaps {
            netns: absent,
            handle: unseen,
        })
    }

    pub fn look(&self) -> Result<Seen, Error> {
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

    /// Creates a namespace with its label on `lo`, which is up. `settle` runs before the namespace is visible to others. `None`: a
    /// namespace exists already.
    pub async fn create_netns(
        &self,
        settle: fn(&Netns) -> Result<(), Error>,
    ) -> Result<Option<Netns>, Error> {
        let label = self.label.to_string();
        let made = netns::create(&self.netns(), move |netns| {
            settle(netns)?;
            let labelled = Change {
                alias: Some(label),
                state: Some(State::Up),
                ..Change::default()
            };
            link::set_here("lo", &labelled)
        })
        .await;
        match made {
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
        let made = std::os::unix::fs::symlink(self.netns(), &handle)
            .map_err(|e| Error::io("create", handle.display().to_string(), e));
        exists_is_done(made)
    }

    /// Removes the run directory, and the file below the mount of a namespace.
    pub fn remove_dir(&self) -> Result<(), Error> {
        files::remove_vacant(&self.netns())?;
        files::remove(&self.vm_dir())
    }
}

impl Door {
    /// Enters a namespace and keeps it open. If it is entered already, nothing changes.
    pub async fn enter(&self, netns: Netns) -> Result<Room, Error> {
        let known = self.room().take();
        let room = match known {
            Some(room) if room.netns.inode()? == netns.inode()? => room,
            _ => Room {
                netlink: netns.netlink()?,
                netns,
            },
        };
        *self.room() = Some(room.clone());
        Ok(room)
    }

    /// `Absent` if no namespace was entered.
    pub fn inside(&self) -> Result<Room, Error> {
        let gone = std::io::Error::from_raw_os_error(libc::ENOENT);
        let room = self.room().clone();
        room.ok_or_else(|| Error::io("enter", "the VM's namespace", gone))
    }

    /// Closes the namespace: a socket in it would keep it alive.
    pub fn leave(&self) {
        self.room().take();
    }

    fn room(&self) -> MutexGuard<'_, Option<Room>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
