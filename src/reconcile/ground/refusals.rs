//! How many packets each VM on a bridge was refused: by the tokens that are missing from its bucket in the kernel.
//! Out of scope: the rules that drop them ([`super::limits`]), who is notified.
//!
//! # Why so
//! A token is taken for each packet that is dropped, and one comes back each second (a longer period does not allow a burst:
//! `user2credits`, xt_hashlimit.c). So the missing tokens are a lower bound of what was dropped lately, exact for what was dropped
//! since the last look a moment ago, and a bucket is there for an hour after the last packet. Counts only grow: a look adds
//! what is missing beyond what was missing at the look before.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::api::meta::Uid;
use crate::host::Error;
use crate::host::hashlimit::{self, Bucket};
use crate::host::netns::Netns;
use crate::host::rule::{Rate, SourceRate};
use crate::owner::Instance;
use crate::reconcile::fresh::Fresh;

/// How long a bucket is kept after the last packet.
const KEPT: Duration = Duration::from_secs(3600);

/// The most tokens that x_tables keeps.
const TOKENS: u32 = 10_000;

/// The kernel's table is read at most this often, for however many VMs are looked at.
const FRESH: Duration = Duration::from_millis(100);

type Buckets = HashMap<Ipv4Addr, Bucket>;

/// The buckets.
pub(super) fn bucket(instance: &Instance) -> SourceRate {
    SourceRate {
        name: format!("{}-refused", instance.link_prefix()),
        rate: Rate::at_most(1, TOKENS),
        prefix: 32,
        expire: KEPT.as_millis() as u32,
    }
}

/// What was read of the kernel's table.
#[derive(Debug, Default)]
pub struct Refusals {
    table: Fresh<Buckets>,
    counts: Mutex<HashMap<Uid, Count>>,
}

/// What one VM was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Count {
    total: u64,
    /// Tokens that were missing at the last look.
    missing: f64,
    looked: Option<Instant>,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Since this process has first looked.
    pub total: u64,
    /// Since the look before.
    pub more: u64,
}

impl Refusals {
    /// Looks at the VM with this address, now. What is missing from the bucket of one that `is_new` was taken by another VM, which had
    /// the address before.
    ///
    /// # Errors
    /// The kernel's table cannot be read.
    pub async fn look(
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
        let (read, buckets) = self.table.get(FRESH, now, read).await?;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid).or_default();
        let more = count.look(buckets.get(&address), is_new, read);
        Ok(Refused {
            total: count.total,
            more,
        })
    }

    /// There is no such VM any more.
    pub fn forget(&self, uid: Uid) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.remove(&uid);
    }
}

impl Count {
    /// How many more packets were refused.
    fn look(&mut self, bucket: Option<&Bucket>, is_new: bool, now: Instant) -> u64 {
        let missing = bucket.map_or(0.0, Bucket::missing);
        let more = match (self.looked, bucket) {
            (_, None) => 0,
            (None, Some(_)) if is_new => 0,
            // It is there, so something was refused.
            (None, Some(_)) => (missing.round() as u64).max(1),
            (Some(then), Some(_)) => {
                let back = now.saturating_duration_since(then).as_secs_f64();
                let still = (self.missing - back).max(0.0);
                (missing - still).round().max(0.0) as u64
            }
        };
        self.total += more;
        self.missing = missing;
        self.looked = Some(now);
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_beyond_what_was_missing_before_is_counted_once() {
        let start = Instant::now();
        let mut count = Count::default();
        // Seconds after the start, tokens missing (none: no bucket), how many more.
        for (at, missing, more) in [
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
            assert_eq!(count.look(bucket.as_ref(), false, now), more, "at {at} s");
        }
        assert_eq!(count.total, 320 + 5 + 40 + 9961 + 1 + 2);
        // One that is nearly full again shows that something was refused.
        let mut late = Count::default();
        assert_eq!(late.look(Some(&Bucket::lacking(0.0)), false, start), 1);
        assert_eq!(late.look(Some(&Bucket::lacking(0.0)), false, start), 0);
        // What another VM with the address was refused is not the new one's.
        let mut new = Count::default();
        assert_eq!(new.look(Some(&Bucket::lacking(300.0)), true, start), 0);
        let later = start + Duration::from_secs(10);
        assert_eq!(new.look(Some(&Bucket::lacking(295.0)), false, later), 5);
    }
}
