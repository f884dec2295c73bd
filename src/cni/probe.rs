//! Which versions of the spec a plugin supports (VERSION), and the highest one that all plugins of a network support.
//! Out of scope: which versions a configuration declares.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Deserialize;

use super::command::Command;
use super::invoke::{Call, invalid_output};
use super::{Error, Network, Runtime, Version, find};

/// The supported versions of plugins by program, with the modification time of the program.
#[derive(Debug, Default)]
pub(super) struct VersionCache(Mutex<HashMap<PathBuf, (SystemTime, Vec<String>)>>);

#[derive(Deserialize)]
struct VersionOutput {
    #[serde(rename = "supportedVersions")]
    supported: Vec<String>,
}

impl Runtime {
    /// The versions that a plugin supports, as it reports them. Cached until the program of the plugin changes.
    pub async fn version(&self, plugin: &str) -> Result<Vec<String>, Error> {
        let program = find::program(&self.bin_dirs, plugin)?;
        let modified = fs::metadata(&program).and_then(|metadata| metadata.modified());
        let changed =
            modified.map_err(|error| Error::io("read the attributes of", &program, error))?;
        if let Some((cached, versions)) = self.version_cache.0.lock().get(&program)
            && *cached == changed
        {
            return Ok(versions.clone());
        }
        let command = Command::Version;
        let call = Call {
            plugin,
            program: &program,
            command,
            environment: vec![
                ("CNI_COMMAND", command.as_str().into()),
                ("CNI_PATH", self.search_path()),
            ],
            stdin: format!(r#"{{"cniVersion":"{}"}}"#, Version::LATEST),
            deadline: self.deadline,
            file_limit: self.file_limit,
        };
        let output = call.run().await?;
        let versions = serde_json::from_str::<VersionOutput>(&output)
            .map_err(|error| invalid_output(plugin, command, &error.to_string(), &output))?
            .supported;
        let entry = (changed, versions.clone());
        self.version_cache.0.lock().insert(program, entry);
        Ok(versions)
    }

    /// Returns the network with only the highest version that it and all its plugins support (spec, section 1, Version considerations).
    /// It must be called before the first ADD.
    ///
    /// # Errors
    /// There is no such version, or a plugin is not installed.
    pub async fn negotiate(&self, network: &Network) -> Result<Network, Error> {
        let mut common = network.versions.clone();
        for plugin in &network.plugins {
            let supported = self.version(&plugin.name).await?;
            let expected = common.iter().map(Version::to_string).collect();
            common.retain(|version| supported.iter().any(|text| text == version.as_str()));
            if common.is_empty() {
                return Err(Error::UnsupportedVersion {
                    what: format!("CNI plugin `{}`", plugin.name),
                    found: supported,
                    expected,
                });
            }
        }
        match common.last() {
            Some(highest) if *highest != network.cni_version => network.with_version(*highest),
            _ => Ok(network.clone()),
        }
    }
}

impl VersionCache {}
