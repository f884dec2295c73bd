//! The rate of the processor's time-stamp counter, and the scheduling priority of the daemon's session.
//! Out of scope: the users of that; resetting the priority for a VMM ([`super::process::spawn`]).

use std::io;

use rustix::process::{getpid, getpriority_process, getsid};
#[cfg(target_arch = "x86_64")]
use rustix::time::ClockId;

/// Where the kernel distributes processor time among sessions (sched(7), "The autogroup feature"), the nice value of a process applies
/// within its session only: next to hundreds of VMMs, each in its own session, the daemon would get too little. So the daemon's session
/// gets the daemon's nice value. The session of a shell that started the daemon is not changed. Needs CAP_SYS_NICE; has no effect where
/// control groups distribute processor time (systemd).
pub fn set_session_priority() -> io::Result<()> {
    let nice = getpriority_process(None)?;
    if nice >= 0 || getsid(None)? != getpid() {
        return Ok(());
    }
    match std::fs::write("/proc/self/autogroup", nice.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The time-stamp counter's rate in kHz, measured over 20 ms against CLOCK_MONOTONIC_RAW (within about 0.1 %); `None` where
/// there is no such counter. Measured, because `/proc/cpuinfo` gives the current clock rate of a core instead.
#[cfg(target_arch = "x86_64")]
pub fn tsc_khz() -> Option<u32> {
    let now = || -> (u64, i128) {
        let time = rustix::time::clock_gettime(ClockId::MonotonicRaw);
        // SAFETY: RDTSC exists on every x86-64 processor, and Linux lets user space use it.
        let ticks = unsafe { core::arch::x86_64::_rdtsc() };
        let nanoseconds = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
        (ticks, nanoseconds)
    };
    let (ticks_before, before) = now();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let (ticks_after, after) = now();
    let ticks = i128::from(ticks_after.checked_sub(ticks_before)?);
    u32::try_from((ticks * 1_000_000).checked_div(after - before)?)
        .ok()
        .filter(|khz| *khz > 0)
}

/// There is no such counter on this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub fn tsc_khz() -> Option<u32> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #[test]
    fn two_measurements_agree_within_two_percent() {
        let (one, two) = (super::tsc_khz().unwrap(), super::tsc_khz().unwrap());
        assert!(one.abs_diff(two) < one / 50, "{one} and {two} kHz");
    }
}
