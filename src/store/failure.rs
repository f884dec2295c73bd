//! How a write to the database fails.
//! Out of scope: the reaction to it (`writer`).

/// Why a batch is not known to be durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The disk refused the batch; the next one may succeed.
    Refused(String),
    /// The write failed in a way that leaves the content of the disk unknown until the database is opened again. No more batches are sent.
    Unknown(String),
    /// The disk did not answer in time. No more batches are sent.
    TimedOut,
}
