//! Commands in guests: programs, shells, forwarded connections and figures, through the agents of VMs.
//! Out of scope: files (`cp`, `fs`); the requests to agents (`wire`).
//!
//! | file | commands |
//! |---|---|
//! | `args`, `background_args` | the arguments of all |
//! | `exec` | `vm exec` |
//! | `shell` | `vm shell`, and `vm exec -t` |
//! | `forward` | `vm port-forward` |
//! | `background` | `vm bg` |
//! | `top` | `vm top` |
//! | `output` | writes the output of commands |
//! | `requester` | requests of `vm cp` and `fs` |
//! | `signals` | the signals that `slicectl` receives |

pub mod args;
pub mod background;
pub mod background_args;
pub mod exec;
pub mod forward;
mod output;
pub mod requester;
pub mod shell;
mod signals;
pub mod top;

use serde::Serialize;

use super::failure::Failure;

/// A path of the protocol with a query.
pub(super) fn with_query(path: &str, query: &impl Serialize) -> Result<String, Failure> {
    let query = serde_html_form::to_string(query);
    let query =
        query.map_err(|error| Failure::one(format!("cannot encode the request: {error}")))?;
    Ok(format!("{path}?{query}"))
}

/// The exit status of a command as that of `slicectl`.
fn exit_with(status: i32, causes: Vec<String>) -> Result<(), Failure> {
    match u8::try_from(status) {
        Ok(0) if causes.is_empty() => Ok(()),
        Ok(status) => Err(Failure::WithStatus(status, causes)),
        Err(_) => Err(Failure::WithStatus(u8::MAX, causes)),
    }
}
