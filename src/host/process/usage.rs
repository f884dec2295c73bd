//! Resources that a process has used (proc(5)).
//! Out of scope: which process.

use std::fs;

use crate::host::Error;

/// Resources of a process since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in user and kernel mode, in nanoseconds; a multiple of a clock tick.
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
/// There is no such process, or it is not ours to inspect.
pub fn usage(pid: u32) -> Result<Usage, Error> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).map_err(|error| Error::io("read", path, error))
    };
    let (stat, statm, io) = (read("stat")?, read("statm")?, read("io")?);
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
        cpu_ns: cpu_ns(&stat),
        memory_bytes: pages * rustix::param::page_size() as u64,
        disk_read_bytes: of_io("read_bytes:"),
        disk_written_bytes: of_io("write_bytes:"),
    })
}

/// `utime` and `stime`, the 14th and 15th field. The name, the second one, may contain blanks and parentheses.
fn cpu_ns(stat: &str) -> u64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_the_cpu() {
        let found = usage(std::process::id()).unwrap();
        assert!(found.memory_bytes > 1 << 20, "{found:?}");
        let second = rustix::param::clock_ticks_per_second();
        let stat = format!("7 (a) b) R 1 2 3 4 5 6 7 8 9 10 {second} {second} 5 5");
        assert_eq!(cpu_ns(&stat), 2_000_000_000);
    }
}
