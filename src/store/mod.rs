//! REMEMBERS: the only door to the database.
//! Not here: the kernel, decisions.
