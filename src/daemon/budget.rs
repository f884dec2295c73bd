//! Who may have how many of the daemon's descriptors. Pure.
//! Out of scope: raising the limit ([`crate::host::process::raise_file_limit`]), counting connections (`wire`).
//!
//! # Why
//! Descriptors are one pool for the engine and the API, and a repair that cannot open a namespace for want of one is no repair. So the
//! API's part is fixed beforehand, and what a run of the engine holds open at worst is bounded by how many runs there may be.

use crate::host::sysctl;
use crate::runtime::controller::{ASIDE, SLOW_RUNS};

/// Sockets of the host's namespace, watches, the database, standard streams, mounts of procfs, and some to spare.
const BASE: u64 = 128 + sysctl::MOUNTS as u64;
/// Of a connection: its socket, and what answering opens for a moment.
const CONNECTION: u64 = 4;
/// Of a run at worst: sockets and handles of a namespace, pipes and pidfd of a program, files and locks of a VMM that is started.
const RUN: u64 = 16;
/// Connections, however many descriptors there are.
const CONNECTIONS: u64 = 256;
/// The same, however few.
const FEWEST: u64 = 16;

/// The parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Connections to the API.
    pub connections: usize,
    /// Runs that are slow and have released their workers.
    pub slow: usize,
    /// VMMs of which each is watched by a descriptor.
    pub vmms: u64,
}

impl Budget {
    /// Of so many descriptors, where so many keys are run at once.
    pub fn of(limit: u64, width: usize) -> Self {
        let connections = (limit / 16).clamp(FEWEST, CONNECTIONS);
        let rest = limit.saturating_sub(BASE + connections * CONNECTION);
        // A half for what a VMM holds as long as it runs.
        let runs = usize::try_from(rest / 2 / RUN).unwrap_or(usize::MAX);
        let workers = width.saturating_mul(1 + ASIDE);
        Self {
            connections: usize::try_from(connections).unwrap_or(usize::MAX),
            slow: runs.saturating_sub(workers).min(SLOW_RUNS),
            vmms: rest / 2,
        }
    }

    /// Whether the workers alone may need more than there is.
    pub fn is_short(&self, limit: u64, width: usize) -> bool {
        let connections = self.connections as u64 * CONNECTION;
        limit < BASE + connections + width as u64 * RUN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_fit_the_whole_and_the_api_never_has_the_larger_one() {
        for limit in [256, 512, 1024, 4096, 20_000, 524_288, u64::MAX] {
            for width in [1, 16, 256] {
                let budget = Budget::of(limit, width);
                let api = budget.connections as u64 * CONNECTION;
                assert!(api <= limit / 4, "{limit}: {budget:?}");
                let slow = budget.slow as u64 * RUN;
                if slow > 0 {
                    let workers = (width * (1 + ASIDE)) as u64 * RUN;
                    let all = BASE + api + workers + slow + budget.vmms;
                    assert!(all <= limit, "{limit}, {width}: {budget:?}");
                }
            }
        }
        assert_eq!(Budget::of(524_288, 16).connections, 256);
        assert_eq!(Budget::of(524_288, 16).slow, SLOW_RUNS);
        assert!(Budget::of(256, 16).is_short(256, 16));
        assert!(!Budget::of(1024, 16).is_short(1024, 16));
    }
}
