//! The endpoints for files.
//! Out of scope: commands, shells.
