//! Access to a guest without a network: the protocol between the daemon and `slice-agent`, the program in the guest.
//! Out of scope: VMs, their VMMs and permissions of users.
//!
//! `slice-agent` serves HTTP/1.1 on vsock port [`protocol::PORT`]. The daemon connects through a Unix socket in the VM's run directory and
//! forwards requests of users; the requests and responses of both are the same.
//!
//! The guest is hostile: the host limits the size and the time of everything that it reads from an agent.
//!
//! | file | content |
//! |---|---|
//! | `agent` | the program in the guest |
//! | `archive` | directory trees as a stream |
//! | `async_fd` | registers descriptors with the runtime |
//! | `client` | connects to an agent from the host and sends a request |
//! | `copy` | the host's side of a copy |
//! | `early_response` | a stream to a server that responds before it has read the request |
//! | `endpoint` | the requests that the daemon forwards |
//! | `init` | PID 1 of a small guest |
//! | `inject` | PID 1 of an initramfs before the init of the image |
//! | `lines` | splits what is received into lines of limited length |
//! | `place` | where a copy is put, as cp(1) does |
//! | `probe` | the daemon's own requests: whether an agent answers, what a guest gets |
//! | `protocol` | requests and responses of the agent, limits |
//! | `server_sent` | Server-Sent Events of an agent |
//! | `shell_frame` | the messages of an interactive shell |

#[allow(
    clippy::disallowed_methods,
    reason = "starts programs in the guest; independent of the host module"
)]
pub mod agent;
pub mod archive;
mod async_fd;
#[cfg(feature = "host")]
pub mod client;
#[cfg(feature = "host")]
pub mod copy;
#[cfg(feature = "host")]
pub mod early_response;
#[cfg(feature = "host")]
pub mod endpoint;
pub mod go_duration;
#[allow(
    clippy::disallowed_methods,
    reason = "starts programs in the guest; independent of the host module"
)]
mod init;
#[allow(
    clippy::disallowed_methods,
    reason = "starts programs in the guest; independent of the host module"
)]
pub mod inject;
#[cfg(feature = "host")]
pub mod lines;
pub mod place;
#[cfg(feature = "host")]
pub mod probe;
pub mod protocol;
#[cfg(feature = "host")]
pub mod server_sent;
pub mod shell_frame;
