//! Tracked flows: list them, delete one.
//! Not here: what ought to be.
