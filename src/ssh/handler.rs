//! The callbacks of russh: logins, and the requests of channels.
//! Out of scope: what a channel then does (`session`, `tunnel`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use russh::keys::Algorithm;
use russh::server::{Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty, Sig};
use tokio_util::sync::CancellationToken;

use super::admission::Permit;
use super::channel::{Control, Entry, Terminal};
use super::flow::{CHANNELS, Flow};
use super::session;
use super::shared::{Attempt, Shared};
use super::target::Target;
use super::tunnel;
use super::visitor::{Request, Visitor};
use crate::wire::{Backend, Caller};

/// The maximum length of the name of a terminal type, in bytes.
const MAX_TERM: usize = 64;

/// The maximum number of environment variables of a channel, and the maximum length of one, in bytes.
const MAX_ENV: usize = 32;
const MAX_VALUE: usize = 256;

/// A connection. All callbacks return at once.
pub struct Handler<B> {
    shared: Arc<Shared<B>>,
    permit: Arc<Permit>,
    flow: Arc<Flow>,
    peer: SocketAddr,
    login: Arc<Mutex<Attempt>>,
    logged_in: CancellationToken,
    /// Who has logged in.
    visitor: Option<Visitor>,
    channels: HashMap<ChannelId, Entry>,
}

impl<B: Backend> Handler<B> {
    /// A connection that was accepted.
    pub fn new(
        shared: Arc<Shared<B>>,
        permit: Arc<Permit>,
        flow: Arc<Flow>,
        peer: SocketAddr,
    ) -> Self {
        Self {
            shared,
            permit,
            flow,
            peer,
            login: Arc::default(),
            logged_in: CancellationToken::new(),
            visitor: None,
            channels: HashMap::new(),
        }
    }

    /// The state of the login.
    pub fn login(&self) -> Arc<Mutex<Attempt>> {
        Arc::clone(&self.login)
    }

    /// Cancelled when a key has logged in.
    pub fn logged_in(&self) -> CancellationToken {
        self.logged_in.clone()
    }

    /// The comment and fingerprint of a key that may log in.
    fn known(&self, key: &russh::keys::PublicKey, algorithm: &Algorithm) -> Option<String> {
        // Signatures with SHA-1.
        if *algorithm == (Algorithm::Rsa { hash: None }) {
            return None;
        }
        let keys = Arc::clone(&self.shared.keys.read());
        let found = keys.iter().find(|known| known.key() == key.key_data())?;
        Some(match found.comment() {
            "" => found.fingerprint(),
            comment => format!("{comment} ({})", found.fingerprint()),
        })
    }

    fn refuse(&self, key: &russh::keys::PublicKey) -> Auth {
        let fingerprint = key.fingerprint(russh::keys::HashAlg::Sha256);
        self.login.lock().refused = Some(fingerprint.to_string());
        Auth::reject()
    }

    /// Whether another channel may be opened. Channels without a running task are forgotten.
    fn may_open(&mut self) -> bool {
        self.channels.retain(|_, entry| !entry.is_ended());
        self.channels.len() < CHANNELS
    }

    /// Starts what a channel was opened for; false if it was started before.
    fn start(&mut self, channel: ChannelId, request: Request, session: &Session) -> bool {
        let (Some(visitor), Some(entry)) = (&self.visitor, self.channels.get_mut(&channel)) else {
            return false;
        };
        let Some(parts) = entry.take(session.handle()) else {
            return false;
        };
        let task = session::run(Arc::clone(&self.shared), visitor.clone(), request, parts);
        entry.set_task(visitor.caller.clone().scope(task));
        true
    }

    fn reply(session: &mut Session, channel: ChannelId, done: bool) -> Result<(), russh::Error> {
        match done {
            true => session.channel_success(channel),
            false => session.channel_failure(channel),
        }
    }
}

impl<B: Backend> russh::server::Handler for Handler<B> {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(match self.known(offer.public_key, offer.algorithm) {
            Some(_) => Auth::Accept,
            None => self.refuse(offer.public_key),
        })
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        // Again: it may have been removed since it was offered.
        let Some(known) = self.known(key.public_key, key.algorithm) else {
            return Ok(self.refuse(key.public_key));
        };
        self.visitor = Some(Visitor {
            target: Target::parse(user),
            caller: Caller::SshKey(known.into()),
            peer: self.peer,
        });
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), Self::Error> {
        self.login.lock().succeeded = true;
        self.permit.logged_in();
        self.logged_in.cancel();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.may_open() {
            true => {
                self.channels
                    .insert(channel.id(), Entry::new(channel, &self.flow));
                reply.accept().await;
            }
            false => reply.reject(ChannelOpenFailure::ResourceShortage).await,
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host_to_connect: &str,
        port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let may_open = self.may_open();
        let Some(visitor) = self.visitor.clone().filter(|_| may_open) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let id = channel.id();
        let mut entry = Entry::new(channel, &self.flow);
        if let Some(parts) = entry.take(session.handle()) {
            let caller = visitor.caller.clone();
            let upstream = tunnel::upstream(host_to_connect, port_to_connect);
            let shared = Arc::clone(&self.shared);
            entry.set_task(caller.scope(tunnel::forward(shared, visitor, upstream, parts, reply)));
            self.channels.insert(id, entry);
        }
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.remove(&channel);
        Ok(())
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(entry) = self.channels.get_mut(&channel) {
            entry.end_input();
        }
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.channels.get(&channel) {
            Some(entry) if !entry.put(data) => Err(russh::Error::WrongChannel),
            _ => Ok(()),
        }
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.flow.window()
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _pix_width: u32,
        _pix_height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let is_valid = |term: &&str| {
            term.len() <= MAX_TERM && term.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let term = Some(term).filter(is_valid).filter(|term| !term.is_empty());
        let terminal = Terminal {
            term: term.unwrap_or("dumb").to_owned(),
            columns,
            rows,
        };
        let entry = self.channels.get_mut(&channel);
        let done = entry.is_some_and(|entry| entry.set_terminal(terminal));
        Self::reply(session, channel, done)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let is_name = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
        let is_permitted = name == "LANG" || name.starts_with("LC_") && name.bytes().all(is_name);
        let is_valid = name.len() + value.len() < MAX_VALUE && !value.contains(char::is_control);
        let entry = self.channels.get_mut(&channel);
        let done = is_permitted
            && is_valid
            && entry.is_some_and(|entry| entry.add_env(format!("{name}={value}"), MAX_ENV));
        Self::reply(session, channel, done)
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let done = self.start(channel, Request::Shell, session);
        Self::reply(session, channel, done)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let done = self.start(channel, Request::Exec(data.to_vec()), session);
        Self::reply(session, channel, done)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let done = name == "sftp" && self.start(channel, Request::Sftp, session);
        Self::reply(session, channel, done)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        _pix_width: u32,
        _pix_height: u32,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(entry) = self.channels.get_mut(&channel) {
            entry.control(Control::Window { columns, rows });
        }
        Ok(())
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(entry) = self.channels.get_mut(&channel) {
            entry.control(Control::Signal(signal));
        }
        Ok(())
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single_connection: bool,
        _x11_auth_protocol: &str,
        _x11_auth_cookie: &str,
        _x11_screen_number: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }
}
