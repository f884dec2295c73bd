//! The memory for the output of all commands in the background.
//! Out of scope: the output.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::guest::agent::error::Error;

/// The maximum size of all buffers together, in bytes.
pub const TOTAL_RING_BYTES: usize = 256 << 20;

/// The memory that is reserved, in bytes.
#[derive(Debug, Default)]
pub struct Budget(Mutex<usize>);

/// Memory for the output of a command. It is released when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Reserves memory.
    ///
    /// # Errors
    /// 503: there is not enough.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Result<Reservation, Error> {
        let mut reserved = self.0.lock();
        if *reserved + bytes > TOTAL_RING_BYTES {
            let text = format!(
                "buffers for output take {reserved} of {TOTAL_RING_BYTES} bytes, and {bytes} more were requested: remove commands that have ended"
            );
            return Err(Error::unavailable(text));
        }
        *reserved += bytes;
        Ok(Reservation {
            budget: Arc::clone(self),
            bytes,
        })
    }
}

impl Reservation {
    /// Releases what is not used.
    pub fn shrink(&mut self, bytes: usize) {
        let unused = self.bytes.saturating_sub(bytes);
        *self.budget.0.lock() -= unused;
        self.bytes -= unused;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[test]
    fn memory_that_is_reserved_is_released_in_parts_or_at_once() {
        let budget = Arc::new(Budget::default());
        let mut first = budget.reserve(TOTAL_RING_BYTES - 10).expect("memory");
        let error = budget.reserve(11).expect_err("no memory");
        assert_eq!(error.status, StatusCode::SERVICE_UNAVAILABLE);
        let second = budget.reserve(10).expect("memory");
        first.shrink(100);
        first.shrink(200);
        assert_eq!(*budget.0.lock(), 110);
        drop((first, second));
        assert_eq!(*budget.0.lock(), 0);
    }
}
