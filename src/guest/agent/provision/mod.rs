//! `PUT /provision` and `/userdata`: what the guest gets from its host. The order is host name, SSH keys, secrets, userdata.
//! Out of scope: when the host sends it.
//!
//! A request contains all that the guest is to have and may be repeated: what is so already stays untouched. The agent is root, and users of
//! the guest are not trusted: below their directories no symbolic link is followed.
//!
//! | file | content |
//! |---|---|
//! | `files` | files that survive a power failure |
//! | `hostname` | the host name |
//! | `keys` | `authorized_keys` |
//! | `log` | the output of the userdata |
//! | `place` | which file system is provisioned |
//! | `provisioner` | the order, what the guest has got |
//! | `record` | whether the userdata has run |
//! | `secrets` | `/run/slice/secrets` |
//! | `userdata` | runs the userdata |

mod files;
mod hostname;
mod keys;
mod log;
pub mod place;
pub mod provisioner;
mod record;
mod secrets;
mod userdata;

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};

use self::provisioner::Provisioner;
use super::error::{Error, query};
use super::state::Agent;
use crate::guest::protocol::{PROVISION_LIMIT, Provisioned, UserdataLogsQuery, UserdataStatus};

/// The routes.
pub fn router() -> Router<Arc<Agent>> {
    Router::new()
        .route(
            "/provision",
            put(provision).layer(DefaultBodyLimit::max(PROVISION_LIMIT)),
        )
        .route("/userdata/logs", get(logs))
        .route("/userdata/wait-exit", get(wait_exit))
}

fn provisioner(agent: &Agent) -> Result<&Arc<Provisioner>, Error> {
    agent.provisioner.as_ref().ok_or_else(|| {
        let text = "the agent does not run in a guest: it changes no file of its system";
        Error::new(StatusCode::NOT_IMPLEMENTED, text)
    })
}

async fn provision(
    State(agent): State<Arc<Agent>>,
    body: Bytes,
) -> Result<Json<Provisioned>, Error> {
    let provisioner = provisioner(&agent)?;
    // The error of the parser contains values.
    let desired = serde_json::from_slice(&body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Error::bad_request(format!("invalid body at line {line} column {column}"))
    })?;
    // What has begun is completed also if the client leaves.
    let task = tokio::spawn({
        let provisioner = Arc::clone(provisioner);
        async move { provisioner.apply(desired).await }
    });
    let applied = task.await;
    let applied = applied
        .map_err(|error| Error::system("provision the guest", &std::io::Error::other(error)))?;
    Ok(Json(applied?))
}

async fn logs(State(agent): State<Arc<Agent>>, uri: Uri) -> Result<Response, Error> {
    let userdata = Arc::clone(&provisioner(&agent)?.userdata);
    let asked: UserdataLogsQuery = query(&uri)?;
    let bytes = userdata.read_log(asked).await?;
    let bytes = futures::StreamExt::map(bytes, Ok::<_, Infallible>);
    Ok(Body::from_stream(bytes).into_response())
}

async fn wait_exit(State(agent): State<Arc<Agent>>) -> Result<Json<UserdataStatus>, Error> {
    Ok(Json(provisioner(&agent)?.userdata.ended().await))
}
