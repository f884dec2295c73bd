//! Trees survive an archive, and no archive changes anything outside of its destination.
//! Out of scope: HTTP.

mod hostile;
mod round_trip;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use futures::TryStreamExt;

use super::beneath::Beneath;
use super::exclude::Patterns;
use super::{Root, stream, write};

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

/// An archive of what is below a directory.
pub fn archive(tree: &Path, exclude: &[&str]) -> Vec<u8> {
    let exclude: Vec<_> = exclude.iter().map(|&pattern| pattern.to_owned()).collect();
    let exclude = Patterns::parse(&exclude).expect("patterns");
    let root = Beneath::open(tree).expect("a directory");
    let collect = async {
        let write = move |output: &mut _| write(&root, Root::Omitted, &exclude, output);
        let items: Vec<_> = stream::written_by(write).try_collect().await?;
        Ok::<_, std::io::Error>(items.concat())
    };
    // The caller may be a task of a runtime, which cannot block.
    let run = || {
        tokio::runtime::Builder::new_current_thread()
            .build()?
            .block_on(collect)
    };
    let collected = std::thread::scope(|scope| scope.spawn(run).join());
    collected.expect("no panic").expect("an archive")
}
