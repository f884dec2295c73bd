//! Reduces the capabilities of a process (capabilities(7)). Makes only system calls: it runs between fork and exec.
//! Out of scope: the rest of the confinement (`confine`).

use std::io;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The jailer creates devices in the jail, which belongs to the user by then (MKNOD, DAC_OVERRIDE, CHOWN), calls unshare(2), mount(2) and
/// pivot_root(2) (SYS_ADMIN), and becomes the user.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::MKNOD);

/// Drops all capabilities but this set from the bounding set.
pub(super) fn drop_bounding(kept: CapabilitySet) -> io::Result<()> {
    let all = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    for capability in all.filter(|capability| !kept.contains(*capability)) {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // This kernel has no capability with this number or a higher one.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Empties the capability sets of the calling thread but for these in its effective and permitted set.
pub(super) fn keep_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Reduces the capabilities to those that the jailer needs, permanently. Makes only system calls.
pub(super) fn keep_what_a_jailer_needs() -> io::Result<()> {
    drop_bounding(NEEDED)?;
    rustix::thread::set_thread_groups(&[])?;
    keep_capabilities(NEEDED)?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}
