//! System calls that rustix does not have, or that it declares unsafe although our use of them is safe.
//! Out of scope: those that only one module makes; they are in that module.
//!
//! None of these functions allocates memory or takes a lock, so all of them may be called between fork and exec.
//!
//! # Why not rustix (1.1)
//! | here | rustix |
//! |---|---|
//! | `unshare` | unsafe because of `CLONE_FILES`, which this one refuses |
//! | `exit`, `ignore_and_block` | only in its hidden module `runtime`, which is for implementations of libc and has no stable interface |
//! | `close_on_exec_from` | no close_range(2): it may close descriptors that have an owner; this one closes none |
//! | `mount_setattr` | no mount_setattr(2) |
//! | `cpu_time` | clocks of other processes only by a descriptor of a device |
//! | `install_seccomp_filter` | `set_secure_computing_mode` passes no filter |

use std::ffi::{CStr, c_int, c_uint};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

/// The flags of unshare(2) that create namespaces.
const NAMESPACES: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWPID)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWUSER);

/// Creates namespaces and moves the calling thread to them (unshare(2)). EINVAL: not only namespaces.
pub(super) fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    if !NAMESPACES.contains(namespaces) {
        return Err(Errno::INVAL.into());
    }
    // SAFETY: `CLONE_FILES` is not set, so the thread keeps sharing the table of descriptors with the others.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces) }?)
}

/// Ends the process without running what is registered for its end: after a fork, that is the parent's.
pub(super) fn exit(status: i32) -> ! {
    // SAFETY: _exit(2) takes an integer and does not return.
    unsafe { libc::_exit(status) }
}

/// Makes the next exec close all descriptors from this one on.
pub(super) fn close_on_exec_from(first: c_uint) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: close_range(2) takes three integers, and with this flag it closes nothing. libc has the function for glibc only.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, flags) })
}

/// Changes the attributes of the mount at `path`, or with `AT_RECURSIVE` also of all mounts below it (Linux 5.12).
pub(super) fn mount_setattr(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: c_int,
    change: &libc::mount_attr,
) -> io::Result<()> {
    // SAFETY: the path is a C string, and the size is that of the struct, which the kernel only reads; both outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(change),
            size_of::<libc::mount_attr>(),
        )
    })
}

/// Installs a seccomp filter permanently for the calling thread and every program that it executes. Needs no_new_privs.
pub(super) fn install_seccomp_filter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: `program` and the instructions that it points to outlive the call, `len` is their number, and the kernel copies them and
    // writes to neither.
    check(libc::c_long::from(unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
            0,
            0,
        )
    }))
}

/// Ignores a signal and blocks it for the calling thread. Both persist across exec.
pub(super) fn ignore_and_block(signal: Signal) -> io::Result<()> {
    let signal = signal.as_raw();
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: SIG_IGN is no code that would run. sigemptyset(3) initializes `set`, which outlives all calls; no old mask is requested.
    unsafe {
        if libc::signal(signal, libc::SIG_IGN) == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
        check(libc::sigemptyset(set.as_mut_ptr()).into())?;
        check(libc::sigaddset(set.as_mut_ptr(), signal).into())?;
        check(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()).into())
    }
}

/// The CPU time of a process, with that of threads that have ended (clock_getcpuclockid(3)). ESRCH: there is no such process.
pub(super) fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both calls write one value, which outlives them.
    unsafe {
        let error = libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock);
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        check(libc::clock_gettime(clock, &raw mut time).into())?;
    }
    let (seconds, nanoseconds) = (time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned());
    Ok(Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds))
}

fn check(answer: libc::c_long) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
