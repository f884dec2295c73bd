//! `-f FILE|DIR|-`: reads the texts of manifests; the daemon parses them.
//! Out of scope: YAML.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::failure::Failure;
use crate::api::manifest::is_manifest;
use crate::api::view::Source;
use crate::wire::limits::MANIFEST_LIMIT;

/// Reads all manifests in the given order; those of a directory are sorted by name.
pub fn read_all(files: &[PathBuf]) -> Result<Vec<Source>, Failure> {
    let mut sources = Vec::new();
    for file in files {
        let read_error = |error| Failure::one(format!("cannot read {}: {error}", file.display()));
        if file.as_os_str() == "-" {
            sources.push(source("stdin", io::stdin().lock()).map_err(read_error)?);
        } else if file.is_dir() {
            sources.extend(read_directory(file).map_err(read_error)?);
        } else {
            sources.push(manifest(file).map_err(read_error)?);
        }
    }
    match sources.is_empty() {
        false => Ok(sources),
        true => Err(Failure::one("no *.yaml or *.yml files found")),
    }
}

fn read_directory(dir: &Path) -> io::Result<Vec<Source>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if is_manifest(&entry.file_name()) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| manifest(path)).collect()
}

fn manifest(path: &Path) -> io::Result<Source> {
    source(&path.display().to_string(), File::open(path)?)
}

/// Reads at most one byte more than the limit, which is enough to detect that it is exceeded.
fn source(name: &str, reader: impl Read) -> io::Result<Source> {
    let mut text = String::new();
    let limit = MANIFEST_LIMIT as u64 + 1;
    reader.take(limit).read_to_string(&mut text)?;
    match text.len() > MANIFEST_LIMIT {
        false => Ok(Source {
            name: name.to_owned(),
            text,
        }),
        true => Err(io::Error::other(format!(
            "the file is larger than {MANIFEST_LIMIT} bytes"
        ))),
    }
}
