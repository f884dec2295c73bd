//! The connection that the settings describe: the files that they name, and the client of etcd.
//! Out of scope: using it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::super::settings::host_name;
use crate::api::manifest::settings::fleet::FleetSettings;
use crate::api::meta::Name;
use crate::clock;
use crate::engine::Engine;
use crate::fleet::agent::{Agent, NodeSettings};
use crate::fleet::contact::{Boottime, Contact};
use crate::fleet::kv::{self, Client, Credentials, Identity, Password};
use crate::fleet::link::Link;

/// The settings of the fleet, with those of the API that other nodes use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `fleet:`.
    pub fleet: FleetSettings,
    /// The URL of the API of this node, from `url:` or from `api:`.
    pub url: Option<String>,
}

/// The contents of the files that the settings name, as they were read. `None`: it cannot be read.
#[derive(PartialEq, Eq)]
pub(super) struct Files(Vec<Option<Vec<u8>>>);

impl Files {
    /// Reads them.
    pub(super) fn read(config: &Config) -> Self {
        let tls = config.fleet.tls.iter();
        let tls = tls.flat_map(|tls| [&tls.ca, &tls.cert, &tls.key]);
        let files = tls.chain(&config.fleet.password_file);
        Self(files.map(|path| std::fs::read(path).ok()).collect())
    }
}

/// Returns when one of the files has another content.
pub(super) async fn changed(config: &Config, files: &Files, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let now = Files::read(config);
        if now != *files && now.0.iter().all(Option::is_some) {
            return;
        }
    }
}

impl Config {
    /// What the agent reports of this node.
    pub(super) fn node_settings(&self) -> NodeSettings {
        NodeSettings {
            labels: self.fleet.labels.clone(),
            vcpus_per_cpu: self.fleet.vcpus_per_cpu,
            api: self.url.clone(),
        }
    }

    /// The name of this node: the configured one, or the host name up to the first dot.
    ///
    /// # Errors
    /// The host name is no name of a node.
    pub fn node(&self) -> Result<Name, String> {
        if let Some(name) = &self.fleet.node {
            return Ok(name.clone());
        }
        host_name().ok_or_else(|| "the host name is no name of a node: set `node:`".to_owned())
    }
}

/// A connection that is not made yet.
///
/// # Errors
/// Why the settings cannot be used, a sentence.
pub(super) fn link(
    engine: &Arc<Engine>,
    config: &Config,
    files: &Files,
) -> Result<Arc<Link>, String> {
    let node = config.node()?;
    Agent::check_name(engine, &node)?;
    let client = Client::new(&client_config(config, files, &node)?);
    let client = client.map_err(|error| error.to_string())?;
    let facts = engine.store.read(|world| world.fleet_facts());
    let renewed = Agent::stored_renewal(engine);
    let contact = Contact::new(facts, renewed, Boottime(clock::boottime()));
    let host = format!("{}/{}", engine.host.boot_id, engine.instance);
    Ok(Link::new(node, host, client, contact))
}

fn client_config(config: &Config, files: &Files, node: &Name) -> Result<kv::Config, String> {
    let fleet = &config.fleet;
    let urls = fleet.endpoints.iter();
    let urls: Result<Vec<kv::Url>, _> = urls.map(|it| it.to_string().parse()).collect();
    let urls = urls.map_err(|error: kv::InvalidUrl| error.to_string())?;
    let mut client = kv::Config::new(urls);
    if let Some(tls) = &fleet.tls {
        check_private(&tls.key)?;
        client.ca = Some(tls.ca.clone());
        client.identity = Some(Identity {
            cert: tls.cert.clone(),
            key: tls.key.clone(),
        });
    }
    if let Some(path) = &fleet.password_file {
        check_private(path)?;
        // The last of the files.
        let content = files.0.last().cloned().flatten();
        let content = content.ok_or_else(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8(content)
            .map_err(|_| format!("{} is no UTF-8 text", path.display()))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(format!("{} is empty, expected a password", path.display()));
        }
        client.credentials = Some(Credentials {
            user: fleet.user.as_ref().unwrap_or(node).to_string(),
            password: Password::new(password),
        });
    }
    Ok(client)
}

/// A key or a password that others can read is none.
fn check_private(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mode = found.mode() & 0o777;
    match mode & 0o077 {
        0 => Ok(()),
        _ => Err(format!(
            "{} has the mode {mode:04o}, expected 0600: others must not read it",
            path.display()
        )),
    }
}
