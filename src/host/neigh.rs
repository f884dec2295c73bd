//! Neighbour entries.
//! Not here: what ought to be.
