//! Trees survive an archive, and no archive changes anything outside of its destination.
//! Out of scope: HTTP.

mod hostile;
mod round_trip;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file: type and permissions, modification time in seconds, and content or target.
pub type Found = (u32, i64, Vec<u8>);

/// All files below a directory, without the directory itself.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, Found> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("a file");
            let content = match metadata.file_type() {
                kind if kind.is_dir() => {
                    pending.push(path.clone());
                    Vec::new()
                }
                kind if kind.is_symlink() => {
                    let target = fs::read_link(&path).expect("a link");
                    target.into_os_string().into_encoded_bytes()
                }
                kind if kind.is_file() => fs::read(&path).expect("a file"),
                _ => Vec::new(),
            };
            let path = path.strip_prefix(root).expect("below").to_owned();
            found.insert(path, (metadata.mode(), metadata.mtime(), content));
        }
    }
    found
}
