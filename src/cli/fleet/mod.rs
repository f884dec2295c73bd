//! Commands about the fleet: those with `--fleet`, `node` and `fleet`.
//! Out of scope: this host; what the daemon and the scheduler do.

mod args;
mod change;
mod describe;
mod get;
mod node;
mod object;
mod status;
mod target;
mod wait;

pub use args::{FleetCommand, NodeCommand};
pub use change::{apply, delete, diff, scale};
pub use describe::describe;
pub use get::get;
pub use node::node;
pub use status::fleet;
pub use target::is_node;
pub use wait::wait;
