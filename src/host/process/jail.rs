//! What Firecracker's jailer finds when it is started in our confinement, so that it goes on where we end.
//! Out of scope: its command line (`crate::reconcile::vmm`); what a process that confines itself in no further way sees (`confine`).
//!
//! # How
//! The new root holds what the jailer needs: the host's programs, itself, the program that it is to start. In it stands the jail, a
//! small file system in memory in which all that the program is to see is shown already, at the paths that it has outside. The jailer
//! makes devices there, moves its root there (taking what is mounted below along and leaving all else behind) and becomes the user.
//! Nothing of the host's programs, `/proc` or `/sys` is left in the jail.
//!
//! # What it may still do
//! The jailer needs some capabilities; more than those its bounding set does not hold. It leaves that set as it is, where our own way
//! empties it: of no use to a process without capabilities that cannot gain any (no_new_privs).
//!
//! # Why the root's source
//! The jailer clears its environment, by which a process is found (`census`). So the file system that becomes the root bears the same words
//! as its source, where only who may mount can put them: `/proc/<pid>/mountinfo` shows them.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::bind::check_long;
use super::confine::{Cell, Confine, LOCKED_DOWN, Reach, drop_bounding};
use super::spawn::check;
use super::step::{Below, Step, c_string};
use crate::host::named::Named;

/// A process that is put in a jail by Firecracker's jailer: [`super::Spawn::argv`] is the jailer's.
#[derive(Clone, Copy, Debug)]
pub struct Jail<'a> {
    /// What becomes its root: a path that has no meaning but to the jailer. There is nothing.
    pub root: &'a Path,
    /// The jailer.
    pub tool: &'a Named,
    /// The program that it copies into the jail.
    pub program: &'a Named,
    /// Where the home is seen in the jail.
    pub home: &'a Path,
    /// Its standard error.
    pub errors: BorrowedFd<'a>,
}

/// Bytes and names: a copied program apart, nothing but mount points, devices and the program's pid are made in a jail.
const JAIL_ROOM: &str = "mode=0755,size=1m,nr_inodes=8k";
/// Where the program's copy comes to lie: the one place of a jail of which something can be executed.
const COPY: &str = "/copy";

/// `include/uapi/linux/capability.h`: CHOWN, DAC_OVERRIDE (it has given the jail to the user, and makes devices there), SETGID, SETUID,
/// SYS_ADMIN (unshare, mount, pivot_root), MKNOD.
const NEEDED: [u32; 6] = [0, 1, 6, 7, 21, 27];

impl Cell {
    /// The jail, and beside it what the jailer needs. `marks`: what is told of it.
    pub(super) fn add_jail(
        &mut self,
        what: &Confine<'_>,
        jail: &Jail<'_>,
        marks: &str,
    ) -> io::Result<()> {
        for tool in [jail.tool, jail.program] {
            self.show(&Reach {
                path: tool.real(),
                writable: false,
                named: Some(tool),
                map: None,
            })?;
        }
        let copy = self.add_room_for_the_copy(jail)?;
        let quiet = libc::MS_NOSUID | libc::MS_NOEXEC;
        self.fresh(("tmpfs", marks), jail.root, quiet, JAIL_ROOM)?;
        self.go_below(jail.root);
        let to = self.place(jail.home)?;
        self.steps.push(Step::Dir(to.clone()));
        self.steps.push(Step::Bind {
            from: c_string(what.home)?,
            to,
            flags: LOCKED_DOWN | libc::MS_NOEXEC,
            below: Below::Nothing,
        });
        for reach in what.reach {
            self.show_at(reach, libc::MS_RDONLY | libc::MS_NOEXEC)?;
        }
        // Last: whatever else were to stand there, the jailer writes to its own.
        let name = Path::new("/").join(jail.program.real().file_name().unwrap_or_default());
        let to = self.place(&name)?;
        self.steps.push(Step::File(to.clone(), 0o600));
        self.steps.push(Step::Bind {
            from: copy,
            to,
            flags: LOCKED_DOWN,
            below: Below::Nothing,
        });
        self.home = c"/".to_owned();
        Ok(())
    }

    /// The jailer writes to the copy, which must be one that can be run: older ones keep the mode that it has.
    fn add_room_for_the_copy(&mut self, jail: &Jail<'_>) -> io::Result<std::ffi::CString> {
        let bytes = jail.program.metadata()?.len();
        // With what a last page leaves empty, and the directory.
        let room = format!("mode=0700,size={},nr_inodes=4", bytes + (64 << 10));
        self.fresh(("tmpfs", "slice"), Path::new(COPY), LOCKED_DOWN, &room)?;
        let copy = self.place(&Path::new(COPY).join("program"))?;
        self.steps.push(Step::File(copy.clone(), 0o755));
        Ok(copy)
    }
}

/// Nothing but what the jailer needs, and never more.
///
/// # Safety
/// Only system calls; to be called between fork and exec.
pub(super) unsafe fn keep_what_a_jailer_needs() -> io::Result<()> {
    let needed = NEEDED.iter().fold(0_u32, |all, one| all | 1 << one);
    // SAFETY: plain system calls on memory of this function.
    unsafe {
        drop_bounding(u64::from(needed))?;
        let none = std::ptr::null::<libc::gid_t>();
        check_long(libc::syscall(libc::SYS_setgroups, 0_usize, none))?;
        // Effective, permitted, inheritable: of the lower 32, then of the upper (capset(2)).
        let header = [0x2008_0522_u32, 0];
        let sets = [needed, needed, 0, 0, 0, 0];
        check_long(libc::syscall(
            libc::SYS_capset,
            header.as_ptr(),
            sets.as_ptr(),
        ))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    }
}
