//! Values under /proc/sys.
//! Not here: what ought to be.
