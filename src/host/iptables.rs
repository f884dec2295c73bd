//! The host's packet filter: restore rules in one transaction, read them back.
//! Not here: what ought to be.
