//! Identifies the directory at a path, and detects changes of its content by `stat(2)`.
//! Out of scope: reading manifests.
//!
//! # Why
//! Device and inode number do not identify a directory permanently: the kernel reuses the device number of a file system that was
//! unmounted, and the root of every tmpfs has the same inode number. The creation time of the inode distinguishes them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};

use crate::api::host_group::DirectoryId;
use crate::api::manifest::{is_manifest, resembles_manifest};

/// Types (`statfs(2)`) of file systems with files that can change without an inotify event: network file systems, FUSE, and overlayfs, which
/// does not report writes to its lower directories.
const POLLED_FILE_SYSTEMS: [u32; 17] = [
    0x6969,      // NFS
    0x6573_5546, // FUSE, virtiofs
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x517b,      // SMB
    0x0102_1997, // 9p
    0x794c_7630, // overlayfs
    0x5346_414f, // AFS
    0x6b41_4653, // kAFS
    0x00c3_6400, // Ceph
    0x7375_7245, // Coda
    0x786f_4256, // vboxsf
    0x0116_1970, // GFS2
    0x7461_636f, // OCFS2
    0x0bd0_0bd0, // Lustre
    0x564c,      // NCP
    0xf15f,      // eCryptfs
];

/// Whether the file system of this file may change without an inotify event.
pub fn is_silent(file: &File) -> bool {
    // If statfs(2) fails, the directory is polled.
    rustix::fs::fstatfs(file).map_or(true, |statfs| {
        // The magic numbers have 32 bits, the field may have 64.
        POLLED_FILE_SYSTEMS.contains(&(statfs.f_type as u32))
    })
}

/// Identifies the directory at the path.
///
/// # Errors
/// There is no directory at the path, or statx(2) fails.
pub fn id(dir: &Path) -> io::Result<DirectoryId> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = rustix::fs::statx(CWD, dir, AtFlags::empty(), mask)?;
    if !FileType::from_raw_mode(stat.stx_mode.into()).is_dir() {
        return Err(io::Error::from(rustix::io::Errno::NOTDIR));
    }
    let has_btime = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    let nanoseconds = |time: &rustix::fs::StatxTimestamp| {
        time.tv_sec
            .saturating_mul(1_000_000_000)
            .saturating_add(time.tv_nsec.into())
    };
    Ok(DirectoryId {
        device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        created_ns: has_btime.then(|| nanoseconds(&stat.stx_btime)),
    })
}

/// The state of a directory and its manifests according to `stat(2)`, for detecting changes. Cheap: no file is opened.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Stamp(Vec<(OsString, Option<Inode>)>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inode {
    id: (u64, u64),
    mode: u32,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Reads the stamp of a directory; symbolic links of manifests are followed.
///
/// # Errors
/// The directory cannot be listed.
pub fn stamp(dir: &Path) -> io::Result<Stamp> {
    let mut entries = vec![(OsString::new(), inode(dir))];
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if is_manifest(&name) || resembles_manifest(&name) {
            let inode = inode(&dir.join(&name));
            entries.push((name, inode));
        }
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Stamp(entries))
}

fn inode(path: &Path) -> Option<Inode> {
    let stat = fs::metadata(path).ok()?;
    Some(Inode {
        id: (stat.dev(), stat.ino()),
        mode: stat.mode(),
        size: stat.size(),
        modified: (stat.mtime(), stat.mtime_nsec()),
        changed: (stat.ctime(), stat.ctime_nsec()),
    })
}
