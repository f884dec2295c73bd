//! Serialises access to RTNL, the kernel's lock for the links and addresses of all namespaces.
//! Out of scope: other programs that take the lock, and `cleanup_net`.
//!
//! # Why
//! A thread that changes a link sleeps until the lock is free. A thread that writes `forwarding` or `disable_ipv6` does not: the handler
//! tries the lock (`rtnl_net_trylock` in `devinet_sysctl_forward` and `addrconf_disable_ipv6`) and restarts the system call
//! (`restart_syscall`), so the thread spins in the kernel while another one holds it. During the setup of 256 VMs this used a third of all
//! CPU time. The kernel serialises these operations anyway: here the threads of this process wait asleep.

use parking_lot::{Mutex, MutexGuard};

/// Settings that are written under RTNL (`net/ipv4/devinet.c`, `net/ipv6/addrconf.c`).
const LOCKED_SYSCTLS: [&str; 3] = ["forwarding", "ip_forward", "disable_ipv6"];

/// Only one thread of this process at a time holds the guard and takes RTNL for a change. Hold it for one system call.
pub(super) fn turn() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock()
}

/// The guard, if writing this setting takes RTNL.
pub(super) fn lock_for_sysctl(name: &str) -> Option<MutexGuard<'static, ()>> {
    LOCKED_SYSCTLS.contains(&name).then(turn)
}

/// The guard, if the first message of an rtnetlink datagram requests a change: message types come in groups of four, NEW, DEL, GET and
/// SET (`rtnetlink_rcv_msg`).
pub(super) fn lock_for_messages(datagram: &[u8]) -> Option<MutexGuard<'static, ()>> {
    const GET: u8 = 2;
    let kind = datagram.get(4..6)?;
    let changes = u16::from_ne_bytes([kind[0], kind[1]]) & 3 != u16::from(GET);
    changes.then(turn)
}

#[cfg(test)]
mod tests {
    use super::{lock_for_messages, lock_for_sysctl};

    fn message(kind: u16) -> Vec<u8> {
        [&16_u32.to_ne_bytes()[..], &kind.to_ne_bytes()[..], &[0; 10]].concat()
    }

    #[test]
    fn changes_take_the_lock_and_queries_do_not() {
        for (kind, locks) in [
            (libc::RTM_NEWLINK, true),
            (libc::RTM_DELLINK, true),
            (libc::RTM_GETLINK, false),
            (libc::RTM_SETLINK, true),
            (libc::RTM_NEWADDR, true),
            (libc::RTM_GETADDR, false),
            (libc::RTM_DELROUTE, true),
            (libc::RTM_GETROUTE, false),
            (libc::RTM_GETNEIGH, false),
        ] {
            assert_eq!(lock_for_messages(&message(kind)).is_some(), locks, "{kind}");
        }
        assert!(lock_for_messages(&[]).is_none());
        assert!(lock_for_sysctl("forwarding").is_some());
        assert!(lock_for_sysctl("rp_filter").is_none());
    }
}
