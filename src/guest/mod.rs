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
//! | `init` | PID 1 of a small guest |
//! | `protocol` | requests and responses of the agent, limits |
//! | `shell_frame` | the messages of an interactive shell |

#[allow(
    clippy::disallowed_methods,
    reason = "starts programs in the guest; independent of the host module"
)]
pub mod agent;
#[allow(
    clippy::disallowed_methods,
    reason = "starts programs in the guest; independent of the host module"
)]
mod init;
pub mod protocol;
pub mod shell_frame;
