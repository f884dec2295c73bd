//! POSIX ACLs of files: grant access to one more user, and revoke it.
//! Out of scope: which user (`crate::reconcile::vmm`).
//!
//! The format is that of the attribute `system.posix_acl_access` (include/uapi/linux/posix_acl_xattr.h): a version, then entries of tag,
//! permissions and id, ordered by tag and id. The mask limits all entries except owner and others, and the mode shows it as the group
//! bits.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

const NAME: &str = "system.posix_acl_access";
const VERSION: u32 = 2;
const READ_WRITE: u16 = 6;
/// The kernel's maximum attribute size, in bytes.
const MAX_SIZE: usize = 64 << 10;

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: u16,
    id: u32,
    permissions: u16,
}

/// The attribute; `None`: the file has only mode bits.
pub fn get(file: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; MAX_SIZE];
    match rustix::fs::fgetxattr(file, NAME, &mut bytes[..]) {
        Ok(length) => {
            bytes.truncate(length);
            Ok(Some(bytes))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Restores the attribute returned by [`get`].
pub fn restore(file: impl AsFd, before: Option<&[u8]>) -> io::Result<()> {
    match before {
        Some(bytes) => Ok(rustix::fs::fsetxattr(
            file,
            NAME,
            bytes,
            XattrFlags::empty(),
        )?),
        None => match rustix::fs::fremovexattr(file, NAME) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        },
    }
}

/// Whether the attribute has an entry for this user.
pub fn has_user(attribute: Option<&[u8]>, user: u32) -> bool {
    let entries = attribute.and_then(parse).unwrap_or_default();
    entries
        .iter()
        .any(|entry| (entry.tag, entry.id) == (USER, user))
}

/// Grants one more user read and write access to the file, given its current mode and attribute.
pub fn grant(file: impl AsFd, mode: u32, attribute: Option<&[u8]>, user: u32) -> io::Result<()> {
    let entries = match attribute {
        Some(bytes) => parse(bytes).ok_or(io::ErrorKind::InvalidData)?,
        None => from_mode(mode),
    };
    let bytes = write(&with_user(entries, user));
    Ok(rustix::fs::fsetxattr(
        file,
        NAME,
        &bytes,
        XattrFlags::empty(),
    )?)
}

fn from_mode(mode: u32) -> Vec<Entry> {
    let entry = |tag, shift: u32| Entry {
        tag,
        id: u32::MAX,
        permissions: (mode >> shift & 7) as u16,
    };
    vec![entry(OWNER, 6), entry(GROUP, 3), entry(OTHERS, 0)]
}

/// Adds the user's entry, and a mask that does not limit it. A wider mask would enable permissions of other entries that the old
/// one masked, so those entries are first reduced to the old mask.
fn with_user(mut entries: Vec<Entry>, user: u32) -> Vec<Entry> {
    let mask = entries
        .iter()
        .find(|entry| entry.tag == MASK)
        .map_or(7, |mask| mask.permissions);
    entries.retain(|entry| entry.tag != MASK && (entry.tag, entry.id) != (USER, user));
    for entry in &mut entries {
        if ![OWNER, OTHERS].contains(&entry.tag) {
            entry.permissions &= mask;
        }
    }
    entries.push(Entry {
        tag: USER,
        id: user,
        permissions: READ_WRITE,
    });
    let masked = entries
        .iter()
        .filter(|entry| ![OWNER, OTHERS].contains(&entry.tag));
    let all = masked.fold(0, |all, entry| all | entry.permissions);
    entries.push(Entry {
        tag: MASK,
        id: u32::MAX,
        permissions: all,
    });
    entries.sort_unstable();
    entries
}

fn parse(bytes: &[u8]) -> Option<Vec<Entry>> {
    let (version, rest) = bytes.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || rest.len() % 8 != 0 {
        return None;
    }
    let entry = |bytes: &[u8]| {
        let short = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        Some(Entry {
            tag: short(0)?,
            permissions: short(2)?,
            id: u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?),
        })
    };
    rest.chunks(8).map(entry).collect()
}

fn write(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for entry in entries {
        bytes.extend(entry.tag.to_le_bytes());
        bytes.extend(entry.permissions.to_le_bytes());
        bytes.extend(entry.id.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_added_user_gains_permissions() {
        let simple = with_user(from_mode(0o640), 70_000);
        let permissions_of = |entries: &[Entry], tag, id| {
            let found = entries
                .iter()
                .find(|entry| (entry.tag, entry.id) == (tag, id));
            found.map(|entry| entry.permissions)
        };
        let none = u32::MAX;
        assert_eq!(permissions_of(&simple, USER, 70_000), Some(6));
        assert_eq!(permissions_of(&simple, GROUP, none), Some(4));
        assert_eq!(permissions_of(&simple, MASK, none), Some(6));
        assert_eq!(permissions_of(&simple, OTHERS, none), Some(0));
        // A mask that limits another user's entry.
        let entry = |tag, id, may| Entry {
            tag,
            id,
            permissions: may,
        };
        let masked = vec![
            entry(OWNER, none, 6),
            entry(USER, 4321, 7),
            entry(GROUP, none, 6),
            entry(MASK, none, 4),
            entry(OTHERS, none, 4),
        ];
        let bytes = write(&masked);
        assert_eq!(parse(&bytes), Some(masked.clone()));
        let wider = with_user(masked, 70_000);
        assert_eq!(
            permissions_of(&wider, USER, 4321),
            Some(4),
            "not more than before"
        );
        assert_eq!(permissions_of(&wider, GROUP, none), Some(4));
        assert_eq!(with_user(wider.clone(), 70_000), wider, "idempotent");
        assert!(has_user(Some(&write(&wider)), 70_000) && !has_user(Some(&bytes), 70_000));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(&bytes[..9]), None);
    }
}
