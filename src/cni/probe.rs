//! Which versions of the spec a plugin speaks (VERSION), and which one all plugins of a network do.
//! Out of scope: which ones a configuration allows.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::Deserialize;

use super::invoke::{Call, Command, garbage};
use super::{Error, Network, Runtime, Version, find};

/// What was learnt of programs, until they change.
#[derive(Debug, Default)]
pub(super) struct Probed(Mutex<HashMap<PathBuf, (SystemTime, Vec<String>)>>);

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "supportedVersions")]
    supported: Vec<String>,
}

impl Runtime {
    /// The versions that a plugin says to support, as it says them. Asked once, until its program changes.
    pub async fn version(&self, plugin: &str) -> Result<Vec<String>, Error> {
        let program = find::program(&self.bin_dirs, plugin)?;
        let changed = fs::metadata(&program).and_then(|about| about.modified());
        let changed = changed.map_err(|error| Error::io("examine", &program, error))?;
        if let Some((then, versions)) = self.probed.lock().get(&program)
            && *then == changed
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
        let answer = call.run().await?;
        let versions = serde_json::from_str::<Answer>(&answer)
            .map_err(|error| garbage(plugin, command, &error.to_string(), &answer))?
            .supported;
        let learnt = (changed, versions.clone());
        self.probed.lock().insert(program, learnt);
        Ok(versions)
    }

    /// The network with the highest version that it and every one of its plugins speak (spec, section 1, Version
    /// considerations), for good. Fails when there is none, or a plugin is not there: to be asked before the first ADD.
    pub async fn negotiate(&self, network: &Network) -> Result<Network, Error> {
        let mut common = network.versions.clone();
        for plugin in &network.plugins {
            let spoken = self.version(&plugin.name).await?;
            let expected = common.iter().map(Version::to_string).collect();
            common.retain(|version| spoken.iter().any(|text| text == version.as_str()));
            if common.is_empty() {
                return Err(Error::UnsupportedVersion {
                    what: format!("CNI plugin `{}`", plugin.name),
                    found: spoken,
                    expected,
                });
            }
        }
        match common.last() {
            Some(highest) if *highest != network.cni_version => network.pinned(*highest),
            _ => Ok(network.clone()),
        }
    }
}

impl Probed {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (SystemTime, Vec<String>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
