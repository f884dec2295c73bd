//! How a VM's VMM is started and stopped.
//! Not here: doing it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// From its start to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// The VMM's program, an absolute path. None: by its usual name in the daemon's `PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// Words for the end of the kernel's command line: printable ASCII, at most [`MAX_CMDLINE`] bytes, never `ip=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// QEMU only.
    #[serde(default, skip_serializing_if = "Board::is_default")]
    pub board: Board,
}

/// The machine that QEMU makes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Board {
    /// `-M microvm`: virtio over MMIO, no firmware to speak of, boots fastest.
    #[default]
    Microvm,
    /// `-M q35`: virtio over PCI, a PC with a chipset of 2007.
    Q35,
}

impl Board {
    /// Nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Bytes of a user's kernel words. A kernel takes 2047 in all (x86, `COMMAND_LINE_SIZE`), ours and the VMM's among them.
pub const MAX_CMDLINE: usize = 1024;

impl Life {
    /// Nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
