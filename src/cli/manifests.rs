//! `-f FILE|DIR|-`: reads the texts of manifests, and shows the lines of their problems.
//! Out of scope: parsing, and computing what they would change, which the daemon does.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use super::failure::{self, Failure};
use super::paint::one_line;
use crate::api::manifest::{self, Position, is_manifest};
use crate::api::view::{DiffResult, Source};
use crate::wire::client::ClientError;
use crate::wire::limits::MANIFEST_LIMIT;
use crate::wire::{Client, Detail};

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
    if sources.is_empty() {
        let names: Vec<String> = files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        let message = format!("no *.yaml or *.yml files found in {}", names.join(", "));
        return Err(Failure::one(message));
    }
    // Without this, a command in a pipe that failed would look like success.
    let empty = sources
        .iter()
        .filter(|source| manifest::is_empty(&source.text));
    let empty: Vec<String> = empty
        .map(|source| {
            format!(
                "{} is empty: expected a manifest with `config:`",
                source.name
            )
        })
        .collect();
    match empty.is_empty() {
        true => Ok(sources),
        false => Err(Failure::Failed(empty)),
    }
}

/// The error of a request with these manifests.
pub fn refused(error: &ClientError, sources: &[Source]) -> Failure {
    report(error.causes(), sources)
}

/// The failure with these causes. On a terminal they are printed here, each with the line of the manifest that it refers to.
pub fn report(causes: Vec<String>, sources: &[Source]) -> Failure {
    if !io::stderr().is_terminal() {
        return Failure::Failed(causes);
    }
    let mut previous = None;
    for cause in &causes {
        failure::error(cause);
        let excerpt = excerpt(cause, sources);
        // The line with the number of further problems refers to the last one.
        if let Some(excerpt) = excerpt.as_ref().filter(|_| excerpt != previous) {
            excerpt
                .lines()
                .for_each(|line| failure::note(&one_line(line)));
        }
        previous = excerpt;
    }
    Failure::Reported
}

/// The line that a cause refers to, if it begins with the name of a manifest, a line and a column: `a.yaml:3:7: ...`.
fn excerpt(cause: &str, sources: &[Source]) -> Option<String> {
    let position = |source: &Source| {
        let rest = cause.strip_prefix(&source.name)?.strip_prefix(':')?;
        let (line, rest) = rest.split_once(':')?;
        let (column, _) = rest.split_once(':')?;
        Some(Position {
            line: line.parse().ok()?,
            column: column.parse().ok()?,
        })
    };
    // A name may begin with another name.
    let (source, position) = sources
        .iter()
        .filter_map(|source| Some((source, position(source)?)))
        .max_by_key(|(source, _)| source.name.len())?;
    manifest::excerpt(&source.text, position)
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

/// What applying these manifests would change.
pub async fn difference(
    client: &Client,
    sources: &[Source],
    detail: Detail,
) -> Result<DiffResult, Failure> {
    let result = client.diff(sources.to_vec(), detail).await;
    result.map_err(|error| refused(&error, sources))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_followed_by_its_line_of_the_manifest_that_it_names() {
        let source = |name: &str, text: &str| Source {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        let sources = [
            source("a.yaml", "one\ntwo\n"),
            source("a.yaml:2", "three\n"),
        ];
        let of = |cause: &str| excerpt(cause, &sources);
        assert_eq!(
            of("a.yaml:2:3: config: is odd").unwrap(),
            " 2 | two\n   |   ^"
        );
        assert_eq!(of("a.yaml:2:1:2: x").unwrap(), " 1 | three\n   |  ^");
        for other in [
            "b.yaml:1:1: x",
            "a.yaml: no line",
            "a.yaml:x:1: y",
            "cannot connect",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
