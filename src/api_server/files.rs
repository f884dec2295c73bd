//! Reads the files of the listener: its token, its certificate and key.
//! Out of scope: what they must contain (`token`, `tls`).

use std::time::Duration;

use super::tls::Identity;
use super::{Config, Peers, token};
use crate::api::manifest::settings::api::Bind;
use crate::wire::Token;

/// How long files may take to be read: they may be on a file system that does not answer.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The token that requests need; `None`: they need none.
///
/// # Errors
/// The token cannot be used; the text has the setting and the file, and nothing of the token.
pub(super) async fn token(config: &Config) -> Result<Option<Token>, String> {
    let Some(file) = config.listener.auth.clone() else {
        return Ok(None);
    };
    let file = file.unwrap_or_else(|| config.default_token.clone());
    let loaded = within(move || token::load(&file)).await;
    let loaded = loaded.map_err(|why| format!("api.auth.token_file: {why}"));
    loaded.map(Some)
}

/// The certificate with its key; `None`: connections are not encrypted.
///
/// # Errors
/// The pair cannot be used; the text has the setting and the file.
pub(super) async fn identity(config: &Config, peers: &Peers) -> Result<Option<Identity>, String> {
    if matches!(config.listener.bind, Bind::Unix(_)) {
        return Ok(None);
    }
    let own = config.listener.tls.clone();
    let peers = match peers {
        // Settings and certificates change one after the other.
        _ if !config.has_fleet => None,
        Peers::On(peers) => Some(peers.clone()),
        Peers::Off if own.is_some() => None,
        // Without them, the token could be read on the network.
        Peers::Off => return Err("the certificates of the fleet are not read yet".to_owned()),
        // Nodes are not accepted, all others are.
        Peers::Failed(_) if own.is_some() => None,
        Peers::Failed(why) => return Err(why.clone()),
    };
    within(move || match (own, peers) {
        (Some((cert, key)), peers) => Identity::of_files((&cert, &key), peers).map(Some),
        (None, Some(peers)) => Identity::of_fleet(peers).map(Some),
        (None, None) => Ok(None),
    })
    .await
}

pub(super) async fn within<T: Send + 'static>(
    load: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let loading = tokio::task::spawn_blocking(load);
    match tokio::time::timeout(READ_TIMEOUT, loading).await {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the files cannot be read within 10 s".to_owned()),
    }
}
