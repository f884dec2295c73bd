//! Opens and closes the listening socket as the settings and the files change.
//! Out of scope: connections ([`crate::wire`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::tls::Identity;
use super::{Config, Report, tls, token};
use crate::api::manifest::settings::api::Bind;
use crate::wire::limits::Limits;
use crate::wire::{AgentRequests, Auth, Backend, Listener, Listening, Page, Server, Token};

/// The pause before a listener that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How long files may take to be read: they may be on a file system that does not answer.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Where requests go, and within which limits.
pub struct Target<B> {
    /// The operations of the daemon.
    pub backend: Arc<B>,
    /// The requests to agents, which all listeners share.
    pub agents: AgentRequests,
    /// The limits of this listener.
    pub limits: Limits,
}

/// What the files contain.
struct Loaded {
    token: Option<Token>,
    identity: Option<Result<Identity, String>>,
}

/// A socket that listens, with the server of its connections.
struct Running<B> {
    bind: Bind,
    group: String,
    listening: Listening,
    token: Option<Token>,
    page: Page,
    identity: Option<Identity>,
    /// The current files are invalid.
    is_outdated: bool,
    server: Server<B>,
    stop: CancellationToken,
}

/// Serves clients as the settings say, until `stop`. `files`: the files may have changed.
pub async fn run<B: Backend>(
    target: Target<B>,
    mut configs: watch::Receiver<Option<Config>>,
    files: Arc<Notify>,
    report: impl Fn(Report) + Send + Sync,
    stop: CancellationToken,
) {
    let mut running: Option<Running<B>> = None;
    let mut last: Option<Report> = None;
    loop {
        let desired = configs.borrow_and_update().clone();
        let changed = match &desired {
            Some(config) => follow(&target, config, &mut running).await,
            None => {
                end(running.take());
                last.is_some().then_some(Report::Off)
            }
        };
        // A failure is reported once, however often it is tried again.
        let is_new = |changed: &Report| match changed {
            Report::Failed(_) | Report::Outdated(_) | Report::Off => last.as_ref() != Some(changed),
            Report::Listening(_) | Report::TokenChanged | Report::CertificateChanged => true,
        };
        if let Some(changed) = changed.filter(is_new) {
            report(changed.clone());
            last = Some(changed);
        }
        let failed = desired.is_some() && running.is_none();
        tokio::select! {
            () = stop.cancelled() => break,
            changed = configs.changed() => if changed.is_err() {
                break;
            },
            () = files.notified(), if desired.is_some() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
            () = accept_all(running.as_mut()) => {}
        }
    }
    if let Some(Running {
        listening,
        server,
        stop,
        ..
    }) = running
    {
        stop.cancel();
        drop(listening);
        server.end().await;
    }
}

async fn accept_all<B: Backend>(running: Option<&mut Running<B>>) {
    match running {
        Some(Running {
            server,
            listening,
            identity,
            ..
        }) => {
            let config = identity.as_ref().map(|identity| &identity.config);
            server.accept_all(listening, config).await;
        }
        None => std::future::pending().await,
    }
}

/// Closes the socket at once; its connections end.
fn end<B: Backend>(running: Option<Running<B>>) {
    if let Some(running) = running {
        running.stop.cancel();
        drop(running.listening);
        tokio::spawn(running.server.end());
    }
}

/// Makes the listener what the settings and the files say; what changed.
async fn follow<B: Backend>(
    target: &Target<B>,
    config: &Config,
    running: &mut Option<Running<B>>,
) -> Option<Report> {
    let Loaded { token, identity } = match load(config).await {
        Ok(loaded) => loaded,
        Err(why) => {
            end(running.take());
            return Some(Report::Failed(why));
        }
    };
    if let Some(Err(why)) = &identity
        && running
            .as_ref()
            .is_none_or(|running| running.identity.is_none())
    {
        // There is no pair to keep, and what is to be encrypted is not served without.
        end(running.take());
        return Some(Report::Failed(why.clone()));
    }
    let (bind, group) = (&config.listener.bind, &config.socket_group);
    let page = match config.listener.ui {
        true => Page::On,
        false => Page::Off,
    };
    let is_current = |running: &&mut Running<B>| running.bind == *bind && running.group == *group;
    if let Some(current) = running.as_mut().filter(is_current) {
        return current.update(target, (token, page), identity);
    }
    // First: the new address may contain the old one.
    end(running.take());
    let opened = async {
        let identity = identity.transpose()?;
        let listening = open(config).await?;
        let stop = CancellationToken::new();
        Ok(Running {
            bind: bind.clone(),
            group: group.clone(),
            listening,
            server: target.server(token.clone(), page, stop.clone()),
            token,
            page,
            identity,
            is_outdated: false,
            stop,
        })
    };
    Some(match opened.await {
        Ok(opened) => {
            let text = opened.text();
            *running = Some(opened);
            Report::Listening(text)
        }
        Err(why) => Report::Failed(why),
    })
}

impl<B: Backend> Target<B> {
    fn server(&self, token: Option<Token>, page: Page, stop: CancellationToken) -> Server<B> {
        let auth = token.map_or_else(Auth::none, Auth::token);
        let backend = Arc::clone(&self.backend);
        Server::new(backend, &self.agents, auth, page, self.limits, stop)
    }
}

impl<B: Backend> Running<B> {
    /// `127.0.0.1:8080 (token, TLS)`.
    fn text(&self) -> String {
        let token = match self.token {
            Some(_) => "token",
            None => "no token",
        };
        let tls = match (&self.identity, &self.bind) {
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
        format!("{} ({token}{tls}{page})", self.bind)
    }

    /// The same socket with another token or certificate.
    fn update(
        &mut self,
        target: &Target<B>,
        (token, page): (Option<Token>, Page),
        identity: Option<Result<Identity, String>>,
    ) -> Option<Report> {
        let was_tls = self.identity.is_some();
        let (identity, outdated) = match identity {
            None => (None, None),
            Some(Ok(identity)) => (Some(identity), None),
            Some(Err(why)) => (self.identity.clone(), Some(why)),
        };
        let is_other = identity != self.identity;
        let was_outdated = std::mem::replace(&mut self.is_outdated, outdated.is_some());
        self.identity = identity;
        let is_moved =
            was_tls != self.identity.is_some() || self.token.is_none() != token.is_none();
        let is_rotated = self.token != token;
        let has_other_page = self.page != page;
        if is_moved || is_rotated || has_other_page {
            self.restart(target, token, page);
        }
        match outdated {
            Some(why) => Some(Report::Outdated(why)),
            None if is_moved || has_other_page && !is_rotated => {
                Some(Report::Listening(self.text()))
            }
            None if is_rotated => Some(Report::TokenChanged),
            None if is_other || was_outdated => Some(Report::CertificateChanged),
            None => None,
        }
    }

    /// Ends all connections; new ones need this token.
    fn restart(&mut self, target: &Target<B>, token: Option<Token>, page: Page) {
        self.stop.cancel();
        self.stop = CancellationToken::new();
        let next = target.server(token.clone(), page, self.stop.clone());
        let ended = std::mem::replace(&mut self.server, next);
        (self.token, self.page) = (token, page);
        tokio::spawn(ended.end());
    }
}

async fn open(config: &Config) -> Result<Listening, String> {
    let bind = &config.listener.bind;
    match bind {
        Bind::Tcp(address) => {
            let socket = Listening::on(*address).await;
            socket.map_err(|error| format!("cannot listen on {bind}: {error}"))
        }
        Bind::Unix(path) => {
            let opened = Listener::open(path, &config.socket_group);
            let text =
                |error: crate::wire::socket::ListenerError| match std::error::Error::source(&error)
                {
                    Some(cause) => format!("{error}: {cause}"),
                    None => error.to_string(),
                };
            opened.map(Listening::Unix).map_err(text)
        }
    }
}

/// Reads the files.
///
/// # Errors
/// The token cannot be used.
async fn load(config: &Config) -> Result<Loaded, String> {
    let config = config.clone();
    let loading = tokio::task::spawn_blocking(move || {
        let listener = &config.listener;
        let token = listener.auth.as_ref().map(|file| {
            let file = file.as_deref().unwrap_or(&config.default_token);
            token::load(file)
        });
        Ok(Loaded {
            token: token.transpose()?,
            identity: listener
                .tls
                .as_ref()
                .map(|(cert, key)| tls::load(cert, key)),
        })
    });
    match tokio::time::timeout(READ_TIMEOUT, loading).await {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("cannot read the token and the certificate within 10 s".to_owned()),
    }
}
