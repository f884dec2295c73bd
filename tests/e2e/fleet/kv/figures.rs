//! How long requests take.
//! Out of scope: faults.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use slicectl::fleet::kv::Revision;
use test_support::{kernel, turns};

use super::super::lab::Lab;
use super::{PAGE, VM, next_batch, target};

/// The median and the 99th percentile.
fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Far above what is measured: it fails if a connection, a token or an election is made for each request.
const LIMIT: Duration = Duration::from_millis(50);

/// The same for a list of ten pages.
const LIST_LIMIT: Duration = Duration::from_millis(500);

#[test]
fn requests_take_milliseconds() {
    let _turn = turns::alone();
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let mut watch = client
            .watch(vec![target("/slice/v1/", Revision(0))])
            .await
            .unwrap();
        let (mut puts, mut reports) = (Vec::new(), Vec::new());
        for number in 0..1_000 {
            let key = format!("/slice/v1/vms/{number:04}");
            let begin = Instant::now();
            client
                .put(key.as_str(), vec![b'x'; 500], None)
                .await
                .unwrap();
            puts.push(begin.elapsed());
            while next_batch(&mut watch).await.unwrap().events.is_empty() {}
            reports.push(begin.elapsed());
        }
        let (mut gets, mut lists, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..20 {
            let begin = Instant::now();
            let listing = client.range("/slice/v1/vms/", None, PAGE).await.unwrap();
            lists.push(begin.elapsed());
            assert_eq!(listing.kvs.len(), 1_000);
            let begin = Instant::now();
            client
                .range("/slice/v1/vms/", None, NonZeroU32::MAX)
                .await
                .unwrap();
            whole.push(begin.elapsed());
            let begin = Instant::now();
            client.get(VM).await.unwrap();
            gets.push(begin.elapsed());
        }
        for (what, times, limit) in [
            ("put", puts, LIMIT),
            ("put to event", reports, LIMIT),
            ("get", gets, LIMIT),
            ("list of 1,000 keys in 10 pages", lists, LIST_LIMIT),
            ("list of 1,000 keys in one page", whole, LIST_LIMIT),
        ] {
            let (half, most) = percentiles(times);
            println!("{what}: p50 {half:?}, p99 {most:?}");
            assert!(half < limit, "{what}: {half:?}");
        }
    });
}
