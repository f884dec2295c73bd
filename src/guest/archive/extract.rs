//! Extracts an archive to a directory.
//! Out of scope: how names are resolved (`beneath`).

use std::io::BufRead;
use std::path::PathBuf;

use super::beneath::Beneath;
use super::draft::Attributes;
use super::entry::{Entry, Kind};
use super::reader::Reader;
use super::{Error, Limits, Mtime, Owner};

/// The maximum size of the paths of all new directories, in bytes: they are kept until the end.
const DIRECTORIES_LIMIT: usize = 64 << 20;

/// What is extracted, and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extraction {
    /// What the archive may contain.
    pub limits: Limits,
    /// Who owns new files.
    pub owner: Owner,
    /// The permissions of files, in place of those of the archive.
    pub mode: Option<u32>,
}

/// A directory that was created.
struct Created {
    path: PathBuf,
    mode: u32,
    mtime: Mtime,
}

/// Extracts the archive `input` to an existing directory. Returns the attributes of the root, if the archive has an entry for it.
///
/// An existing directory keeps its permissions and its time; those of a new one are set at the end, because files change the time, and
/// a directory may be read-only. A file or a link replaces a file or a link. After an error, earlier entries stay.
pub fn extract(
    input: impl BufRead,
    root: &mut Beneath,
    extraction: &Extraction,
) -> Result<Option<(u32, Mtime)>, Error> {
    let mut reader = Reader::new(input, extraction.limits);
    let mut created = Vec::new();
    let mut paths = 0;
    let mut of_root = None;
    while let Some(entry) = reader.next_entry()? {
        let mtime = Mtime {
            seconds: i64::try_from(entry.mtime).unwrap_or(i64::MAX),
            nanoseconds: 0,
        };
        if entry.path.as_os_str().is_empty() {
            of_root = Some((entry.mode, mtime));
            continue;
        }
        if add(&mut reader, root, extraction, &entry, mtime)? {
            paths += entry.path.as_os_str().len();
            if paths > DIRECTORIES_LIMIT {
                return Err(Error::Limit {
                    limit: DIRECTORIES_LIMIT as u64,
                    unit: "bytes of names",
                });
            }
            created.push(Created {
                path: entry.path,
                mode: entry.mode,
                mtime,
            });
        }
    }
    // Those within others first: their parents may become unreadable.
    for dir in created.iter().rev() {
        root.set_dir(&dir.path, dir.mode, Some(dir.mtime))?;
    }
    Ok(of_root)
}

/// Creates one entry; true for a new directory.
fn add(
    reader: &mut Reader<impl BufRead>,
    root: &mut Beneath,
    extraction: &Extraction,
    entry: &Entry,
    mtime: Mtime,
) -> Result<bool, Error> {
    let attributes = Attributes {
        mode: Some(extraction.mode.unwrap_or(entry.mode)),
        mtime: Some(mtime),
        owner: extraction.owner,
    };
    match &entry.kind {
        Kind::Directory => return root.make_dir(&entry.path, extraction.owner),
        Kind::Symlink(target) => root.link(&entry.path, target, attributes)?,
        Kind::File(_) => {
            let mut draft = root.draft(&entry.path, extraction.owner)?;
            let filled = draft.fill(reader);
            filled
                .map_err(|error| Error::file("write", &entry.path, error))?
                .map_err(Error::Stream)?;
            root.commit(draft, &entry.path, attributes)?;
        }
    }
    Ok(false)
}
