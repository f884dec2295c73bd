//! A mount of an open file, created before the fork and attached to the file system of a process between fork and exec.
//! Out of scope: which files.
//!
//! # How
//! open_tree(2) with `OPEN_TREE_CLONE` creates a detached mount of an open file: the path is not resolved again. While the mount is
//! detached, mount_setattr(2) makes it read-only and, if the file belongs to another user than the process, ID-mapped: in this mount
//! only, the file belongs to the user of the process, and what this user writes belongs to the owner on disk. Owner, mode and ACL of the
//! file do not change. The mapping is that of a user namespace, which a short-lived child creates.
//!
//! # Limitations
//! Linux before 5.12, and file systems that cannot map IDs (overlayfs before 6.x, NFS, FUSE), return EINVAL. An ACL entry is used instead.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::spawn::check;

/// `include/uapi/linux/mount.h`; the libc crate uses another name on some targets.
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;

/// An ID mapping of one owner to one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// User and group on disk.
    pub owner: (u32, u32),
    /// The user, and group of the same number, that owns the file in the mount.
    pub shown_as: u32,
}

/// Creates a detached mount of an open file, with `MOUNT_ATTR_*` attributes.
pub(super) fn detached(
    file: BorrowedFd<'_>,
    attributes: u64,
    map: Option<IdMap>,
) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: the path is a C string, the descriptor is open.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, file.as_raw_fd(), c"".as_ptr(), flags) };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    check(fd)?;
    // SAFETY: the descriptor was just created and has no other owner.
    let mount = unsafe { OwnedFd::from_raw_fd(fd) };
    let namespace = map.map(user_namespace).transpose()?;
    // SAFETY: plain old data, for which all zeroes is a valid value.
    let mut set = unsafe { std::mem::zeroed::<libc::mount_attr>() };
    set.attr_set = attributes;
    set.propagation = libc::MS_PRIVATE;
    if let Some(namespace) = &namespace {
        set.attr_set |= libc::MOUNT_ATTR_IDMAP;
        set.userns_fd = namespace.as_raw_fd() as u64;
    }
    // SAFETY: the descriptor is open, the path is a C string, the struct is a local and its length is passed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const set,
            size_of::<libc::mount_attr>(),
        )
    };
    match done {
        0 => Ok(mount),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether an ID-mapped mount of the file can be created. `false`: the kernel or the file system does not support it.
pub fn can_be_mapped(file: BorrowedFd<'_>, map: IdMap) -> io::Result<bool> {
    match detached(file, 0, Some(map)) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Attaches a detached mount at a path.
///
/// # Safety
/// Makes only a system call; must be called between fork and exec.
pub(super) unsafe fn attach(mount: RawFd, to: &CStr) -> io::Result<()> {
    // SAFETY: both paths are C strings, the descriptor is open.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount,
            c"".as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Creates a user namespace with this mapping. A child creates it and waits until the parent has opened it: a namespace can only be opened
/// through a process in it (user_namespaces(7)).
fn user_namespace(map: IdMap) -> io::Result<OwnedFd> {
    let (mut ready, its_ready) = io::pipe()?;
    let (its_go, mut go) = io::pipe()?;
    let (its_ready_fd, its_go_fd) = (its_ready.as_raw_fd(), its_go.as_raw_fd());
    let (ours, our_go) = (ready.as_raw_fd(), go.as_raw_fd());
    // SAFETY: the child makes only system calls, on memory and descriptors from before the fork.
    let pid = unsafe {
        let pid = libc::fork();
        if pid == 0 {
            // Otherwise the child would wait for its own descriptor of the pipe.
            libc::close(ours);
            libc::close(our_go);
            let mut byte = [u8::from(libc::unshare(libc::CLONE_NEWUSER) != 0)];
            libc::write(its_ready_fd, byte.as_ptr().cast(), 1);
            libc::read(its_go_fd, byte.as_mut_ptr().cast(), 1);
            libc::_exit(0);
        }
        check(pid)?;
        pid
    };
    drop((its_ready, its_go));
    let made = (|| {
        let mut failed = [1];
        ready.read_exact(&mut failed)?;
        if failed != [0] {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let ((user, group), shown) = (map.owner, map.shown_as);
        let write = |name: &str, text: String| {
            let path = format!("/proc/{pid}/{name}");
            File::options()
                .write(true)
                .open(path)?
                .write_all(text.as_bytes())
        };
        write("uid_map", format!("{user} {shown} 1\n"))?;
        write("gid_map", format!("{group} {shown} 1\n"))?;
        Ok(OwnedFd::from(File::open(format!("/proc/{pid}/ns/user"))?))
    })();
    // The child ends when it reads this, or when the pipe is closed.
    let _ = go.write_all(&[0]);
    drop(go);
    let mut status = 0;
    // SAFETY: the pointer is to a local; no other code waits for this child.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    made
}
