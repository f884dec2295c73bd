//! EXAMINES: whether this host can do what is asked of it, and what to do if not.
//! Not here: mending anything.
