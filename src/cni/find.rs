//! Finding the file that describes a network, and what the drop-in folder beside it adds; finding a plugin's program.
//! Out of scope: the content of the files.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::json;
use super::network::{Fields, object};
use super::{Error, Network, names};

/// The first file of the folder, sorted by name, that has the name: of the lists (`.conflist`) and then, for they are
/// deprecated, of the single plugins (`.conf`, `.json`).
///
/// A file that cannot be read at all is no reason to do without a network that another file describes.
pub(super) fn network(folder: &Path, network: &str) -> Result<Network, Error> {
    names::network(network)?;
    let mut found = Vec::new();
    let mut unreadable = Vec::new();
    let mut candidates: Vec<(Shape, PathBuf)> = files(folder, &["conflist", "conf", "json"])?
        .into_iter()
        .map(|path| (Shape::of(&path), path))
        .collect();
    candidates.sort();
    for (shape, path) in candidates {
        match peek(&path) {
            Ok((name, text)) if name == network => return shape.load(&path, &text),
            Ok((name, _)) => found.push(name),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a CNI configuration cannot be read");
                unreadable.push(whole(&error));
            }
        }
    }
    found.sort();
    found.dedup();
    Err(Error::NoSuchNetwork {
        network: network.to_owned(),
        searched: folder.to_owned(),
        found,
        unreadable,
    })
}

/// The names that the folder's files have, sorted. A file that cannot be read is an error.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let files = files(folder, &["conflist", "conf", "json"])?;
    let names = files.iter().map(|path| Ok(peek(path)?.0));
    let mut names = names.collect::<Result<Vec<_>, Error>>()?;
    names.sort();
    names.dedup();
    Ok(names)
}

/// The program of a plugin: the first regular file of that name.
pub(super) fn program(folders: &[PathBuf], plugin: &str) -> Result<PathBuf, Error> {
    let candidates = folders.iter().map(|folder| folder.join(plugin));
    let mut programs = candidates.filter(|path| path.is_file() && names::is_plugin(plugin));
    programs.next().ok_or_else(|| Error::NoSuchPlugin {
        plugin: plugin.to_owned(),
        searched: folders.to_vec(),
    })
}

/// What a file holds; in the order in which they are tried.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    /// A configuration list.
    List,
    /// One plugin's configuration with the name of a network in it, as before 1.0.0.
    Single,
}

impl Shape {
    fn of(path: &Path) -> Self {
        match path.extension().is_some_and(|suffix| suffix == "conflist") {
            true => Self::List,
            false => Self::Single,
        }
    }

    fn load(self, path: &Path, text: &str) -> Result<Network, Error> {
        match self {
            Self::List => Network::parse(path, &with_drop_ins(path, text)?),
            Self::Single => Network::parse(path, &listed(path, text)?),
        }
    }
}

/// A list's text with the plugins of `FOLDER/NAME/*.conf` at its end. They are in it for good: whoever reads the text later
/// must not add them again, so it says `loadOnlyInlinedPlugins`.
fn with_drop_ins(path: &Path, text: &str) -> Result<String, Error> {
    let mut object = object(path, text)?;
    let fields = Fields {
        path,
        object: &object,
    };
    let mut plugins = fields.raw_plugins()?.unwrap_or_default();
    let drop_ins = match fields.flag("loadOnlyInlinedPlugins")? {
        true => Vec::new(),
        false => files(&path.with_file_name(fields.name()?), &["conf"])?,
    };
    if drop_ins.is_empty() {
        return Ok(text.to_owned());
    }
    for path in drop_ins {
        let plugin = read(&path)?;
        let valid = serde_json::from_str(&plugin);
        plugins
            .push(valid.map_err(|error| Error::not_a(&path, "a plugin's configuration", &error))?);
    }
    object.insert("plugins".to_owned(), json::raw(&plugins));
    object.insert("loadOnlyInlinedPlugins".to_owned(), json::raw(&true));
    Ok(json::text(&object))
}

/// A single plugin's text as a list of one.
fn listed(path: &Path, text: &str) -> Result<String, Error> {
    let plugin = object(path, text)?;
    let kept = ["name", "cniVersion"];
    let mut list: json::Object = kept
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), plugin.get(key)?.clone())))
        .collect();
    list.insert("plugins".to_owned(), json::raw(&[&plugin]));
    Ok(json::text(&list))
}

/// A file's network name and text.
fn peek(path: &Path) -> Result<(String, String), Error> {
    let text = read(path)?;
    let object = object(path, &text)?;
    let fields = Fields {
        path,
        object: &object,
    };
    Ok((fields.name()?, text))
}

fn read(path: &Path) -> Result<String, Error> {
    let bytes = fs::read(path).map_err(|error| Error::io("read", path, error))?;
    let text = String::from_utf8(bytes).map_err(|error| Error::not_a(path, "UTF-8", &error))?;
    // Editors on Windows write a byte order mark at the beginning, which is not valid JSON.
    Ok(match text.strip_prefix('\u{feff}') {
        Some(text) => text.to_owned(),
        None => text,
    })
}

/// The files with one of the extensions, sorted; none when the folder is absent.
fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let wrap = |error| Error::io("list", folder, error);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrap(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(wrap)?.path();
        let extension = path.extension().and_then(OsStr::to_str);
        if extension.is_some_and(|e| extensions.contains(&e)) && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// An error with its cause, in one line.
fn whole(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
