//! The options that name a daemon by a URL, and its token.
//! Out of scope: requests ([`crate::wire::Client`]).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};

use super::failure::{Failure, warn};
use crate::wire::{Client, Token, Url};

/// The maximum size of a token file, in bytes.
const MAX_FILE: u64 = 4096;

/// The options.
#[derive(Debug, Args)]
pub struct RemoteArgs {
    /// URL of sliced on another host, or the path of its socket, instead of --socket: https://host:8080
    #[arg(long, global = true, env = "SLICE_URL", value_name = "URL")]
    pub url: Option<Url>,
    /// File with the token for --url. The variable SLICE_TOKEN may have the token itself
    #[arg(long, global = true, env = "SLICE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// File with the certificates of the authorities that may sign that of --url, in PEM; those of this host if omitted
    #[arg(long, global = true, env = "SLICE_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

impl RemoteArgs {
    /// A `--socket` of the command line has precedence over a URL of the environment.
    pub fn yield_to_flag(&mut self, matches: &ArgMatches) {
        let is_flag = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        if is_flag("socket") && !is_flag("url") {
            self.url = None;
        }
    }

    /// The client.
    ///
    /// # Errors
    /// The token or the authorities cannot be read.
    pub fn client(&self, socket: &Path) -> Result<Client, Failure> {
        let client = self.quiet_client(socket)?;
        if client.has_token() && client.url().is_exposed() {
            let url = client.url();
            let text = format!("{url} is not encrypted: the token can be read on the network");
            warn(&text);
        }
        Ok(client)
    }

    /// The same without a warning.
    ///
    /// # Errors
    /// The same.
    pub fn quiet_client(&self, socket: &Path) -> Result<Client, Failure> {
        let Some(url) = &self.url else {
            return Ok(Client::new(socket));
        };
        let token = self.token()?;
        let client = Client::at(url.clone(), self.ca.as_deref()).map_err(Failure::one)?;
        Ok(client.with_token(token))
    }

    /// The token of the file, else that of the environment. It is no flag: command lines are visible to other users.
    fn token(&self) -> Result<Option<Token>, Failure> {
        let (text, place) = match (&self.token_file, std::env::var("SLICE_TOKEN")) {
            (Some(file), _) => {
                let place = file.display().to_string();
                let fail =
                    |error| Failure::one(format!("cannot read the token in {place}: {error}"));
                let mut text = String::new();
                let read =
                    File::open(file).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
                read.map_err(fail)?;
                (text, place)
            }
            (None, Ok(text)) if !text.is_empty() => (text, "SLICE_TOKEN".to_owned()),
            (None, _) => return Ok(None),
        };
        let token = text.trim_ascii().parse::<Token>();
        token
            .map(Some)
            .map_err(|error| Failure::one(format!("invalid token in {place}: {error}")))
    }
}
