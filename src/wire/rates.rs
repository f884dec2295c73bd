//! How often something may happen per address.
//! Out of scope: what happens.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The maximum number of addresses with a known rate; all others share one.
const ADDRESSES: usize = 4096;

/// A rate for each address.
#[derive(Debug)]
pub struct Rates {
    burst: f64,
    per_second: f64,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

/// How often it may still happen at an address.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rates {
    /// `burst` times at once, and then `per_second`.
    pub fn new(burst: f64, per_second: f64) -> Self {
        Self {
            burst,
            per_second,
            buckets: Mutex::default(),
        }
    }

    fn refilled(&self, bucket: Bucket, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.tokens + seconds * self.per_second).min(self.burst)
    }

    /// Whether it may happen now at this address; then it is counted.
    pub fn permits(&self, address: IpAddr, now: Instant) -> bool {
        let address = network(address);
        let mut buckets = self.buckets.lock();
        if buckets.len() >= ADDRESSES {
            buckets.retain(|_, bucket| self.refilled(*bucket, now) < self.burst);
        }
        let is_known = buckets.contains_key(&address);
        let key = match is_known || buckets.len() < ADDRESSES {
            true => address,
            false => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let full = Bucket {
            tokens: self.burst,
            at: now,
        };
        let bucket = buckets.entry(key).or_insert(full);
        let tokens = self.refilled(*bucket, now);
        let is_permitted = tokens >= 1.0;
        *bucket = Bucket {
            tokens: if is_permitted { tokens - 1.0 } else { tokens },
            at: now,
        };
        is_permitted
    }
}

/// The addresses that one client can have: of IPv6, a /64.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

/// A line of the log may be written this often; the others are counted.
#[derive(Debug, Default)]
pub struct LogRate(Mutex<(Option<Instant>, u64)>);

impl LogRate {
    const PAUSE: Duration = Duration::from_secs(2);

    /// Whether a line may be written now: the number of lines before it that were not.
    pub fn permits(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let (last, suppressed) = *state;
        match last.is_none_or(|last| now.saturating_duration_since(last) >= Self::PAUSE) {
            true => {
                *state = (Some(now), 0);
                Some(suppressed)
            }
            false => {
                state.1 += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn an_address_has_a_burst_and_then_a_rate() {
        let rates = Rates::new(3.0, 2.0);
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut now = clock::monotonic();
        let count = |address, now| (0..9).filter(|_| rates.permits(address, now)).count();
        assert_eq!(count(one, now), 3);
        assert_eq!(count(other, now), 3);
        now += Duration::from_secs(1);
        assert_eq!(count(one, now), 2);
        now += Duration::from_secs(60);
        assert_eq!(count(one, now), 3);
    }

    #[test]
    fn the_table_of_rates_is_bounded_and_ipv6_is_counted_by_64() {
        let rates = Rates::new(64.0, 10.0);
        let now = clock::monotonic();
        for number in 0..2 * ADDRESSES as u32 {
            rates.permits(IpAddr::from(number.to_be_bytes()), now);
        }
        assert!(rates.buckets.lock().len() <= ADDRESSES + 1);
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), IpAddr::from([192, 0, 2, 1]));
    }
}
