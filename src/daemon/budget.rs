//! Divides the daemon's file descriptors among its consumers. Pure.
//! Out of scope: raising the limit ([`crate::host::process::raise_file_limit`]), counting connections (`wire`).
//!
//! # Why
//! The engine and the API share one pool of descriptors, and a repair fails if it cannot open a namespace. So the share of the API is
//! fixed, and the worst case of the engine is bounded by the number of concurrent runs.

use crate::host::sysctl;
use crate::runtime::controller::{MAX_SLOW_RUNS, WAITING_PER_WORKER};

/// Sockets of the host's namespace, watches, the database, standard streams, mounts of procfs, and a reserve.
const BASE: u64 = 128 + sysctl::MOUNTS as u64;
/// Per connection: its socket, and descriptors opened while a request is handled.
const PER_CONNECTION: u64 = 4;
/// Per run, worst case: sockets and handles of a namespace, pipes and pidfd of a program, files and locks of a VMM that is started.
const RUN: u64 = 16;
/// Per request to an agent: the socket of the client, and that of the VM's vsock device.
const PER_AGENT: u64 = 2;
/// Maximum number of requests to agents.
const MAX_AGENTS: u64 = 4096;
/// Minimum number of requests to agents.
const MIN_AGENTS: u64 = 16;
/// Maximum number of connections.
const MAX_CONNECTIONS: u64 = 256;
/// Minimum number of connections.
const MIN_CONNECTIONS: u64 = 16;
/// Per connection to the second listener of the API: its socket, and descriptors opened while a request is handled.
const PER_REMOTE: u64 = 2;
/// Maximum number of connections to the second listener.
const MAX_REMOTE: u64 = 512;

/// The share of each consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Number of connections to the API.
    pub connections: usize,
    /// Number of connections to the second listener of the API.
    pub remote: usize,
    /// Number of requests to agents.
    pub agents: usize,
    /// Number of slow runs that have released their workers.
    pub slow: usize,
    /// Number of VMMs; each is watched by one descriptor.
    pub vmms: u64,
}

impl Budget {
    /// Divides `limit` descriptors, with `width` keys reconciled concurrently.
    pub fn of(limit: u64, concurrency: usize) -> Self {
        let connections = (limit / 16).clamp(MIN_CONNECTIONS, MAX_CONNECTIONS);
        let agents = (limit / 8).clamp(MIN_AGENTS, MAX_AGENTS);
        let remote = (limit / 16).clamp(MIN_CONNECTIONS, MAX_REMOTE);
        let clients = connections * PER_CONNECTION + remote * PER_REMOTE + agents * PER_AGENT;
        let rest = limit.saturating_sub(BASE + clients);
        // The other half is for descriptors that are held as long as a VMM runs.
        let runs = usize::try_from(rest / 2 / RUN).unwrap_or(usize::MAX);
        let workers = concurrency.saturating_mul(1 + WAITING_PER_WORKER);
        Self {
            connections: usize::try_from(connections).unwrap_or(usize::MAX),
            remote: usize::try_from(remote).unwrap_or(usize::MAX),
            agents: usize::try_from(agents).unwrap_or(usize::MAX),
            slow: runs.saturating_sub(workers).min(MAX_SLOW_RUNS),
            vmms: rest / 2,
        }
    }

    /// Whether `limit` is too low even without slow runs.
    pub fn is_insufficient(&self, limit: u64, concurrency: usize) -> bool {
        let connections = self.connections as u64 * PER_CONNECTION;
        limit < BASE + connections + concurrency as u64 * RUN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_fit_the_limit_and_the_api_and_agents_have_a_quarter_each_at_most() {
        for limit in [256, 512, 1024, 4096, 20_000, 524_288, u64::MAX] {
            for width in [1, 16, 256] {
                let budget = Budget::of(limit, width);
                let api = budget.connections as u64 * PER_CONNECTION;
                assert!(api <= limit / 4, "{limit}: {budget:?}");
                let agents = budget.agents as u64 * PER_AGENT;
                assert!(agents <= limit / 4, "{limit}: {budget:?}");
                let slow = budget.slow as u64 * RUN;
                if slow > 0 {
                    let workers = (width * (1 + WAITING_PER_WORKER)) as u64 * RUN;
                    let all = BASE + api + agents + workers + slow + budget.vmms;
                    assert!(all <= limit, "{limit}, {width}: {budget:?}");
                }
            }
        }
        assert_eq!(Budget::of(524_288, 16).connections, 256);
        assert_eq!(Budget::of(65_536, 16).agents, 4096);
        assert_eq!(Budget::of(524_288, 16).slow, MAX_SLOW_RUNS);
        assert!(Budget::of(256, 16).is_insufficient(256, 16));
        assert!(!Budget::of(1024, 16).is_insufficient(1024, 16));
    }
}
