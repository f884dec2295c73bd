//! A socket that listens, with the server of its connections.
//! Out of scope: when it is opened and closed (`listener`).

use std::net::SocketAddr;

use tokio_util::sync::CancellationToken;

use super::tls::Identity;
use super::{Config, Report, Target};
use crate::api::manifest::settings::api::Bind;
use crate::wire::{Backend, Listener, Listening, Page, Server, Token};

/// The listener that serves now, with the settings that it has.
pub(super) struct Running<B> {
    pub(super) config: Config,
    pub(super) listening: Listening,
    token: Option<Token>,
    page: Page,
    pub(super) identity: Option<Identity>,
    pub(super) server: Server<B>,
    pub(super) stop: CancellationToken,
}

impl<B: Backend> Running<B> {
    /// Opens the socket.
    ///
    /// # Errors
    /// It cannot be opened; the text has the setting.
    pub(super) async fn open(
        target: &Target<B>,
        config: &Config,
        token: Option<Token>,
        identity: Option<Identity>,
    ) -> Result<Self, String> {
        let listening = open(config).await?;
        let stop = CancellationToken::new();
        let page = page(config);
        Ok(Self {
            config: config.clone(),
            listening,
            server: target.server(&config.listener.bind, token.clone(), page, stop.clone()),
            token,
            page,
            identity,
            stop,
        })
    }

    /// Replaces the socket, which uses what the next one needs. If that cannot be opened, the socket is opened again as it was: its
    /// connections last.
    ///
    /// # Errors
    /// The socket cannot be opened; with the listener, unless it cannot be opened again either.
    pub(super) async fn reopen(
        self,
        target: &Target<B>,
        config: &Config,
        (token, identity): (Option<Token>, Option<Identity>),
    ) -> Result<Self, (String, Option<Self>)> {
        let Self {
            config: before,
            listening,
            token: old_token,
            page,
            identity: old_identity,
            server,
            stop,
        } = self;
        drop(listening);
        let why = match Self::open(target, config, token, identity).await {
            Ok(opened) => {
                stop.cancel();
                tokio::spawn(server.end());
                return Ok(opened);
            }
            Err(why) => why,
        };
        let again = match open(&before).await {
            Ok(listening) => Some(Self {
                config: before,
                listening,
                token: old_token,
                page,
                identity: old_identity,
                server,
                stop,
            }),
            Err(_) => {
                stop.cancel();
                tokio::spawn(server.end());
                None
            }
        };
        Err((why, again))
    }

    /// Whether the socket of these settings cannot be opened while this one is open.
    pub(super) fn excludes(&self, config: &Config) -> bool {
        match (&self.config.listener.bind, &config.listener.bind) {
            (Bind::Tcp(one), Bind::Tcp(other)) => overlap(*one, *other),
            (Bind::Unix(one), Bind::Unix(other)) => one == other,
            (Bind::Tcp(_), Bind::Unix(_)) | (Bind::Unix(_), Bind::Tcp(_)) => false,
        }
    }

    /// Whether its connections can be read on a network.
    pub(super) fn is_readable(&self) -> bool {
        self.identity.is_none() && matches!(self.config.listener.bind, Bind::Tcp(_))
    }

    /// Whether these settings need no other socket.
    pub(super) fn is_at(&self, config: &Config) -> bool {
        self.config.listener.bind == config.listener.bind
            && self.config.socket_group == config.socket_group
    }

    /// Closes the socket at once; its connections end.
    pub(super) fn end(self) {
        self.stop.cancel();
        drop(self.listening);
        tokio::spawn(self.server.end());
    }

    /// `127.0.0.1:8080 (token, TLS)`.
    pub(super) fn text(&self) -> String {
        let token = match self.token {
            Some(_) => "token",
            None => "no token",
        };
        let bind = &self.config.listener.bind;
        let tls = match (&self.identity, bind) {
            (Some(_), _) => ", TLS",
            (None, Bind::Tcp(address)) if !address.ip().is_loopback() => {
                ", not encrypted: the token can be read on the network"
            }
            (None, Bind::Tcp(_)) => ", not encrypted",
            (None, Bind::Unix(_)) => "",
        };
        let page = match self.page {
            Page::On => "",
            Page::Off => ", no web page",
        };
        format!("{bind} ({token}{tls}{page})")
    }

    /// The same socket with another token or certificate, and the web page of its settings.
    pub(super) fn update(
        &mut self,
        target: &Target<B>,
        token: Option<Token>,
        identity: Option<Identity>,
    ) -> Option<Report> {
        let is_other = identity != self.identity;
        let is_same_certificate = match (&self.identity, &identity) {
            (Some(before), Some(now)) => before.is_same_certificate(now),
            _ => false,
        };
        let is_moved = identity.is_some() != self.identity.is_some()
            || self.token.is_none() != token.is_none();
        let is_rotated = self.token != token;
        let page = page(&self.config);
        let has_other_page = self.page != page;
        self.identity = identity;
        if is_moved || is_rotated || has_other_page {
            self.restart(target, token, page);
        }
        match () {
            () if is_moved || has_other_page && !is_rotated => Some(Report::Listening(self.text())),
            () if is_rotated => Some(Report::TokenChanged),
            () if is_other && is_same_certificate => Some(Report::NodesChanged),
            () if is_other => Some(Report::CertificateChanged),
            () => None,
        }
    }

    /// Ends all connections; new ones need this token.
    fn restart(&mut self, target: &Target<B>, token: Option<Token>, page: Page) {
        self.stop.cancel();
        self.stop = CancellationToken::new();
        let bind = &self.config.listener.bind;
        let next = target.server(bind, token.clone(), page, self.stop.clone());
        let ended = std::mem::replace(&mut self.server, next);
        (self.token, self.page) = (token, page);
        tokio::spawn(ended.end());
    }
}

fn page(config: &Config) -> Page {
    match config.listener.ui {
        true => Page::On,
        false => Page::Off,
    }
}

/// Whether two TCP sockets cannot listen at the same time: one address contains the other. `[::]` contains the addresses of IPv4, too.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (any || one.ip() == other.ip())
}

async fn open(config: &Config) -> Result<Listening, String> {
    let bind = &config.listener.bind;
    match bind {
        Bind::Tcp(address) => {
            let socket = Listening::on(*address).await;
            socket.map_err(|error| {
                let field = match error.kind() {
                    std::io::ErrorKind::AddrNotAvailable => "bind_address",
                    _ => "port",
                };
                format!("api.{field}: cannot listen on {bind}: {error}")
            })
        }
        Bind::Unix(path) => {
            let opened = Listener::open(path, &config.socket_group);
            let text =
                |error: crate::wire::socket::ListenerError| match std::error::Error::source(&error)
                {
                    Some(cause) => format!("api.socket: {error}: {cause}"),
                    None => format!("api.socket: {error}"),
                };
            opened.map(Listening::Unix).map_err(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_overlaps_with_itself_and_with_the_one_that_contains_it() {
        for (one, other, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("0.0.0.0:80", "10.0.0.1:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("0.0.0.0:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "10.0.0.1:80", false),
            ("[::1]:80", "127.0.0.1:80", false),
        ] {
            let parsed = |text: &str| text.parse::<SocketAddr>().unwrap();
            assert_eq!(
                overlap(parsed(one), parsed(other)),
                expected,
                "{one} {other}"
            );
        }
    }
}
