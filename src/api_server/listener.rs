//! Opens and closes the listening socket as the settings and the files change.
//! Out of scope: the socket ([`super::running`]), connections ([`crate::wire`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::running::Running;
use super::{Config, Peers, Progress, Report, files};
use crate::api::manifest::settings::api::Bind;
use crate::wire::limits::Limits;
use crate::wire::{AgentRequests, Auth, Backend, Page, Server, Token};

/// The pause before settings that could not be applied are tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Where requests go, and within which limits.
pub struct Target<B> {
    /// The operations of the daemon.
    pub backend: Arc<B>,
    /// The requests to agents, which all listeners share.
    pub agents: AgentRequests,
    /// The limits of this listener.
    pub limits: Limits,
    /// The certificates of the fleet, as they change.
    pub peers: watch::Receiver<Peers>,
}

/// What one pass has changed, and why the settings are not in effect.
#[derive(Default)]
struct Pass {
    changed: Option<Report>,
    problem: Option<Report>,
}

impl Pass {
    fn changed(report: impl Into<Option<Report>>) -> Self {
        Self {
            changed: report.into(),
            problem: None,
        }
    }

    fn problem(report: Report) -> Self {
        Self {
            changed: None,
            problem: Some(report),
        }
    }
}

/// Serves clients as the settings say, until `stop`. `files`: the files may have changed.
pub async fn run<B: Backend>(
    mut target: Target<B>,
    mut configs: watch::Receiver<Option<Config>>,
    files: Arc<Notify>,
    report: impl Fn(Progress) + Send + Sync,
    stop: CancellationToken,
) {
    let mut running: Option<Running<B>> = None;
    let (mut is_known, mut last) = (false, None);
    loop {
        let desired = configs.borrow_and_update().clone();
        target.peers.mark_unchanged();
        let mut pass = match &desired {
            Some(config) => follow(&target, config, &mut running).await,
            None => {
                end(&mut running);
                Pass::changed(is_known.then_some(Report::Off))
            }
        };
        is_known = desired.is_some();
        if pass.problem.is_none() && last.is_some() && pass.changed.is_none() {
            pass.changed = running
                .as_ref()
                .map(|running| Report::Listening(running.text()));
        }
        // A problem is reported once, however often it is tried again.
        let is_new = pass.problem != last;
        last.clone_from(&pass.problem);
        let news: Vec<Report> = pass
            .changed
            .into_iter()
            .chain(pass.problem.filter(|_| is_new))
            .collect();
        if !news.is_empty() {
            let problem = last.clone();
            report(Progress { news, problem });
        }
        let is_applied = match &desired {
            Some(config) => running.as_ref().is_some_and(|now| now.config == *config),
            None => true,
        };
        tokio::select! {
            () = stop.cancelled() => break,
            changed = configs.changed() => if changed.is_err() {
                break;
            },
            () = files.notified(), if desired.is_some() => {}
            Ok(()) = target.peers.changed() => {}
            () = tokio::time::sleep(RETRY), if !is_applied => {}
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

/// Makes the listener what the settings and the files say. Settings that cannot be applied as a whole change nothing of what listens, except
/// what protects it: see [`super`].
async fn follow<B: Backend>(
    target: &Target<B>,
    config: &Config,
    running: &mut Option<Running<B>>,
) -> Pass {
    let token = match files::token(config).await {
        Ok(token) => token,
        Err(why) => return close(running, why),
    };
    let peers = target.peers.borrow().clone();
    let identity = match files::identity(config, &peers).await {
        Ok(identity) => identity,
        // What is to be encrypted is not served without.
        Err(why) if running.as_ref().is_none_or(Running::is_readable) => {
            return close(running, why);
        }
        Err(why) => return keep(target, config, token, running, why).await,
    };
    let Some(mut now) = running.take() else {
        return match Running::open(target, config, token, identity).await {
            Ok(opened) => listens(running, opened),
            Err(why) => close(running, why),
        };
    };
    if now.is_at(config) {
        now.config = config.clone();
        let changed = now.update(target, token, identity);
        *running = Some(now);
        return Pass::changed(changed);
    }
    let why = if now.excludes(config) {
        match now.reopen(target, config, (token.clone(), identity)).await {
            Ok(opened) => return listens(running, opened),
            Err((why, again)) => {
                *running = again;
                why
            }
        }
    } else {
        // The next one listens before this one is closed.
        match Running::open(target, config, token.clone(), identity).await {
            Ok(opened) => {
                now.end();
                return listens(running, opened);
            }
            Err(why) => {
                *running = Some(now);
                why
            }
        }
    };
    keep(target, config, token, running, why).await
}

fn listens<B: Backend>(running: &mut Option<Running<B>>, opened: Running<B>) -> Pass {
    let text = opened.text();
    *running = Some(opened);
    Pass::changed(Report::Listening(text))
}

fn end<B: Backend>(running: &mut Option<Running<B>>) {
    if let Some(running) = running.take() {
        running.end();
    }
}

fn close<B: Backend>(running: &mut Option<Running<B>>, why: String) -> Pass {
    end(running);
    Pass::problem(Report::Failed(why))
}

/// Keeps what listens although the settings say otherwise. Its token is the one that the settings name, or that of its own settings if
/// these need none; its own certificate stays current.
async fn keep<B: Backend>(
    target: &Target<B>,
    config: &Config,
    token: Option<Token>,
    running: &mut Option<Running<B>>,
    why: String,
) -> Pass {
    let Some(now) = running else {
        return close(running, why);
    };
    let token = match token {
        Some(token) => Ok(Some(token)),
        None => files::token(&now.config).await,
    };
    let token = match token {
        Ok(token) => token,
        Err(why) => return close(running, why),
    };
    let peers = target.peers.borrow().clone();
    let identity = match files::identity(&now.config, &peers).await {
        Ok(identity) => identity,
        Err(_) => now.identity.clone(),
    };
    // A socket that needs no token needs none until its own settings say so.
    let token = token.filter(|_| now.config.listener.auth.is_some());
    let changed = now.update(target, token, identity);
    let problem = match now.is_at(config) {
        true => Report::Outdated(why),
        false => Report::Kept(now.text(), why),
    };
    Pass {
        changed,
        problem: Some(problem),
    }
}

impl<B: Backend> Target<B> {
    pub(super) fn server(
        &self,
        bind: &Bind,
        token: Option<Token>,
        page: Page,
        stop: CancellationToken,
    ) -> Server<B> {
        let auth = token.map_or_else(Auth::none, Auth::token);
        let backend = Arc::clone(&self.backend);
        let limits = match bind {
            Bind::Unix(_) => self.limits.local(),
            Bind::Tcp(_) => self.limits,
        };
        Server::new(backend, &self.agents, auth, page, limits, stop)
    }
}
