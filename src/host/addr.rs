//! Addresses of links.
//! Not here: what ought to be.
