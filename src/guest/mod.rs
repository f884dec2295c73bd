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
//! | `protocol` | requests and responses of the agent, limits |
//! | `shell_frame` | the messages of an interactive shell |
//! | `archive` | directory trees as a stream |
//! | `place` | where a copy is put, as cp(1) does |
//! | `server_sent` | Server-Sent Events of an agent |
//! | `copy` | the host's side of a copy |
//! | `agent` | the server in the guest |

pub mod agent;
pub mod archive;
pub mod copy;
pub mod place;
pub mod protocol;
pub mod server_sent;
pub mod shell_frame;
