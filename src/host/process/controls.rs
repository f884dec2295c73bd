//! A seccomp filter that forbids ioctls of a TAP to a confined process that has the TAP open.
//! Out of scope: other restrictions of a confined process ([`super::confine`]).
//!
//! # Why
//! A process with a TAP's descriptor can change its MAC without any capability (`SIOCSIFHWADDR` of `__tun_chr_ioctl`,
//! drivers/net/tun.c). On a bridge the MAC of a port is a local address: the bridge then drops its entry for that MAC, which may be
//! another VM's or a router's, and delivers their frames to the host (`fdb_add_local`, net/bridge/br_fdb.c). No VMM needs this, nor a
//! change of the TAP's owner or persistence.
//!
//! The filter is classic BPF over `struct seccomp_data` (linux/seccomp.h). It returns EPERM, as the kernel does if a capability is
//! missing. The system calls of other architectures and of x32 have other numbers: all of them return ENOSYS.

use std::io;

use crate::host::syscall::install_seccomp_filter;

/// `linux/sockios.h`, `linux/if_tun.h`: the MAC, persistence, the owner, the group, the link type.
const FORBIDDEN: [u32; 5] = [
    libc::SIOCSIFHWADDR as u32,
    libc::TUNSETPERSIST as u32,
    libc::TUNSETOWNER as u32,
    libc::TUNSETGROUP as u32,
    libc::TUNSETLINK as u32,
];

/// `AUDIT_ARCH_*` of `linux/audit.h`.
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

/// `__X32_SYSCALL_BIT`; native system call numbers are below it.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`. The kernel uses the lower half of ioctl's second argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const REQUEST: u32 = 24;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NO_SUCH_CALL: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const NOT_PERMITTED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

const LENGTH: usize = 6 + 1 + FORBIDDEN.len() + 3;

const fn insn(code: u32, jt: usize, jf: usize, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: jt as u8,
        jf: jf as u8,
        k,
    }
}

/// The tests are followed by three return instructions: allowed, no such call, not permitted.
const fn filter() -> [libc::sock_filter; LENGTH] {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const ANSWER: u32 = libc::BPF_RET | libc::BPF_K;
    const ALLOWED: usize = LENGTH - 3;
    const NO_CALL: usize = LENGTH - 2;
    const DENIED: usize = LENGTH - 1;
    let mut all = [insn(ANSWER, 0, 0, NOT_PERMITTED); LENGTH];
    all[0] = insn(LOAD, 0, 0, ARCHITECTURE);
    all[1] = insn(EQUAL, 0, NO_CALL - 2, NATIVE);
    all[2] = insn(LOAD, 0, 0, NUMBER);
    all[3] = insn(AT_LEAST, NO_CALL - 4, 0, X32);
    all[4] = insn(EQUAL, 0, ALLOWED - 5, libc::SYS_ioctl as u32);
    all[5] = insn(LOAD, 0, 0, REQUEST);
    let mut at = 6;
    while at - 6 < FORBIDDEN.len() {
        all[at] = insn(EQUAL, DENIED - at - 1, 0, FORBIDDEN[at - 6]);
        at += 1;
    }
    // Between the tests and the return instructions.
    all[at] = insn(libc::BPF_JMP | libc::BPF_JA, 0, 0, 0);
    all[ALLOWED] = insn(ANSWER, 0, 0, ALLOW);
    all[NO_CALL] = insn(ANSWER, 0, 0, NO_SUCH_CALL);
    all
}

/// Installs the filter for this process and every program that it executes. Must be called after no_new_privs is set.
pub(super) fn forbid() -> io::Result<()> {
    static FILTER: [libc::sock_filter; LENGTH] = filter();
    install_seccomp_filter(&FILTER)
}
