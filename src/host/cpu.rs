//! What the processor tells about itself.
//! Not here: who wants to know.

/// The time-stamp counter's rate in kHz, measured over 20 ms against CLOCK_MONOTONIC_RAW (within about 0.1 %); `None` where
/// there is no such counter. Measured, because `/proc/cpuinfo` gives the present clock rate of a core, which is another thing.
#[cfg(target_arch = "x86_64")]
pub fn tsc_khz() -> Option<u32> {
    let now = || -> Option<(u64, i128)> {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the pointer is to a local; RDTSC exists on every x86-64 processor, and Linux lets user space use it.
        let (answer, ticks) = unsafe {
            let answer = libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &raw mut time);
            (answer, core::arch::x86_64::_rdtsc())
        };
        let nanoseconds = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
        (answer == 0).then_some((ticks, nanoseconds))
    };
    let (ticks_before, before) = now()?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    let (ticks_after, after) = now()?;
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
