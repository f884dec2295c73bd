//! A cached value with a maximum age.
//! Out of scope: reading the value.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// The last value, and when reading it started. Callers that arrive during a read wait for its result.
#[derive(Debug)]
pub struct Cached<T>(Mutex<Option<(Instant, Arc<T>)>>);

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Cached<T> {
    /// Returns the cached value if it is younger than `age`, otherwise reads it again; and when reading it started.
    ///
    /// # Errors
    /// The error of `read`. It is not cached.
    pub async fn get<E>(
        &self,
        max_age: Duration,
        now: Instant,
        read: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<(Instant, Arc<T>), E> {
        let mut cached = self.0.lock().await;
        if let Some((started, value)) = &*cached
            && now.saturating_duration_since(*started) < max_age
        {
            return Ok((*started, Arc::clone(value)));
        }
        let (at, answer) = cached.insert((now, Arc::new(read().await?)));
        Ok((*at, Arc::clone(answer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_value_is_read_once_within_its_age_and_again_afterwards() {
        let cached = Cached::default();
        let (start, age) = (Instant::now(), Duration::from_millis(100));
        for (at, read_result, expected) in [
            (0, Err("a failure"), Err("a failure")),
            (1, Ok(1), Ok(1)),
            (99, Ok(2), Ok(1)),
            (101, Ok(3), Ok(3)),
            (201, Err("a failure"), Err("a failure")),
            (202, Ok(4), Ok(4)),
        ] {
            let now = start + Duration::from_millis(at);
            let found = cached.get(age, now, async || read_result).await;
            assert_eq!(found.map(|(_, value)| *value), expected, "at {at} ms");
        }
    }
}
