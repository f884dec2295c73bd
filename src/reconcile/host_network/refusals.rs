//! Counts the refused packets of each VM on a bridge, by the tokens that are missing from its bucket in the kernel.
//! Out of scope: the rules that drop them ([`super::limits`]); who is notified.
//!
//! # Why
//! One token is taken for each packet that is dropped, and one is added each second (a longer period does not allow a burst:
//! `user2credits`, xt_hashlimit.c). So the number of missing tokens is a lower bound of the packets dropped recently, exact for those
//! dropped since an observation a moment ago, and a bucket exists for an hour after the last packet. Counts only grow: each observation
//! adds the tokens that are missing in addition to those of the previous observation.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::api::meta::Uid;
use crate::host::Error;
use crate::host::hashlimit::{self, Bucket};
use crate::host::netns::Netns;
use crate::host::rule::{Rate, SourceRate};
use crate::owner::Instance;
use crate::reconcile::fresh::Cached;

/// How long a bucket is kept after the last packet.
const BUCKET_TTL: Duration = Duration::from_secs(3600);

/// The maximum number of tokens that x_tables keeps.
const MAX_TOKENS: u32 = 10_000;

/// The minimum interval between two reads of the kernel's table, for any number of VMs.
const MAX_AGE: Duration = Duration::from_millis(100);

type Buckets = HashMap<Ipv4Addr, Bucket>;

/// The match to read the buckets of.
pub(super) fn bucket(instance: &Instance) -> SourceRate {
    SourceRate {
        name: format!("{}-refused", instance.link_prefix()),
        rate: Rate::at_most(1, MAX_TOKENS),
        prefix: 32,
        expire: BUCKET_TTL.as_millis() as u32,
    }
}

/// The cached table of the kernel, and the count of each VM.
#[derive(Debug, Default)]
pub struct Refusals {
    table: Cached<Buckets>,
    counts: Mutex<HashMap<Uid, Count>>,
}

/// The refused packets of one VM.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Count {
    total: u64,
    /// Tokens that were missing at the last observation.
    missing: f64,
    observed_at: Option<Instant>,
}

/// The result of an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Since the first observation of this process.
    pub total: u64,
    /// Since the previous observation.
    pub new: u64,
}

impl Refusals {
    /// Observes the VM with this address. If the VM `is_new`, the missing tokens were taken by another VM that had the address before.
    ///
    /// # Errors
    /// The kernel's table cannot be read.
    pub async fn observe(
        &self,
        home: &Netns,
        instance: &Instance,
        (uid, address, is_new): (Uid, Ipv4Addr, bool),
        now: Instant,
    ) -> Result<Refused, Error> {
        let read = async || {
            let name = bucket(instance).name;
            home.run(move || hashlimit::buckets(&name)).await
        };
        let (read, buckets) = self.table.get(MAX_AGE, now, read).await?;
        let mut counts = self.counts.lock();
        let count = counts.entry(uid).or_default();
        let new_refusals = count.observe(buckets.get(&address), is_new, read);
        Ok(Refused {
            total: count.total,
            new: new_refusals,
        })
    }

    /// Removes the count of a VM that does not exist any more.
    pub fn remove(&self, uid: Uid) {
        let mut counts = self.counts.lock();
        counts.remove(&uid);
    }
}

impl Count {
    /// Returns how many more packets were refused.
    fn observe(&mut self, bucket: Option<&Bucket>, is_new: bool, now: Instant) -> u64 {
        let missing = bucket.map_or(0.0, Bucket::missing);
        let new_refusals = match (self.observed_at, bucket) {
            (_, None) => 0,
            (None, Some(_)) if is_new => 0,
            // The bucket exists, so a packet was refused.
            (None, Some(_)) => (missing.round() as u64).max(1),
            (Some(then), Some(_)) => {
                let refilled = now.saturating_duration_since(then).as_secs_f64();
                let remaining = (self.missing - refilled).max(0.0);
                (missing - remaining).round().max(0.0) as u64
            }
        };
        self.total += new_refusals;
        self.missing = missing;
        self.observed_at = Some(now);
        new_refusals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_token_is_counted_once() {
        let start = Instant::now();
        let mut count = Count::default();
        // Seconds after the start, tokens missing (none: no bucket), how many more.
        for (at, missing, new_refusals) in [
            (0, None, 0),
            (1, Some(320.0), 320),
            (1, Some(320.0), 0),
            (11, Some(310.0), 0),
            (21, Some(305.0), 5),
            (400, Some(0.0), 0),
            (401, Some(40.2), 40),
            (402, Some(10_000.0), 9961),
            (403, Some(10_000.0), 1),
            (9000, None, 0),
            (9001, Some(2.0), 2),
        ] {
            let bucket = missing.map(Bucket::lacking);
            let now = start + Duration::from_secs(at);
            assert_eq!(
                count.observe(bucket.as_ref(), false, now),
                new_refusals,
                "at {at} s"
            );
        }
        assert_eq!(count.total, 320 + 5 + 40 + 9961 + 1 + 2);
        // A bucket that is nearly full again shows that a packet was refused.
        let mut almost_full = Count::default();
        assert_eq!(
            almost_full.observe(Some(&Bucket::lacking(0.0)), false, start),
            1
        );
        assert_eq!(
            almost_full.observe(Some(&Bucket::lacking(0.0)), false, start),
            0
        );
        // Packets that another VM with the address was refused are not counted for the new VM.
        let mut new = Count::default();
        assert_eq!(new.observe(Some(&Bucket::lacking(300.0)), true, start), 0);
        let later = start + Duration::from_secs(10);
        assert_eq!(new.observe(Some(&Bucket::lacking(295.0)), false, later), 5);
    }
}
