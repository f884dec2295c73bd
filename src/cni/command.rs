//! The operations of a plugin.
//! Out of scope: running a plugin (`invoke`).

use std::fmt;

/// An operation of a plugin (spec, section 2, CNI operations).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container to a network.
    Add,
    /// Detach a container from a network.
    Del,
    /// Check that an attachment is as ADD created it.
    Check,
    /// Remove the resources of all attachments that are not in a list.
    Gc,
    /// Report whether the plugin can serve an ADD.
    Status,
    /// Report the supported versions of the spec.
    Version,
}

impl Command {
    /// The value of `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
