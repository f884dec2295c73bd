//! An entry of an archive, and the header that describes it.
//! Out of scope: contents; what is accepted (`reader`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

/// The unit of the format.
pub const BLOCK: usize = 512;

/// The largest size in the eleven octal digits of the header.
const OCTAL_LIMIT: u64 = 0o777_7777_7777;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of this size in bytes.
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link with this target.
    Symlink(PathBuf),
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative, without `.` and `..`; empty for the root.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Permissions, at most `0o777`.
    pub mode: u32,
    /// Modification time, in seconds since 1970; the format has no fractions and no negative numbers.
    pub mtime: u64,
}

/// The bytes between the end of a content and the next header.
pub fn padding(size: u64) -> usize {
    let last = (size % BLOCK as u64) as usize;
    (BLOCK - last) % BLOCK
}

impl Entry {
    /// The header, after a header of PAX records if a value does not fit. Users are left out: the receiver sets the owner.
    pub fn encode(&self) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.set_mode(self.mode);
        header.set_mtime(self.mtime);
        header.set_uid(0);
        header.set_gid(0);
        let mut records = Vec::new();
        let mut name = match self.path.as_os_str().is_empty() {
            true => b".".to_vec(),
            false => self.path.as_os_str().as_bytes().to_vec(),
        };
        match &self.kind {
            Kind::File(size) => {
                header.set_entry_type(EntryType::Regular);
                header.set_size(*size);
                if *size > OCTAL_LIMIT {
                    record(&mut records, "size", size.to_string().as_bytes());
                }
            }
            Kind::Directory => {
                header.set_entry_type(EntryType::Directory);
                header.set_size(0);
                name.push(b'/');
            }
            Kind::Symlink(target) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_size(0);
                let target = target.as_os_str().as_bytes();
                if !set_target(&mut header, target) {
                    record(&mut records, "linkpath", target);
                }
            }
        }
        if !set_name(&mut header, &name) {
            record(&mut records, "path", &name);
        }
        header.set_cksum();
        let mut bytes = match records.is_empty() {
            true => Vec::new(),
            false => extension(&records),
        };
        bytes.extend_from_slice(header.as_bytes());
        bytes
    }
}

/// Sets the name, split at a `/` into the fields `prefix` and `name` if necessary. If it does not fit, its beginning is set, for readers
/// without PAX, and the result is false.
fn set_name(header: &mut Header, name: &[u8]) -> bool {
    let Some(fields) = header.as_ustar_mut() else {
        return false;
    };
    if name.len() <= fields.name.len() {
        fields.name[..name.len()].copy_from_slice(name);
        return true;
    }
    // The part after the `/` is neither empty nor longer than its field.
    let first = name.len() - 1 - fields.name.len();
    let last = fields.prefix.len().min(name.len() - 2);
    let split = (first..=last).find(|at| name[*at] == b'/');
    let Some(split) = split else {
        let length = fields.name.len();
        fields.name.copy_from_slice(&name[..length]);
        return false;
    };
    fields.prefix[..split].copy_from_slice(&name[..split]);
    let rest = &name[split + 1..];
    fields.name[..rest.len()].copy_from_slice(rest);
    true
}

fn set_target(header: &mut Header, target: &[u8]) -> bool {
    match header.as_ustar_mut() {
        Some(fields) if target.len() <= fields.linkname.len() => {
            fields.linkname[..target.len()].copy_from_slice(target);
            true
        }
        _ => false,
    }
}

/// Appends a PAX record: `LENGTH KEY=VALUE\n`, where the length includes its own digits.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// The header and the content of PAX records.
fn extension(records: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    set_name(&mut header, b"PaxHeaders/entry");
    header.set_entry_type(EntryType::XHeader);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(records.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(records);
    bytes.resize(bytes.len() + padding(records.len() as u64), 0);
    bytes
}

/// Whether the checksum of a header is correct: the sum of its bytes, with blanks in place of the checksum.
pub fn is_checksum_correct(header: &Header) -> bool {
    let bytes = header.as_bytes();
    let field = 148..156;
    let sum = bytes.iter().enumerate().map(|(at, byte)| match at {
        _ if field.contains(&at) => u32::from(b' '),
        _ => u32::from(*byte),
    });
    header.cksum().is_ok_and(|found| found == sum.sum::<u32>())
}

/// A path for a message, without the root of the archive.
pub fn shown(path: &Path) -> &Path {
    match path.as_os_str().is_empty() {
        true => Path::new(OsStr::new(".")),
        false => path,
    }
}
