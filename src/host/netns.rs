//! Network namespaces: create, enter, open, delete.
//! Not here: what ought to be.
