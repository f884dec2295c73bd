//! TAP devices.
//! Not here: what ought to be.
