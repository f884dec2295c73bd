//! x
//! Out of scope: y
