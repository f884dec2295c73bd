//! Processes: start, find again, signal, wait.
//! Not here: what ought to be.
