//! Routes.
//! Not here: what ought to be.
