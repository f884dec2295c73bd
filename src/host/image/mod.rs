//! Disk images: type and format detection, copies, and locks.
//! Out of scope: the assignment of images to VMs.
//!
//! | file | purpose |
//! |---|---|
//! | `copy` | copies an image; shares blocks if the file system can, otherwise preserves holes |
//! | `hold` | locks an image, so that there are never two writers |

mod copy;
mod hold;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::Error;
use super::error::absent_is_none;
use super::named::Named;

pub use copy::{Copy, How, Progress, copy, grow};
pub use hold::{Use, hold, hold_file, is_written, lock};

/// The sector size in bytes; every VMM counts the size of a disk in sectors.
pub const SECTOR: u64 = 512;

/// What exists at a path where an image is expected. Symbolic links are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent,
    /// A regular file, and the version of its content.
    File(Edition),
    /// A block device.
    Device,
    /// Another type, as text: `a directory`.
    Other(&'static str),
}

/// Identifies a version of a file's content by its length in bytes and its mtime in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Edition {
    /// Bytes.
    pub length: u64,
    /// Nanoseconds since 1970.
    pub modified: i128,
}

impl Edition {
    fn of(found: &std::fs::Metadata) -> Self {
        Self {
            length: found.len(),
            modified: i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec()),
        }
    }
}

/// Determines what exists at `path`.
pub fn inspect(path: &Path) -> Result<Found, Error> {
    classify(path, std::fs::metadata(path))
}

/// The same for an opened file; `path` is its path in errors.
pub fn inspect_file(named: &Named, path: &Path) -> Result<Found, Error> {
    classify(path, named.metadata())
}

/// The same for a path in a directory of the daemon, without following a symbolic link.
pub fn inspect_nofollow(path: &Path) -> Result<Found, Error> {
    classify(path, std::fs::symlink_metadata(path))
}

fn classify(path: &Path, looked: io::Result<std::fs::Metadata>) -> Result<Found, Error> {
    let metadata = looked.map_err(|error| Error::io("stat", path.display().to_string(), error));
    let Some(found) = absent_is_none(metadata)? else {
        return Ok(Found::Absent);
    };
    let kind = found.file_type();
    Ok(if kind.is_file() {
        Found::File(Edition::of(&found))
    } else if kind.is_block_device() {
        Found::Device
    } else if kind.is_dir() {
        Found::Other("a directory")
    } else {
        Found::Other("not a regular file")
    })
}

/// The size of an open file in bytes; 0 for a block device.
pub fn length(file: &File) -> Result<u64, Error> {
    let found = file.metadata();
    let found = found.map_err(|error| Error::io("stat", "an open image", error))?;
    Ok(found.len())
}

/// The format of a file that is not a raw image, by its first bytes: `a qcow2 image`. `None`: it may be a raw image.
///
/// # Why
/// A VMM configured with `raw` shows a guest such a file's header instead of a disk; in a VMM that probes the format, a
/// guest can write another header and so make the VMM open any file of the host.
pub fn format(named: &Named, path: &Path) -> Result<Option<&'static str>, Error> {
    let mut header = Vec::new();
    // Does not wait for a lease that the file's owner holds.
    let read = named
        .open()
        .and_then(|file| file.take(128).read_to_end(&mut header));
    read.map_err(|error| Error::io("read", path.display().to_string(), error))?;
    Ok(format_of(&header))
}

/// Magic numbers from the specifications of the formats; of compressed files from `file(1)`.
fn format_of(header: &[u8]) -> Option<&'static str> {
    const VDI: [u8; 4] = 0xbeda_107f_u32.to_le_bytes();
    let magics: [(usize, &[u8], &str); 13] = [
        (0, b"QFI\xfb", "a qcow2 image"),
        (0, b"QED\0", "a QED image"),
        (0, b"KDMV", "a VMDK image"),
        (
            0,
            b"# Disk DescriptorFile",
            "the descriptor of a VMDK image",
        ),
        (0, b"vhdxfile", "a VHDX image"),
        (0, b"conectix", "a VHD image"),
        (0x40, &VDI, "a VDI image"),
        (0, b"\x1f\x8b", "compressed with gzip"),
        (0, b"\xfd7zXZ\0", "compressed with xz"),
        (0, b"\x28\xb5\x2f\xfd", "compressed with zstd"),
        (0, b"\x04\x22\x4d\x18", "compressed with lz4"),
        (0, b"BZh", "compressed with bzip2"),
        (0, b"PK\x03\x04", "a zip archive"),
    ];
    let has_magic =
        |at: usize, magic: &[u8]| header.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let found = magics
        .into_iter()
        .find(|(at, magic, _)| has_magic(*at, magic));
    found.map(|(_, _, name)| name)
}

/// Opens a file of the daemon, without following a symbolic link.
fn open_nofollow(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_is_not_raw_is_detected_by_its_first_bytes() {
        assert_eq!(format_of(b"QFI\xfb\0\0\0\x03"), Some("a qcow2 image"));
        let mut vdi = vec![b'<'; 0x40];
        vdi.extend(0xbeda_107f_u32.to_le_bytes());
        assert_eq!(format_of(&vdi), Some("a VDI image"));
        assert_eq!(format_of(b""), None);
        assert_eq!(format_of(&[0; 128]), None);
        assert_eq!(format_of(b"LUKS\xba\xbe"), None, "raw, with any content");
    }

    #[test]
    fn file_types_are_detected() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(inspect(&dir.path().join("none")).unwrap(), Found::Absent);
        assert_eq!(inspect(dir.path()).unwrap(), Found::Other("a directory"));
        assert_eq!(
            inspect(Path::new("/dev/null")).unwrap(),
            Found::Other("not a regular file")
        );
    }
}
