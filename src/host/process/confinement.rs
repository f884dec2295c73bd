//! The confinement of a process, as a caller specifies it.
//! Out of scope: applying it (`confine`, `jail`).

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::mounts::IdMap;
use crate::host::named::Named;

/// The confinement of a process.
#[derive(Clone, Copy, Debug)]
pub struct Confine<'a> {
    /// Its user, and its group of the same number.
    pub user: u32,
    /// Its working directory, the only one where it may create files. The caller creates it and makes the user its owner.
    pub home: &'a Path,
    /// Further files and block devices that it sees, at the same paths as on the host.
    pub reach: &'a [Reach<'a>],
    /// Whether it has `/dev/kvm`.
    pub kvm: bool,
    /// The control group (version 2) that it joins.
    pub cgroup: Option<&'a Path>,
    /// The jailer that continues the confinement. `None`: the process becomes its user and executes the program.
    pub jail: Option<Jail<'a>>,
}

/// A file, directory or block device of the host that a confined process sees.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    /// Its path.
    pub path: &'a Path,
    /// Whether it is mounted writable. The caller gives the user access to it, except to block devices.
    pub writable: bool,
    /// The opened file, if an unprivileged user specified the path: it is mounted from this descriptor and the path is not resolved again.
    pub named: Option<&'a Named>,
    /// The ID mapping of the mount; only with `named`.
    pub map: Option<IdMap>,
}

/// A process in a jail of Firecracker's jailer: [`super::Spawn::argv`] is the command line of the jailer.
#[derive(Clone, Copy, Debug)]
pub struct Jail<'a> {
    /// The directory that becomes its root. The path has a meaning to the jailer only and does not exist on the host.
    pub root: &'a Path,
    /// The jailer.
    pub tool: &'a Named,
    /// The program that it copies into the jail.
    pub program: &'a Named,
    /// The path of the home in the jail.
    pub home: &'a Path,
    /// The standard error of the process.
    pub errors: BorrowedFd<'a>,
}
