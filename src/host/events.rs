//! What the kernel tells of changes: rtnetlink and nftables multicasts of every namespace we can see.
//! Not here: what ought to be.
