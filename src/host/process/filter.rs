//! A seccomp filter that denies (EPERM) a confined process the system calls that change the owner, mode, ACL or attributes of a file.
//! Out of scope: the filters that VMMs install themselves (QEMU's `-sandbox`, those of Firecracker and Cloud Hypervisor).
//!
//! # Why
//! In the mount of a VMM, a user's disk belongs to the VMM's user (`mounts`), and an owner may change a file's mode and extended
//! attributes, including ACLs. Only the disk's owner on the host should do that, and no VMM needs it. All system calls of other
//! architectures (int 0x80) and of x32 are denied: their numbers differ.

/// `include/uapi/linux/audit.h`: the ELF machine number, 64 bits, little-endian.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 62 | 0x8000_0000 | 0x4000_0000;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 183 | 0x8000_0000 | 0x4000_0000;

/// The flag of the x32 ABI (`__X32_SYSCALL_BIT`).
const OTHER_ABI: u32 = 0x4000_0000;

/// Numbers that the libc crate does not have yet, the same on every architecture: fchmodat2, setxattrat, removexattrat, file_setattr.
const NEWER: [libc::c_long; 4] = [452, 463, 466, 469];
#[cfg(target_arch = "x86_64")]
const OLDER: [libc::c_long; 3] = [libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown];
#[cfg(target_arch = "aarch64")]
const OLDER: [libc::c_long; 0] = [];
const REFUSED: [libc::c_long; 10] = [
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];

/// The classic BPF program (seccomp(2)), built before the fork.
pub(super) fn program() -> Vec<libc::sock_filter> {
    let code = |code: u32| code as u16;
    let (load, equal, above, end) = (
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS),
        code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K),
        code(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K),
        code(libc::BPF_RET | libc::BPF_K),
    );
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let refused = REFUSED.iter().chain(&OLDER).chain(&NEWER);
    let refused: Vec<u32> = refused
        .filter_map(|&number| u32::try_from(number).ok())
        .collect();
    let count = refused.len() as u8;
    // `struct seccomp_data`: the number is at offset 0, the architecture at 4. Jumps are relative to the next instruction.
    let mut steps = vec![
        step(load, 0, 0, 4),
        step(equal, 0, count + 3, ARCHITECTURE),
        step(load, 0, 0, 0),
        step(above, count + 1, 0, OTHER_ABI),
    ];
    let compare = refused
        .iter()
        .enumerate()
        .map(|(at, number)| step(equal, count - at as u8, 0, *number));
    steps.extend(compare);
    steps.push(step(end, 0, 0, libc::SECCOMP_RET_ALLOW));
    steps.push(step(
        end,
        0,
        0,
        libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
    ));
    steps
}
