//! Forwarding between two listeners with TLS.
//! Out of scope: the daemon.
