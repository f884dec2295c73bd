//! Disk images: what one is, copies of it, and who uses it.
//! Out of scope: which VM is to have which.
//!
//! | file | what it does |
//! |---|---|
//! | `copy` | a copy that shares blocks where it can and keeps holes where it cannot |
//! | `hold` | never two writers |

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
pub use hold::{Use, hold, hold_named, is_written};

/// Bytes; every VMM counts a disk in these.
pub const SECTOR: u64 = 512;

/// What exists at a path where an image is expected. Symbolic links are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent,
    /// A file, and which edition of it.
    File(Edition),
    /// A block device.
    Device,
    /// Something else: `a directory`.
    Other(&'static str),
}

/// Tells a file's content from the one before: its length in bytes, and when it was last written to, in nanoseconds since 1970.
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

/// Looks what is there.
pub fn look(path: &Path) -> Result<Found, Error> {
    judge(path, std::fs::metadata(path))
}

/// Looks what was opened; `path` is what it is called.
pub fn look_at_named(named: &Named, path: &Path) -> Result<Found, Error> {
    judge(path, named.metadata())
}

/// The same for a place that is ours: a symbolic link there is none of ours.
pub fn look_at_ours(path: &Path) -> Result<Found, Error> {
    judge(path, std::fs::symlink_metadata(path))
}

fn judge(path: &Path, looked: io::Result<std::fs::Metadata>) -> Result<Found, Error> {
    let looked = looked.map_err(|error| Error::io("look at", path.display().to_string(), error));
    let Some(found) = absent_is_none(looked)? else {
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
        Found::Other("no file with content")
    })
}

/// Bytes in an open file; of a block device 0.
pub fn length(file: &File) -> Result<u64, Error> {
    let found = file.metadata();
    let found = found.map_err(|error| Error::io("look at", "an open image", error))?;
    Ok(found.len())
}

/// Why a file cannot be a raw image, as far as its first bytes tell: `a qcow2 image`. None: it may be one.
///
/// # Why
/// A VMM that is told `raw` shows a guest such a file's header instead of a disk; one that guesses the format can be led by a
/// guest, who writes another header, to open any file of the host.
pub fn format(named: &Named, path: &Path) -> Result<Option<&'static str>, Error> {
    let mut start = Vec::new();
    // A lease of its owner's is not waited for.
    let read = named
        .open()
        .and_then(|file| file.take(128).read_to_end(&mut start));
    read.map_err(|error| Error::io("read", path.display().to_string(), error))?;
    Ok(known_format(&start))
}

/// From the formats' own documents; the compressed ones as `file(1)` knows them.
fn known_format(start: &[u8]) -> Option<&'static str> {
    const VDI: [u8; 4] = 0xbeda_107f_u32.to_le_bytes();
    let magics: [(usize, &[u8], &str); 13] = [
        (0, b"QFI\xfb", "a qcow2 image"),
        (0, b"QED\0", "a QED image"),
        (0, b"KDMV", "a VMDK image"),
        (
            0,
            b"# Disk DescriptorFile",
            "the description of a VMDK image",
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
    let is = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let found = magics.into_iter().find(|(at, magic, _)| is(*at, magic));
    found.map(|(_, _, name)| name)
}

/// For reading, never following a symbolic link at a place that is ours.
fn open_ours(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_is_not_raw_is_known_by_its_first_bytes() {
        assert_eq!(known_format(b"QFI\xfb\0\0\0\x03"), Some("a qcow2 image"));
        let mut vdi = vec![b'<'; 0x40];
        vdi.extend(0xbeda_107f_u32.to_le_bytes());
        assert_eq!(known_format(&vdi), Some("a VDI image"));
        assert_eq!(known_format(b""), None);
        assert_eq!(known_format(&[0; 128]), None);
        assert_eq!(
            known_format(b"LUKS\xba\xbe"),
            None,
            "raw, whatever is in it"
        );
    }

    #[test]
    fn what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look(&dir.path().join("none")).unwrap(), Found::Absent);
        assert_eq!(look(dir.path()).unwrap(), Found::Other("a directory"));
        assert_eq!(
            look(Path::new("/dev/null")).unwrap(),
            Found::Other("no file with content")
        );
    }
}
