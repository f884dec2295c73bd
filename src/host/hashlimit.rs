//! Token buckets of `xt_hashlimit` in the calling thread's network namespace.
//! Out of scope: the limits.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::{Error, fs};

/// The token bucket of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    credit: u64,
    max_credit: u64,
    cost: u64,
}

impl Bucket {
    /// The number of tokens that are currently missing.
    pub fn missing(&self) -> f64 {
        self.max_credit.saturating_sub(self.credit) as f64 / self.cost.max(1) as f64
    }

    /// A bucket with `tokens` missing.
    #[cfg(test)]
    pub(crate) fn lacking(tokens: f64) -> Self {
        const COST: u64 = 1000;
        let max_credit = 1_000_000 * COST;
        Self {
            credit: max_credit - (tokens * COST as f64) as u64,
            max_credit,
            cost: COST,
        }
    }
}

/// The buckets of the table with this name, by source. Empty if the table does not exist.
///
/// # Errors
/// The table cannot be read.
pub fn buckets(table: &str) -> Result<HashMap<Ipv4Addr, Bucket>, Error> {
    // The thread's namespace; /proc/net is that of the process's first thread.
    let path = PathBuf::from("/proc/thread-self/net/ipt_hashlimit").join(table);
    let text = fs::read_text(&path)?.unwrap_or_default();
    Ok(text.lines().filter_map(bucket).collect())
}

/// `dl_seq_print` (xt_hashlimit.c): seconds until it expires, source and destination with ports, credit, maximum credit, cost.
fn bucket(line: &str) -> Option<(Ipv4Addr, Bucket)> {
    let mut fields = line.split_whitespace().skip(1);
    let source = fields.next()?.split_once(':')?.0.parse().ok()?;
    let mut number = || fields.next()?.parse().ok();
    let (credit, max_credit, cost) = (number()?, number()?, number()?);
    Some((
        source,
        Bucket {
            credit,
            max_credit,
            cost,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_in_the_kernels_format_are_read() {
        let line = "3599 192.168.137.2:0->0.0.0.0:0 320000 10000000 32000";
        let (source, bucket) = bucket(line).unwrap();
        assert_eq!(source, Ipv4Addr::new(192, 168, 137, 2));
        assert_eq!(bucket.missing(), 302.5);
        for line in [
            "",
            "3599",
            "3599 192.168.137.2:0->0.0.0.0:0",
            "3599 192.168.137.2:0->0.0.0.0:0 1 2",
            "3599 fe80::1:0->::0 1 2 3",
            "3599 192.168.137.2:0->0.0.0.0:0 -1 2 3",
        ] {
            assert_eq!(super::bucket(line), None, "{line}");
        }
    }
}
