//! WAITS: which key is looked at next, and when.
//! Not here: what a key means.
