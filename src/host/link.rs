//! Links: list, create a veth, label, move up.
//! Not here: what ought to be.
