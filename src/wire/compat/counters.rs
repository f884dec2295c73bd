//! Counts requests.
//! Out of scope: the format of metrics.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use parking_lot::{Mutex, MutexGuard};

use crate::api::meta::Name;

/// The upper bounds of the buckets of durations, in seconds.
pub(super) const BUCKETS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];

/// The counters of this process: all its listeners count together.
pub(super) static COUNTERS: LazyLock<Counters> = LazyLock::new(Counters::default);

/// What requests have done.
#[derive(Debug, Default)]
pub(super) struct Counters(Mutex<Counts>);

/// The numbers.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// By method and status.
    pub(super) requests: BTreeMap<(&'static str, u16), u64>,
    /// By group and status. Only groups that exist are counted.
    pub(super) launches: BTreeMap<(Name, u16), u64>,
    /// By bucket.
    pub(super) durations: [u64; BUCKETS.len()],
    /// In seconds.
    pub(super) duration_sum: f64,
    /// Also those above all bounds.
    pub(super) duration_count: u64,
}

impl Counters {
    /// The numbers so far.
    pub(super) fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock()
    }

    /// Counts a request.
    pub(super) fn count(&self, method: &Method, status: StatusCode, took: Duration) {
        let seconds = took.as_secs_f64();
        let mut counts = self.0.lock();
        let key = (method_name(method), status.as_u16());
        *counts.requests.entry(key).or_default() += 1;
        counts.duration_sum += seconds;
        counts.duration_count += 1;
        if let Some(at) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            counts.durations[at] += 1;
        }
    }

    /// Counts a request for a VM.
    pub(super) fn launched(&self, group: &Name, status: StatusCode) {
        let mut counts = self.0.lock();
        let key = (group.clone(), status.as_u16());
        *counts.launches.entry(key).or_default() += 1;
    }
}

/// A client may send any method.
fn method_name(method: &Method) -> &'static str {
    let known = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"];
    let found = known.into_iter().find(|known| *known == method.as_str());
    found.unwrap_or("other")
}
