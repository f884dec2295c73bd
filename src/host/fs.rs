//! Files and directories, written whole or not at all.
//! Not here: what ought to be.
