//! A network configuration: a name, a version, a list of plugins.
//! Out of scope: where the files are; the input of a plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::json::{self, Object};
use super::{Error, Version, names};

/// A network configuration that was read, checked and can be used. Serialised whole, so that whoever keeps it can DEL with it
/// after the file has changed or gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Kept", into = "Kept")]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The version that is spoken with its plugins: the highest of [`versions`](Self::versions).
    pub cni_version: Version,
    /// All versions that it says to support (`cniVersion`, `cniVersions`) and that we speak, sorted.
    pub versions: Vec<Version>,
    /// CHECK must not be called.
    pub disable_check: bool,
    /// GC must not be called.
    pub disable_gc: bool,
    /// In the order of ADD; never empty.
    pub plugins: Vec<Plugin>,
    /// Where it was read.
    pub path: PathBuf,
    /// The whole list, plugins from the drop-in folder included.
    config: String,
}

/// One plugin's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// The name of its program: `type` in JSON.
    pub name: String,
    /// The capabilities that the configuration declares to be supported.
    pub capabilities: BTreeSet<String>,
    /// As it was written.
    config: String,
}

/// What is kept of a network; the rest is read from it again.
#[derive(Serialize, Deserialize)]
struct Kept {
    path: PathBuf,
    config: String,
}

/// `ipam` of a plugin, as far as reservations are concerned.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Ipam {
    r#type: String,
    #[serde(rename = "dataDir")]
    data_dir: PathBuf,
    subnet: Option<IpNetwork>,
    ranges: Vec<Vec<Range>>,
}

/// Of `ranges`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Range {
    subnet: Option<IpNetwork>,
}

impl Ipam {
    /// The subnets that it says it gives addresses of.
    fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        let ranges = self.ranges.iter().flatten();
        let ranges = ranges.filter_map(|range| range.subnet);
        ranges.chain(self.subnet)
    }
}

/// IPAM plugins that take an `IP` of `CNI_ARGS` for one more address, or for nothing.
const IP_MEANS_ANOTHER: [&str; 3] = ["static", "dhcp", "whereabouts"];

impl Network {
    /// Reads a configuration list: the text of a `.conflist`. `path` is for messages. Keys that the spec does not know, or
    /// leaves to plugins, are carried along.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let object = object(path, text)?;
        let field = Fields {
            path,
            object: &object,
        };
        let name = field.name()?;
        names::network(&name)
            .map_err(|error| Error::bad_config(path, error.to_string(), "a network name"))?;
        let versions = field.versions()?;
        let Some(cni_version) = versions.last().copied() else {
            return Err(unsupported(path, field.declared_versions()?));
        };
        let plugins = field.plugins()?;
        if plugins.is_empty() {
            return Err(Error::bad_config(path, "none", "at least one plugin"));
        }
        Ok(Self {
            name,
            cni_version,
            versions,
            disable_check: field.flag("disableCheck")?,
            disable_gc: field.flag("disableGC")?,
            plugins,
            path: path.to_owned(),
            config: text.to_owned(),
        })
    }

    /// The whole list as JSON text: what is cached, and what [`parse`](Self::parse) reads again.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// Of what the network is: not of spaces, nor of the order of keys, nor of the version, which
    /// [`negotiate`](super::Runtime::negotiate) settles. 32 hexadecimal digits.
    pub fn digest(&self) -> String {
        let value = serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(&self.config);
        let canonical = value.map_or_else(
            // Too deep for serde_json.
            |_| self.config.clone(),
            |mut map| {
                for key in ["cniVersion", "cniVersions", "loadOnlyInlinedPlugins"] {
                    map.remove(key);
                }
                // It sorts keys. A number beyond its types may collide with its neighbour: then a change goes unnoticed.
                json::text(&map.into_iter().map(|(k, v)| (k, json::raw(&v))).collect())
            },
        );
        blake3::hash(canonical.as_bytes()).to_hex()[..32].to_owned()
    }

    /// Every capability that some plugin declares.
    pub fn capabilities(&self) -> BTreeSet<&str> {
        let all = self.plugins.iter().flat_map(|plugin| &plugin.capabilities);
        all.map(String::as_str).collect()
    }

    /// Whether its IPAM plugin can be asked for this address (`IP` of `CNI_ARGS`). Not for one that is in none of its subnets: the
    /// bridge plugin up to 1.5 asks when the bridge is there already, and a new bridge that has lost its only port is of no more use
    /// to it ("could not set bridge's mac").
    pub fn can_be_asked_for(&self, address: IpAddr) -> bool {
        let ipams = self.plugins.iter().map(Plugin::ipam);
        let mut ipams = ipams.filter(|ipam| !ipam.r#type.is_empty());
        ipams.next().is_some_and(|ipam| {
            let mut subnets = ipam.subnets().peekable();
            let is_in = subnets.peek().is_none() || subnets.any(|net| net.contains(address));
            is_in && !IP_MEANS_ANOTHER.contains(&ipam.r#type.as_str())
        })
    }

    /// The same, with one version of its [`versions`](Self::versions) chosen for good.
    pub(super) fn pinned(&self, version: Version) -> Result<Self, Error> {
        let mut object = object(&self.path, &self.config)?;
        object.insert("cniVersion".to_owned(), json::raw(&version));
        object.remove("cniVersions");
        Self::parse(&self.path, &json::text(&object))
    }
}

impl Plugin {
    fn parse(path: &Path, at: &str, config: &str) -> Result<Self, Error> {
        let bad = |found: String, expected: &str| {
            Error::bad_config(path, format!("{at}: {found}"), expected)
        };
        let object: Object = serde_json::from_str(config)
            .map_err(|_| bad(json::excerpt(config), "a plugin's configuration, an object"))?;
        let name: Option<String> =
            json::get(&object, "type").map_err(|found| bad(found, "a plugin's name"))?;
        let name = name.ok_or_else(|| bad("no `type`".to_owned(), "a plugin's name"))?;
        if !names::is_plugin(&name) {
            let found = format!("`type` = \"{}\"", json::excerpt(&name));
            return Err(bad(found, "the name of a file, without `/` and `\\`"));
        }
        let declared: Option<BTreeMap<String, bool>> = json::get(&object, "capabilities")
            .map_err(|found| bad(found, "an object of true and false"))?;
        let declared = declared.unwrap_or_default().into_iter();
        Ok(Self {
            name,
            capabilities: declared
                .filter_map(|(capability, supported)| supported.then_some(capability))
                .collect(),
            config: config.to_owned(),
        })
    }

    /// What was written, key by key.
    pub(super) fn object(&self) -> Object {
        // It was read once.
        serde_json::from_str(&self.config).unwrap_or_default()
    }

    /// The folder below which `host-local` keeps a folder of reservations per network, if this plugin delegates to it. Empty
    /// when the configuration leaves it to the default.
    pub(super) fn host_local(&self) -> Option<PathBuf> {
        let ipam = self.ipam();
        (ipam.r#type == "host-local").then_some(ipam.data_dir)
    }

    fn ipam(&self) -> Ipam {
        let ipam: Option<Ipam> = json::get(&self.object(), "ipam").unwrap_or_default();
        ipam.unwrap_or_default()
    }
}

impl TryFrom<Kept> for Network {
    type Error = Error;

    fn try_from(kept: Kept) -> Result<Self, Error> {
        Self::parse(&kept.path, &kept.config)
    }
}

impl From<Network> for Kept {
    fn from(network: Network) -> Self {
        Self {
            path: network.path,
            config: network.config,
        }
    }
}

/// The text of a list and what is written in it.
pub(super) fn object(path: &Path, text: &str) -> Result<Object, Error> {
    serde_json::from_str(text).map_err(|error| Error::not_a(path, "a JSON object", &error))
}

/// The keys of a list, each checked.
pub(super) struct Fields<'a> {
    pub path: &'a Path,
    pub object: &'a Object,
}

impl Fields<'_> {
    pub(super) fn name(&self) -> Result<String, Error> {
        let name = self.get("name", "a network name")?;
        name.ok_or_else(|| Error::bad_config(self.path, "no `name`", "a network name"))
    }

    /// `true`, `false`, or these as strings, which libcni takes, too.
    pub(super) fn flag(&self, key: &str) -> Result<bool, Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Flag {
            Bool(bool),
            Word(String),
        }
        let word = match self.get(key, "true or false")? {
            None => return Ok(false),
            Some(Flag::Bool(flag)) => return Ok(flag),
            Some(Flag::Word(word)) => word,
        };
        match word.to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => {
                let found = format!("`{key}` = \"{}\"", json::excerpt(&word));
                Err(Error::bad_config(self.path, found, "true or false"))
            }
        }
    }

    /// The plugins as they are written; `None` without the key, which leaves them all to the drop-in folder.
    pub(super) fn raw_plugins(&self) -> Result<Option<Vec<Box<RawValue>>>, Error> {
        let plugins: Option<Vec<Box<RawValue>>> = self.get("plugins", "a list of plugins")?;
        if plugins.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::bad_config(
                self.path,
                "`plugins` = []",
                "at least one plugin",
            ));
        }
        if plugins.is_none() && self.flag("loadOnlyInlinedPlugins")? {
            return Err(Error::bad_config(
                self.path,
                "no `plugins`",
                "plugins, as `loadOnlyInlinedPlugins` is true",
            ));
        }
        Ok(plugins)
    }

    fn plugins(&self) -> Result<Vec<Plugin>, Error> {
        let plugins = self.raw_plugins()?.unwrap_or_default();
        let texts = plugins.iter().map(|plugin| plugin.get());
        texts
            .enumerate()
            .map(|(at, text)| Plugin::parse(self.path, &format!("`plugins[{at}]`"), text))
            .collect()
    }

    fn versions(&self) -> Result<Vec<Version>, Error> {
        let declared = self.declared_versions()?;
        let known: BTreeSet<Version> = declared
            .iter()
            .filter_map(|text| Version::parse(text))
            .collect();
        Ok(known.into_iter().collect())
    }

    fn declared_versions(&self) -> Result<Vec<String>, Error> {
        let one: Option<String> = self.get("cniVersion", "a version")?;
        let many: Option<Vec<String>> = self.get("cniVersions", "a list of versions")?;
        Ok(one.into_iter().chain(many.unwrap_or_default()).collect())
    }

    fn get<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
        expected: &str,
    ) -> Result<Option<T>, Error> {
        json::get(self.object, key).map_err(|found| Error::bad_config(self.path, found, expected))
    }
}

fn unsupported(path: &Path, found: Vec<String>) -> Error {
    Error::UnsupportedVersion {
        what: path.display().to_string(),
        found,
        expected: Version::ALL.map(|version| version.to_string()).to_vec(),
    }
}
