//! Connects to etcd as the settings say, with a client alone: preliminary, until the daemon runs the link. Requests of users are answered;
//! this host is no node of the fleet, and its contact stays `NotConnectedYet`.
//! Out of scope: the link, which replaces this file.

use std::path::Path;
use std::sync::Arc;

use super::Slot;
use crate::api::manifest::Source;
use crate::api::manifest::settings::{self, FleetSettings};
use crate::api::meta::Name;
use crate::fleet::contact::{Boottime, Contact};
use crate::fleet::kv::{Client, Config, Credentials, Identity, Password};
use crate::fleet::link::Link;
use crate::host::fs;

impl Slot {
    /// Connects as the settings file says; a problem is logged.
    pub fn fill_preliminarily(&self, settings: &Path) {
        match link(settings) {
            Ok(link) => *self.0.write() = link,
            Err(error) => tracing::error!(%error, "cannot connect to the fleet"),
        }
    }
}

fn link(path: &Path) -> Result<Option<Arc<Link>>, String> {
    let text = fs::read_text(path).map_err(|error| error.to_string())?;
    let name = path.display().to_string();
    let source = Source {
        name,
        text: text.unwrap_or_default(),
    };
    // Refused before.
    let settings = settings::parse(&source).map_err(|_| "invalid settings file".to_owned())?;
    let Some(fleet) = settings.fleet else {
        return Ok(None);
    };
    let node = match &fleet.node {
        Some(node) => node.clone(),
        None => return Err("fleet.node is not set".to_owned()),
    };
    let config = config(&fleet, &node)?;
    let client = Client::new(&config).map_err(|error| error.to_string())?;
    let contact = Contact::new(None, None, Boottime::default());
    Ok(Some(Link::new(node, client, contact)))
}

fn config(fleet: &FleetSettings, node: &Name) -> Result<Config, String> {
    let urls = fleet.endpoints.iter().map(|url| url.to_string().parse());
    let urls: Result<Vec<_>, _> = urls.collect();
    let mut config = Config::new(urls.map_err(|error| format!("{error}"))?);
    if let Some(tls) = &fleet.tls {
        config.ca = Some(tls.ca.clone());
        config.identity = Some(Identity {
            cert: tls.cert.clone(),
            key: tls.key.clone(),
        });
    }
    if let Some(path) = &fleet.password_file {
        let text = fs::read_text(path).map_err(|error| error.to_string())?;
        let text = text.ok_or_else(|| format!("{} not found", path.display()))?;
        config.credentials = Some(Credentials {
            user: fleet.user.as_ref().unwrap_or(node).to_string(),
            password: Password::new(text.trim_end()),
        });
    }
    Ok(config)
}
