//! The SSH server: shells, commands, files, consoles and connections of guests, for the clients of OpenSSH.
//! Out of scope: reading the settings ([`crate::daemon`]); what a guest does with a request ([`crate::guest`]).
//!
//! # Who may do what
//! A key of `ssh_keys` may do everything with every VM. There is no password, and nothing about VMs is sent before a key has logged in.
//! Of the requests of RFC 4254, a session accepts `pty-req`, `shell`, `exec`, `subsystem` (`sftp`), `env` (`LANG`, `LC_*`),
//! `window-change` and `signal`; a connection accepts the channels `session` and `direct-tcpip`. All others are refused.
//!
//! # Flow control
//! russh enlarges the window of a channel whenever it receives data, and can only be slowed down by not reading the connection, which
//! would also delay the client's confirmations of output: a command that reads and writes (`gzip`) would wait forever. So the connection is
//! always read, received data waits in [`flow`], and windows are no longer enlarged while too much of it waits.
//!
//! | file | content |
//! |---|---|
//! | `admission` | the number of connections, of all and of one address, and their rate |
//! | `agent` | requests to the agent of a VM |
//! | `channel` | a channel: what the client sends, and what is sent to it |
//! | `connection` | one connection, from accept(2) to its end |
//! | `console` | the serial console of a VM |
//! | `exec` | commands without a terminal |
//! | `flow` | received data that waits |
//! | `handler` | the callbacks of russh |
//! | `host_key` | the private key of the server |
//! | `listener` | the listening socket, and changes of the settings |
//! | `menu` | the list of VMs |
//! | `session` | what a session does |
//! | `shared` | what all connections share |
//! | `shell` | shells and commands on a terminal |
//! | `stream` | the socket of a connection |
//! | `target` | the user name that a client logs in with |
//! | `tunnel` | sftp and forwarded connections |
//! | `visitor` | who has logged in, and what a session is to do |

mod admission;
mod agent;
mod channel;
mod connection;
mod console;
mod exec;
mod flow;
mod handler;
mod host_key;
mod listener;
mod menu;
mod session;
mod shared;
mod shell;
mod stream;
mod target;
mod tunnel;
mod visitor;

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::api::ssh_key::SshKey;

pub use listener::run;

/// The settings of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub address: SocketAddr,
    /// The file with its private key.
    pub host_key: PathBuf,
    /// The keys that may log in.
    pub keys: Vec<SshKey>,
}

/// What the server reports to its administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// It listens, with the fingerprint of its host key.
    Listening(SocketAddr, String),
    /// It does not listen, and why.
    Failed(String),
    /// It no longer listens: it was configured off.
    Off,
}

/// The maximum length of a message with text of a guest or a client, in bytes.
const TEXT_LIMIT: usize = 1000;
