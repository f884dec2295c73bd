//! JOINS: the only file that knows every room.
//! Not here: decisions.
