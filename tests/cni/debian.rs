//! Debian's own plugins in a private kernel, and the configurations that we ship.
//! Not here: plugins of ours.
