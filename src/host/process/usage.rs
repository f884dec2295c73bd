//! Resources that a process has used (proc(5)).
//! Out of scope: which process.

use std::fs;

use crate::host::{Error, syscall};

/// Resources of a process since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all threads, also of those that have ended, in nanoseconds.
    pub cpu_ns: u64,
    /// Resident memory in bytes.
    pub memory_bytes: u64,
    /// `read_bytes`.
    pub disk_read_bytes: u64,
    /// `write_bytes`.
    pub disk_written_bytes: u64,
}

/// The resources of process `pid`.
///
/// # Errors
/// There is no such process, or it may not be inspected.
pub fn usage(pid: u32) -> Result<Usage, Error> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).map_err(|error| Error::io("read", path, error))
    };
    let (statm, io) = (read("statm")?, read("io")?);
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or_default();
    let of_io = |key: &str| {
        let mut values = io.lines().filter_map(|line| line.strip_prefix(key));
        values
            .next()
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or_default()
    };
    Ok(Usage {
        cpu_ns: cpu_ns(pid)?,
        memory_bytes: pages * rustix::param::page_size() as u64,
        disk_read_bytes: of_io("read_bytes:"),
        disk_written_bytes: of_io("write_bytes:"),
    })
}

/// The CPU time of process `pid`. Not that of `/proc/PID/stat`, which is a multiple of 10 ms: over half a second an idle guest uses less.
fn cpu_ns(pid: u32) -> Result<u64, Error> {
    let time = syscall::cpu_time(pid);
    let time =
        time.map_err(|error| Error::io("read the CPU clock of process", pid.to_string(), error))?;
    Ok(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Counters of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkCounters {
    /// Bytes that it has received.
    pub received_bytes: u64,
    /// Bytes that it has sent.
    pub sent_bytes: u64,
}

/// The counters of a link in the network namespace of process `pid`; `None` if there is no such link.
///
/// # Errors
/// There is no such process, or it may not be inspected.
pub fn link_counters(pid: u32, link: &str) -> Result<Option<LinkCounters>, Error> {
    let path = format!("/proc/{pid}/net/dev");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(counters_of(&text, link)),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

/// The first and the ninth number of the line of a link in `/proc/net/dev`.
fn counters_of(text: &str, link: &str) -> Option<LinkCounters> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, numbers) = lines.find(|(name, _)| name.trim() == link)?;
    let mut numbers = numbers.split_whitespace().map(str::parse);
    Some(LinkCounters {
        received_bytes: numbers.next()?.ok()?,
        sent_bytes: numbers.nth(7)?.ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Above the largest value of `/proc/sys/kernel/pid_max`.
    const NO_PID: u32 = 1 << 23;

    #[test]
    fn this_process_uses_memory_and_the_cpu() {
        let found = usage(std::process::id()).unwrap();
        assert!(found.memory_bytes > 1 << 20, "{found:?}");
        assert!(found.cpu_ns > 0, "{found:?}");
        assert_ne!(found.cpu_ns % 1_000_000, 0, "a clock tick: {found:?}");
        assert!(cpu_ns(NO_PID).is_err());
    }

    #[test]
    fn counters_of_a_link_are_those_of_its_line() {
        let text = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
  tap0:1000 2 0 0 0 0 0 0 2000 3 0 0 0 0 0 0
  cut0:1000 2 0
";
        let counters =
            |link| counters_of(text, link).map(|link| (link.received_bytes, link.sent_bytes));
        assert_eq!(counters("tap0"), Some((1000, 2000)));
        assert_eq!(counters("lo"), Some((1, 9)));
        assert_eq!(counters("cut0"), None);
        assert_eq!(counters("tap"), None);
        assert!(link_counters(std::process::id(), "lo").unwrap().is_some());
    }
}
