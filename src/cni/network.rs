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

/// A valid network configuration. It is serialized completely, so that DEL can use it after the file was changed or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Serialized", into = "Serialized")]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The version that its plugins are called with: the highest of [`versions`](Self::versions).
    pub cni_version: Version,
    /// The versions that it declares (`cniVersion`, `cniVersions`) and that we support, sorted.
    pub versions: Vec<Version>,
    /// CHECK must not be called.
    pub disable_check: bool,
    /// GC must not be called.
    pub disable_gc: bool,
    /// In the order of ADD; never empty.
    pub plugins: Vec<Plugin>,
    /// The file from which it was read.
    pub path: PathBuf,
    /// The text of the list, including plugins from the drop-in directory.
    config: String,
}

/// One plugin's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// The name of its program: `type` in JSON.
    pub name: String,
    /// The capabilities that the configuration declares as supported.
    pub capabilities: BTreeSet<String>,
    /// The text of the configuration.
    config: String,
}

/// The serialised fields of a network; the others are parsed from them.
#[derive(Serialize, Deserialize)]
struct Serialized {
    path: PathBuf,
    config: String,
}

/// The fields of `ipam` in a plugin's configuration that concern addresses and reservations.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Ipam {
    r#type: String,
    #[serde(rename = "dataDir")]
    data_dir: PathBuf,
    subnet: Option<IpNetwork>,
    ranges: Vec<Vec<Range>>,
}

/// An element of `ranges`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Range {
    subnet: Option<IpNetwork>,
}

impl Ipam {
    /// The subnets in its configuration, which it assigns addresses from.
    fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        let ranges = self.ranges.iter().flatten();
        let ranges = ranges.filter_map(|range| range.subnet);
        ranges.chain(self.subnet)
    }
}

/// IPAM plugins that add the `IP` of `CNI_ARGS` as a second address, or ignore it.
const IPAM_WITHOUT_IP_REQUESTS: [&str; 3] = ["static", "dhcp", "whereabouts"];

impl Network {
    /// Parses a configuration list: the text of a `.conflist`. `path` is used in messages. Keys that the spec does not define, or leaves
    /// to plugins, are kept.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let object = object(path, text)?;
        let field = Fields {
            path,
            object: &object,
        };
        let name = field.name()?;
        names::network(&name)
            .map_err(|error| Error::invalid_config(path, error.to_string(), "a network name"))?;
        let versions = field.versions()?;
        let Some(cni_version) = versions.last().copied() else {
            return Err(unsupported(path, field.declared_versions()?));
        };
        let plugins = field.plugins()?;
        if plugins.is_empty() {
            return Err(Error::invalid_config(path, "none", "at least one plugin"));
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

    /// The whole list as JSON text: it is stored in the cache, and [`parse`](Self::parse) reads it.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// A digest of the configuration, 32 hexadecimal digits. It does not depend on white space, on the order of keys, or on the version,
    /// which [`negotiate`](super::Runtime::negotiate) chooses.
    pub fn digest(&self) -> String {
        let value = serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(&self.config);
        let canonical = value.map_or_else(
            // It is nested too deeply for serde_json.
            |_| self.config.clone(),
            |mut map| {
                for key in ["cniVersion", "cniVersions", "loadOnlyInlinedPlugins"] {
                    map.remove(key);
                }
                // The map sorts keys. Numbers that serde_json cannot represent exactly may be equal here: such a change is not detected.
                json::text(&map.into_iter().map(|(k, v)| (k, json::raw(&v))).collect())
            },
        );
        blake3::hash(canonical.as_bytes()).to_hex()[..32].to_owned()
    }

    /// The capabilities that the plugins declare.
    pub fn capabilities(&self) -> BTreeSet<&str> {
        let all = self.plugins.iter().flat_map(|plugin| &plugin.capabilities);
        all.map(String::as_str).collect()
    }

    /// Whether an address can be requested from its IPAM plugin (`IP` of `CNI_ARGS`). An address outside its subnets must not be
    /// requested: the bridge plugin up to 1.5 creates the bridge before it calls IPAM. If IPAM refuses the address, the new bridge loses
    /// its only port, and further ADDs fail ("could not set bridge's mac").
    pub fn can_request(&self, address: IpAddr) -> bool {
        let ipams = self.plugins.iter().map(Plugin::ipam);
        let mut ipams = ipams.filter(|ipam| !ipam.r#type.is_empty());
        ipams.next().is_some_and(|ipam| {
            let mut subnets = ipam.subnets().peekable();
            let is_in = subnets.peek().is_none() || subnets.any(|net| net.contains(address));
            is_in && !IPAM_WITHOUT_IP_REQUESTS.contains(&ipam.r#type.as_str())
        })
    }

    /// The same configuration with exactly one of its [`versions`](Self::versions).
    pub(super) fn with_version(&self, version: Version) -> Result<Self, Error> {
        let mut object = object(&self.path, &self.config)?;
        object.insert("cniVersion".to_owned(), json::raw(&version));
        object.remove("cniVersions");
        Self::parse(&self.path, &json::text(&object))
    }
}

impl Network {
    /// The same configuration with only the plugins at these positions of the chain, in its order.
    pub(super) fn with_plugins(&self, indexes: &[usize]) -> Result<Self, Error> {
        let mut object = object(&self.path, &self.config)?;
        let plugins = self.plugins.iter().enumerate();
        let selected: Vec<Object> = plugins
            .filter(|(index, _)| indexes.contains(index))
            .map(|(_, plugin)| plugin.object())
            .collect();
        object.insert("plugins".to_owned(), json::raw(&selected));
        Self::parse(&self.path, &json::text(&object))
    }
}

impl Plugin {
    fn parse(path: &Path, at: &str, config: &str) -> Result<Self, Error> {
        let invalid = |found: String, expected: &str| {
            Error::invalid_config(path, format!("{at}: {found}"), expected)
        };
        let object: Object = serde_json::from_str(config)
            .map_err(|_| invalid(json::excerpt(config), "a plugin's configuration, an object"))?;
        let name: Option<String> =
            json::get(&object, "type").map_err(|found| invalid(found, "a plugin's name"))?;
        let name = name.ok_or_else(|| invalid("no `type`".to_owned(), "a plugin's name"))?;
        if !names::is_plugin(&name) {
            let found = format!("`type` = \"{}\"", json::excerpt(&name));
            return Err(invalid(found, "a file name without `/` and `\\`"));
        }
        let declared: Option<BTreeMap<String, bool>> = json::get(&object, "capabilities")
            .map_err(|found| invalid(found, "an object with boolean values"))?;
        let declared = declared.unwrap_or_default().into_iter();
        Ok(Self {
            name,
            capabilities: declared
                .filter_map(|(capability, supported)| supported.then_some(capability))
                .collect(),
            config: config.to_owned(),
        })
    }

    /// The configuration as an object.
    pub(super) fn object(&self) -> Object {
        // `parse` has succeeded with this text.
        serde_json::from_str(&self.config).unwrap_or_default()
    }

    /// `ipam.dataDir`, below which `host-local` keeps a directory of reservations per network, if this plugin delegates to it. Empty if
    /// the configuration does not set it.
    pub(super) fn host_local_data_dir(&self) -> Option<PathBuf> {
        let ipam = self.ipam();
        (ipam.r#type == "host-local").then_some(ipam.data_dir)
    }

    fn ipam(&self) -> Ipam {
        let ipam: Option<Ipam> = json::get(&self.object(), "ipam").unwrap_or_default();
        ipam.unwrap_or_default()
    }
}

impl TryFrom<Serialized> for Network {
    type Error = Error;

    fn try_from(serialized: Serialized) -> Result<Self, Error> {
        Self::parse(&serialized.path, &serialized.config)
    }
}

impl From<Network> for Serialized {
    fn from(network: Network) -> Self {
        Self {
            path: network.path,
            config: network.config,
        }
    }
}

/// Parses a text as a JSON object.
pub(super) fn object(path: &Path, text: &str) -> Result<Object, Error> {
    serde_json::from_str(text).map_err(|error| Error::unparsable(path, "a JSON object", &error))
}

/// Reads the keys of a list, with checks.
pub(super) struct Fields<'a> {
    pub path: &'a Path,
    pub object: &'a Object,
}

impl Fields<'_> {
    pub(super) fn name(&self) -> Result<String, Error> {
        let name = self.get("name", "a network name")?;
        name.ok_or_else(|| Error::invalid_config(self.path, "no `name`", "a network name"))
    }

    /// A boolean, or a string with a boolean, which libcni accepts, too.
    pub(super) fn flag(&self, key: &str) -> Result<bool, Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Flag {
            Bool(bool),
            Text(String),
        }
        let text = match self.get(key, "true or false")? {
            None => return Ok(false),
            Some(Flag::Bool(flag)) => return Ok(flag),
            Some(Flag::Text(value)) => value,
        };
        match text.to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => {
                let found = format!("`{key}` = \"{}\"", json::excerpt(&text));
                Err(Error::invalid_config(self.path, found, "true or false"))
            }
        }
    }

    /// The text of each plugin; `None` if the key is absent: then all plugins are in the drop-in directory.
    pub(super) fn raw_plugins(&self) -> Result<Option<Vec<Box<RawValue>>>, Error> {
        let plugins: Option<Vec<Box<RawValue>>> = self.get("plugins", "a list of plugins")?;
        if plugins.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid_config(
                self.path,
                "`plugins` = []",
                "at least one plugin",
            ));
        }
        if plugins.is_none() && self.flag("loadOnlyInlinedPlugins")? {
            return Err(Error::invalid_config(
                self.path,
                "no `plugins`",
                "`plugins`, because `loadOnlyInlinedPlugins` is true",
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
        json::get(self.object, key)
            .map_err(|found| Error::invalid_config(self.path, found, expected))
    }
}

fn unsupported(path: &Path, found: Vec<String>) -> Error {
    Error::UnsupportedVersion {
        what: path.display().to_string(),
        found,
        expected: Version::ALL.map(|version| version.to_string()).to_vec(),
    }
}
