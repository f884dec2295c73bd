//! The listening socket: opened, closed and opened elsewhere as the settings change. Connections that exist are not affected.
//! Out of scope: connections.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey};
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac, server};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::connection::serve;
use super::flow::WINDOW;
use super::shared::Shared;
use super::{Config, Report, host_key};
use crate::clock;
use crate::wire::rates::LogRate;
use crate::wire::{Backend, is_of_connection};

/// The pause before a listener that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// The pause after accept(2) has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The key exchanges: with X25519 only. Clients that know none of them are older than 2014.
const KEX: [kex::Name; 7] = [
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];

const CIPHERS: [cipher::Name; 4] = [
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_GCM,
    cipher::AES_256_CTR,
    cipher::AES_128_CTR,
];

const MACS: [mac::Name; 4] = [
    mac::HMAC_SHA512_ETM,
    mac::HMAC_SHA256_ETM,
    mac::HMAC_SHA512,
    mac::HMAC_SHA256,
];

/// The keys of the server and of users. RSA with SHA-1 is not among them.
const KEYS: [Algorithm; 8] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP384,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP521,
    },
    Algorithm::Rsa {
        hash: Some(HashAlg::Sha512),
    },
    Algorithm::Rsa {
        hash: Some(HashAlg::Sha256),
    },
    Algorithm::SkEd25519,
    Algorithm::SkEcdsaSha2NistP256,
];

/// A socket that listens.
struct Listening {
    address: SocketAddr,
    host_key: PathBuf,
    socket: TcpListener,
    config: Arc<server::Config>,
}

/// Serves clients as the settings say, until `stop`.
pub async fn run<B: Backend>(
    backend: B,
    mut configs: watch::Receiver<Option<Config>>,
    report: impl Fn(Report) + Send + Sync,
    stop: CancellationToken,
) {
    let shared = Arc::new(Shared {
        backend: Arc::new(backend),
        keys: RwLock::new(Arc::default()),
        admission: Arc::default(),
        log_rate: LogRate::default(),
        stop: stop.clone(),
    });
    let mut listening: Option<Listening> = None;
    let mut last = None;
    loop {
        let desired = configs.borrow_and_update().clone();
        let keys = desired.as_ref().map(|config| config.keys.as_slice().into());
        *shared.keys.write() = keys.unwrap_or_default();
        let is_current = match (&listening, &desired) {
            (Some(listening), Some(config)) => {
                (listening.address, &listening.host_key) == (config.address, &config.host_key)
            }
            (listening, desired) => listening.is_none() && desired.is_none(),
        };
        if !is_current {
            // First: the new address may contain the old one.
            drop(listening.take());
            let (opened, text) = match &desired {
                Some(config) => match open(config).await {
                    Ok((opened, text)) => (Some(opened), text),
                    Err(why) => (None, Report::Failed(why)),
                },
                None => (None, Report::Off),
            };
            listening = opened;
            if last.as_ref() != Some(&text) {
                report(text.clone());
            }
            last = Some(text);
        }
        let failed = desired.is_some() && listening.is_none();
        tokio::select! {
            () = stop.cancelled() => return,
            changed = configs.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(RETRY), if failed => {}
            () = accept_all(&shared, listening.as_ref()) => {}
        }
    }
}

async fn open(config: &Config) -> Result<(Listening, Report), String> {
    let path = config.host_key.clone();
    // The file may be on a file system that does not answer.
    let loading = tokio::task::spawn_blocking(move || host_key::load(&path));
    let loaded = tokio::time::timeout(RETRY, loading).await;
    let key = match loaded {
        Ok(Ok(key)) => key?,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => {
            let path = config.host_key.display();
            return Err(format!("cannot read the host key {path} within 10 s"));
        }
    };
    let address = config.address;
    let socket = TcpListener::bind(address).await;
    let socket = socket.map_err(|error| format!("cannot listen on {address}: {error}"))?;
    let report = Report::Listening(address, host_key::fingerprint(&key));
    let listening = Listening {
        address,
        host_key: config.host_key.clone(),
        socket,
        config: Arc::new(settings(key)),
    };
    Ok((listening, report))
}

fn settings(key: PrivateKey) -> server::Config {
    server::Config {
        // The name of the program, without its version.
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-sliced")),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: Duration::from_millis(500),
        // The request that every client sends first, to learn the methods.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        window_size: WINDOW,
        maximum_packet_size: 32 << 10,
        channel_buffer_size: 1,
        preferred: Preferred {
            kex: Cow::Borrowed(&KEX),
            key: Cow::Borrowed(&KEYS),
            cipher: Cow::Borrowed(&CIPHERS),
            mac: Cow::Borrowed(&MACS),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::default()
        },
        // MaxAuthTries of sshd_config(5): a client may have several keys.
        max_auth_attempts: 6,
        inactivity_timeout: Some(Duration::from_secs(180)),
        keepalive_interval: Some(Duration::from_secs(30)),
        keepalive_max: 3,
        ..server::Config::default()
    }
}

/// Accepts connections; returns after an error. Without a socket it does nothing.
async fn accept_all<B: Backend>(shared: &Arc<Shared<B>>, listening: Option<&Listening>) {
    let Some(listening) = listening else {
        return std::future::pending().await;
    };
    loop {
        match listening.socket.accept().await {
            Ok((socket, peer)) => accepted(shared, listening, socket, peer),
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                shared.backend.accept_failed(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                return;
            }
        }
    }
}

fn accepted<B: Backend>(
    shared: &Arc<Shared<B>>,
    listening: &Listening,
    socket: TcpStream,
    peer: SocketAddr,
) {
    match shared.admission.admit(peer.ip(), clock::monotonic()) {
        Some(permit) => {
            let (shared, config) = (Arc::clone(shared), Arc::clone(&listening.config));
            tokio::spawn(serve(shared, config, socket, peer, permit));
        }
        // Closed without a response: a response costs more than it is worth.
        None => drop(socket),
    }
}
