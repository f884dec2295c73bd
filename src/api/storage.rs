//! The desired disks of a VM.
//! Out of scope: creating them.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A VM's disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Storage {
    /// The image of the root disk: a raw file, of which each VM has a copy, or a block device, which is used directly and read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub image: Option<PathBuf>,
    /// The size of the copy in bytes; `None` for the size of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The copy is kept when the VM is replaced or deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub persistent: bool,
    /// Additional disks, used in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<AdditionalDisk>,
}

/// An additional disk: a raw file or a block device, used in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AdditionalDisk {
    /// The path of the file or device.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// The guest may not write to it, so any number of VMs may use it.
    pub read_only: bool,
}

impl Storage {
    /// Whether nothing is set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an additional disk is writable, which at most one VM may use.
    pub fn has_writable_disk(&self) -> bool {
        self.disks.iter().any(|disk| !disk.read_only)
    }
}

/// A number of bytes, displayed with a binary unit and one decimal: `1.5 GiB`.
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
    fn bytes_are_displayed_with_a_unit() {
        let displayed = [0, 1023, 1024, 1536, 10 << 30, u64::MAX].map(|n| Bytes(n).to_string());
        let expected = [
            "0 bytes",
            "1023 bytes",
            "1 KiB",
            "1.5 KiB",
            "10 GiB",
            "16777215.9 TiB",
        ];
        assert_eq!(displayed, expected);
    }
}
