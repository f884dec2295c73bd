//! SPEAKS: words and tables for people.
//! Not here: anything the daemon decides.
