//! What disks a VM is to have.
//! Out of scope: making them.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A VM's disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// What the root disk is made of: a raw file, of which each VM gets a copy, or a block device, which is used as it is, read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// How large the copy is to be, in bytes; none: as large as the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The copy outlives the VM and what replaces it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub persistent: bool,
    /// Further disks, used where they lie.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<FurtherDisk>,
}

/// A disk beside the root disk: a raw file or a block device, used where it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FurtherDisk {
    /// Where.
    pub path: PathBuf,
    /// The guest may not write to it, so that any number of VMs may have it.
    pub read_only: bool,
}

impl Storage {
    /// Nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it has a disk that one VM at most may have.
    pub fn has_writable_disk(&self) -> bool {
        self.disks.iter().any(|disk| !disk.read_only)
    }
}

/// A number of bytes as people say it, to a tenth: `1.5 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let Some((shift, unit)) = units.into_iter().find(|(shift, _)| self.0 >> shift > 0) else {
            return write!(f, "{} bytes", self.0);
        };
        let (whole, rest) = (self.0 >> shift, self.0 & ((1 << shift) - 1));
        match (u128::from(rest) * 10) >> shift {
            0 => write!(f, "{whole} {unit}"),
            tenths => write!(f, "{whole}.{tenths} {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_words() {
        let said = [0, 1023, 1024, 1536, 10 << 30, u64::MAX].map(|n| Bytes(n).to_string());
        let expected = [
            "0 bytes",
            "1023 bytes",
            "1 KiB",
            "1.5 KiB",
            "10 GiB",
            "16777215.9 TiB",
        ];
        assert_eq!(said, expected);
    }
}
