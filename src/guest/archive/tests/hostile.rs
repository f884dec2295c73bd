//! No archive changes anything outside of its destination.
//! Out of scope: archives that are as they should be.
