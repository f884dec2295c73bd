//! The flags of `sliced` for the second listener of the API.
//! Out of scope: the settings file; they replace its values.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::api::manifest::settings::api::{ApiSettings, BindAddress, socket_path};

/// The flags; `None` for those that are not given.
#[derive(Clone, Debug, Default, Args)]
pub struct ApiArgs {
    /// Serve the API on this address as well, or on this Unix socket if it is a path. If omitted: `bind_address:` of `api:` in the
    /// settings file, else 127.0.0.1 if the API has another setting, else no second listener
    #[arg(long, env = "SLICE_API_BIND_ADDRESS", value_name = "ADDRESS|PATH")]
    pub api_bind_address: Option<BindAddress>,
    /// Serve the API on this TCP port as well. If omitted: `port:` of `api:`, else 8080
    #[arg(long, env = "SLICE_API_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub api_port: Option<u16>,
    /// Serve the API on this Unix socket as well. If omitted: `socket:` of `api:`
    #[arg(long, env = "SLICE_API_SOCKET", value_name = "PATH", value_parser = socket_path, conflicts_with = "api_bind_address")]
    pub api_socket: Option<PathBuf>,
    /// Whether requests on that listener need the token; false is refused for TCP. If omitted: `enabled:` of `api.auth:`, else true for
    /// TCP and false for a Unix socket
    #[arg(
        long,
        env = "SLICE_API_AUTH",
        value_name = "true|false",
        hide_possible_values = true
    )]
    pub api_auth: Option<bool>,
    /// File with the token, created if it does not exist. If omitted: `token_file:` of `api.auth:`, else api/token in the state directory
    #[arg(long, env = "SLICE_API_TOKEN_FILE", value_name = "FILE", value_parser = absolute)]
    pub api_token_file: Option<PathBuf>,
    /// File with the certificates for TLS, in PEM. If omitted: `cert:` of `api.tls:`, else no TLS
    #[arg(long, env = "SLICE_API_TLS_CERT", value_name = "FILE", value_parser = absolute)]
    pub api_tls_cert: Option<PathBuf>,
    /// File with the private key for TLS, in PEM. If omitted: `key:` of `api.tls:`
    #[arg(long, env = "SLICE_API_TLS_KEY", value_name = "FILE", value_parser = absolute)]
    pub api_tls_key: Option<PathBuf>,
    /// Whether that listener serves the web page at `/`. If omitted: `ui:` of `api:`, else true
    #[arg(
        long,
        env = "SLICE_API_UI",
        value_name = "true|false",
        hide_possible_values = true
    )]
    pub api_ui: Option<bool>,
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(Path::new(text)).map_err(|error| error.to_string())
}

impl ApiArgs {
    /// Whether they name a place to listen on.
    pub fn has_place(&self) -> bool {
        self.api_bind_address.is_some() || self.api_port.is_some() || self.api_socket.is_some()
    }

    /// The same as settings.
    pub fn settings(&self) -> ApiSettings {
        let flags = self.clone();
        ApiSettings {
            bind_address: flags.api_bind_address,
            port: flags.api_port,
            socket: flags.api_socket,
            auth: flags.api_auth,
            token_file: flags.api_token_file,
            cert: flags.api_tls_cert,
            key: flags.api_tls_key,
            ui: flags.api_ui,
        }
    }
}
