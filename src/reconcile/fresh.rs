//! What was read a moment ago, for all who ask in that moment.
//! Out of scope: what is read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// The last answer, and when it was asked for. Those who ask while it is read wait for it.
#[derive(Debug)]
pub struct Fresh<T>(Mutex<Option<(Instant, Arc<T>)>>);

impl<T> Default for Fresh<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Fresh<T> {
    /// The answer, if it is not older than `age`; else it is read again. And when it was asked for.
    ///
    /// # Errors
    /// Of `read`; the next one reads again.
    pub async fn get<E>(
        &self,
        age: Duration,
        now: Instant,
        read: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<(Instant, Arc<T>), E> {
        let mut last = self.0.lock().await;
        if let Some((at, answer)) = &*last
            && now.saturating_duration_since(*at) < age
        {
            return Ok((*at, Arc::clone(answer)));
        }
        let (at, answer) = last.insert((now, Arc::new(read().await?)));
        Ok((*at, Arc::clone(answer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_read_once_for_all_who_ask_in_a_moment_and_again_afterwards() {
        let fresh = Fresh::default();
        let (start, age) = (Instant::now(), Duration::from_millis(100));
        for (at, given, expected) in [
            (0, Err("a failure"), Err("a failure")),
            (1, Ok(1), Ok(1)),
            (99, Ok(2), Ok(1)),
            (101, Ok(3), Ok(3)),
            (201, Err("a failure"), Err("a failure")),
            (202, Ok(4), Ok(4)),
        ] {
            let now = start + Duration::from_millis(at);
            let found = fresh.get(age, now, async || given).await;
            assert_eq!(found.map(|(_, answer)| *answer), expected, "at {at} ms");
        }
    }
}
