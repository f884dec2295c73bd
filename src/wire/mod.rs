//! CARRIES: HTTP and JSON on a Unix socket.
//! Not here: decisions, words for people.
