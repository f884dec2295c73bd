//! Finds the file that describes a network, with its drop-in directory, and the program of a plugin.
//! Out of scope: the content of the files.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::json;
use super::network::{Fields, object};
use super::{Error, Network, names};

/// Returns the first file, sorted by file name, that describes the network: of the lists (`.conflist`), then of the single plugins
/// (`.conf`, `.json`), which are deprecated. A file that cannot be read is skipped.
pub(super) fn network(dir: &Path, network: &str) -> Result<Network, Error> {
    names::network(network)?;
    let mut found = Vec::new();
    let mut unreadable = Vec::new();
    let mut candidates: Vec<(FileFormat, PathBuf)> = files(dir, &["conflist", "conf", "json"])?
        .into_iter()
        .map(|path| (FileFormat::of(&path), path))
        .collect();
    candidates.sort();
    for (file_format, path) in candidates {
        match read_name(&path) {
            Ok((name, text)) if name == network => return file_format.load(&path, &text),
            Ok((name, _)) => found.push(name),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read a CNI configuration");
                unreadable.push(with_source(&error));
            }
        }
    }
    found.sort();
    found.dedup();
    Err(Error::NetworkNotFound {
        network: network.to_owned(),
        searched: dir.to_owned(),
        found,
        unreadable,
    })
}

/// The names of the networks in the directory, sorted. A file that cannot be read is an error.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let files = files(dir, &["conflist", "conf", "json"])?;
    let names = files.iter().map(|path| Ok(read_name(path)?.0));
    let mut names = names.collect::<Result<Vec<_>, Error>>()?;
    names.sort();
    names.dedup();
    Ok(names)
}

/// The same without those that cannot be read.
pub(super) fn readable_names(dir: &Path) -> BTreeSet<String> {
    let files = files(dir, &["conflist", "conf", "json"]).unwrap_or_default();
    let names = files
        .iter()
        .filter_map(|path| Some(read_name(path).ok()?.0));
    names.collect()
}

/// The program of a plugin: the first regular file with its name.
pub(super) fn program(dirs: &[PathBuf], plugin: &str) -> Result<PathBuf, Error> {
    let candidates = dirs.iter().map(|dir| dir.join(plugin));
    let mut programs = candidates.filter(|path| path.is_file() && names::is_plugin(plugin));
    programs.next().ok_or_else(|| Error::PluginNotFound {
        plugin: plugin.to_owned(),
        searched: dirs.to_vec(),
    })
}

/// The format of a file, in order of precedence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum FileFormat {
    /// A configuration list.
    List,
    /// The configuration of one plugin with the name of the network, as before version 1.0.0 of the spec.
    Single,
}

impl FileFormat {
    fn of(path: &Path) -> Self {
        match path.extension().is_some_and(|suffix| suffix == "conflist") {
            true => Self::List,
            false => Self::Single,
        }
    }

    fn load(self, path: &Path, text: &str) -> Result<Network, Error> {
        match self {
            Self::List => Network::parse(path, &with_drop_ins(path, text)?),
            Self::Single => Network::parse(path, &single_to_list(path, text)?),
        }
    }
}

/// Appends the plugins of `DIRECTORY/NAME/*.conf` to a list. `loadOnlyInlinedPlugins` is set, so that a later reader of the text does
/// not append them again.
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
        plugins.push(
            valid.map_err(|error| Error::unparsable(&path, "a plugin's configuration", &error))?,
        );
    }
    object.insert("plugins".to_owned(), json::raw(&plugins));
    object.insert("loadOnlyInlinedPlugins".to_owned(), json::raw(&true));
    Ok(json::text(&object))
}

/// Converts the configuration of a single plugin to a list with one plugin.
fn single_to_list(path: &Path, text: &str) -> Result<String, Error> {
    let plugin = object(path, text)?;
    let keys = ["name", "cniVersion"];
    let mut list: json::Object = keys
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), plugin.get(key)?.clone())))
        .collect();
    list.insert("plugins".to_owned(), json::raw(&[&plugin]));
    Ok(json::text(&list))
}

/// The network name in a file, and the text of the file.
fn read_name(path: &Path) -> Result<(String, String), Error> {
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
    let text =
        String::from_utf8(bytes).map_err(|error| Error::unparsable(path, "UTF-8", &error))?;
    // Editors on Windows write a byte order mark, which is not valid JSON.
    Ok(match text.strip_prefix('\u{feff}') {
        Some(text) => text.to_owned(),
        None => text,
    })
}

/// The files with one of the extensions, sorted; empty if the directory does not exist.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let wrap = |error| Error::io("list", dir, error);
    let entries = match fs::read_dir(dir) {
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

/// The message of an error and of its source, on one line.
fn with_source(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Runtime;

    #[test]
    fn a_network_is_complete_with_all_of_its_plugins_and_one_that_cannot_be_read_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let list = |name: &str, plugins: &[&str]| {
            let plugins: Vec<_> = plugins
                .iter()
                .map(|plugin| serde_json::json!({ "type": plugin }))
                .collect();
            let list =
                serde_json::json!({ "cniVersion": "1.0.0", "name": name, "plugins": plugins });
            write(&format!("{name}.conflist"), &list.to_string());
        };
        list("whole", &["bridge"]);
        list("part", &["bridge", "absent"]);
        write("00-broken.conflist", "{");
        write("bridge", "");
        let runtime = Runtime {
            conf_dir: dir.path().to_owned(),
            bin_dirs: vec![dir.path().to_owned()],
            ..Runtime::new()
        };
        assert!(runtime.networks().is_err());
        let found: Vec<String> = runtime.complete_networks().into_iter().collect();
        assert_eq!(found, ["whole"]);
        let nowhere = Runtime {
            conf_dir: dir.path().join("nowhere"),
            ..runtime
        };
        assert!(nowhere.complete_networks().is_empty());
    }
}
