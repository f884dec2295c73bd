//! The share of the host's connection tracking table that one VM may use. Pure.
//! Out of scope: the rules that enforce it ([`crate::reconcile::firewall::isolated::rules`], [`crate::reconcile::host_network::limits`]).
//!
//! # Sizes
//! With `M` for the host's `nf_conntrack_max`, a VM has `N = M / 512` connections, unless its group specifies `max_connections`:
//!
//! | entries of one VM | at most | enforced by |
//! |---|---|---|
//! | open connections of every protocol | `N` | `connlimit` |
//! | of these, of protocols other than TCP | `N / 2` | `connlimit` |
//! | half-open: TCP without an answer, for 5 s | `3/4 N` | a rate of `N / 20` a second after a burst of `N / 2`, for 5 s |
//! | closed: TCP after FIN or RST, for 5 s; `connlimit` does not count these (`already_closed`, nf_conncount.c) | `3/4 N` | the same rate |
//!
//! So a VM has at most `7/4 N` entries, and 256 VMs have at most `7/8 M`.

use std::collections::BTreeMap;

use crate::host::rule::Rate;

/// Timeouts in seconds, by the number of the TCP state.
pub type Timeouts = BTreeMap<u16, u32>;

/// The limit if the host's table is unlimited or its size cannot be read: that of a table of 262,144 entries.
const DEFAULT_LIMIT: u32 = 512;

/// The table is divided for 256 VMs: their open connections use half of it.
const TABLE_DIVISOR: u32 = 512;

/// Timeout in seconds of a TCP entry that is half-open or closed ([`TIMEOUTS`]).
pub const SHORT_TIMEOUT: u32 = 5;

/// Timeouts of TCP entries after the last packet, by state: the suffix of the sysctl `nf_conntrack_tcp_timeout_*`, the number of the
/// attribute in a timeout policy (`enum ctattr_timeout_tcp`, linux/netfilter/nfnetlink_cttimeout.h), seconds.
pub const TIMEOUTS: [(&str, u16, u32); 11] = [
    ("syn_sent", 1, SHORT_TIMEOUT),
    ("syn_recv", 2, SHORT_TIMEOUT),
    // RFC 5382, REQ-5: at least 2 hours and 4 minutes; the kernel's default is five days.
    ("established", 3, 7440),
    ("fin_wait", 4, 30),
    ("close_wait", 5, 60),
    ("last_ack", 6, SHORT_TIMEOUT),
    ("time_wait", 7, SHORT_TIMEOUT),
    ("close", 8, 2),
    ("syn_sent2", 9, SHORT_TIMEOUT),
    ("max_retrans", 10, 60),
    ("unacknowledged", 11, 60),
];

/// [`TIMEOUTS`] in the form of a timeout policy.
pub fn timeouts() -> Timeouts {
    let entry = |(_, state, seconds): (&str, u16, u32)| (state, seconds);
    TIMEOUTS.into_iter().map(entry).collect()
}

/// The number of connections that a VM may have at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Limit(u32);

impl Limit {
    /// The limit that a group specifies.
    pub fn of(max_connections: u32) -> Self {
        Self(max_connections)
    }

    /// The default limit, with a table of `table` entries.
    pub fn default_for(table: Option<u32>) -> Self {
        match table {
            None | Some(0) => Self(DEFAULT_LIMIT),
            Some(table) => Self((table / TABLE_DIVISOR).clamp(16, 65_536)),
        }
    }

    /// The limit of open connections.
    pub fn all(self) -> u32 {
        self.0
    }

    /// The limit of open connections of protocols other than TCP, which is part of [`Limit::all`].
    pub fn other_protocols(self) -> u32 {
        self.0 / 2
    }

    /// The limit of the rate of new connections.
    pub fn new_rate(self) -> Rate {
        Rate::at_most(self.0 / (4 * SHORT_TIMEOUT), self.0 / 2)
    }

    /// The maximum number of entries that a VM can have in a table: open connections, and closed TCP connections.
    pub fn max_entries(self) -> u32 {
        let rate = self.new_rate();
        self.0 + rate.burst() + rate.per_second() * SHORT_TIMEOUT
    }
}

/// Returns a warning if VMs with this limit can fill the host's table.
pub fn table_warning(vms: u32, max_connections: u32, table: Option<u32>) -> Option<String> {
    let table = table.filter(|table| *table > 0)?;
    let total = u64::from(vms) * u64::from(max_connections);
    (total > u64::from(table)).then(|| {
        format!(
            "network.max_connections: {vms} VMs with {max_connections} connections each may have {total}, and the host's table \
             has {table} entries (net.netfilter.nf_conntrack_max): the group can fill it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_can_fill_the_table_causes_a_warning() {
        for (vms, max_connections, table, warned) in [
            (256, 1024, Some(262_144), false),
            (257, 1024, Some(262_144), true),
            (1, 262_144, Some(65_536), true),
            (u32::MAX, u32::MAX, Some(u32::MAX), true),
            (1000, 262_144, None, false),
            (1000, 262_144, Some(0), false),
        ] {
            let warning = table_warning(vms, max_connections, table);
            assert_eq!(
                warning.is_some(),
                warned,
                "{vms} {max_connections} {table:?}: {warning:?}"
            );
        }
    }

    #[test]
    fn two_hundred_and_fifty_six_vms_cannot_fill_a_table_of_any_size() {
        for table in [16_384, 65_536, 131_072, 262_144, 1_048_576, 16_777_216] {
            let limit = Limit::default_for(Some(table));
            let max_entries = 256 * limit.max_entries();
            assert!(
                max_entries <= table,
                "{table}: {limit:?} makes {max_entries}"
            );
        }
        assert_eq!(Limit::default_for(Some(262_144)).all(), 512);
        assert_eq!(Limit::default_for(None), Limit::default_for(Some(0)));
    }
}
