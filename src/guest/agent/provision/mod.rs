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
//! | `record` | whether the userdata has run |
//! | `secrets` | `/run/slice/secrets` |
//! | `userdata` | runs the userdata |

mod files;
mod hostname;
mod keys;
mod log;
mod record;
mod secrets;
#[cfg(test)]
mod tests;
mod userdata;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;

use self::userdata::Userdata;
use super::error::{Error, query};
use super::state::Agent;
use crate::guest::protocol::{
    PROVISION_LIMIT, Provision, Provisioned, UserdataLogsQuery, UserdataState, UserdataStatus,
};

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

/// Which file system is provisioned.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its root.
    root: PathBuf,
    /// Whether it is that of the agent itself, with its mounts and its host name.
    is_own: bool,
}

impl Place {
    /// The file system of the agent.
    pub fn own() -> Self {
        Self {
            root: PathBuf::from("/"),
            is_own: true,
        }
    }

    /// A directory that stands for it, for tests.
    pub fn directory(root: PathBuf) -> Self {
        Self {
            root,
            is_own: false,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn root(&self) -> &Path {
        &self.root
    }
}

/// What the guest has got.
#[derive(Debug)]
pub struct Provisioner {
    place: Place,
    /// One request at a time.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<Progress>,
    userdata: Arc<Userdata>,
}

#[derive(Debug, Default)]
struct Progress {
    /// The last generation that the guest has got completely.
    generation: String,
    /// The host name that was requested last: a user of the guest may change it afterwards.
    hostname: Option<String>,
    /// Whether there was a request.
    is_asked: bool,
}

impl Provisioner {
    /// Reads whether the userdata has run.
    pub fn new(place: Place) -> Arc<Self> {
        Arc::new(Self {
            userdata: Userdata::new(&place),
            place,
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        })
    }

    /// The last generation that the guest has got completely.
    pub fn generation(&self) -> String {
        self.state.lock().generation.clone()
    }

    /// The state of the userdata.
    pub fn userdata(&self) -> UserdataStatus {
        self.userdata.status()
    }

    /// Whether there is nothing to wait for: what the guest is to get is known, and its userdata has ended.
    pub fn has_run(&self) -> bool {
        match self.userdata().state {
            UserdataState::Succeeded | UserdataState::Failed => true,
            UserdataState::Pending | UserdataState::Running => false,
            UserdataState::None => self.state.lock().is_asked,
        }
    }

    /// Applies a request.
    async fn apply(self: &Arc<Self>, wanted: Provision) -> Result<Provisioned, Error> {
        let _turn = self.turn.lock().await;
        let (generation, pending) = (wanted.generation.clone(), wanted.userdata_pending);
        let script = match &wanted.userdata {
            None => None,
            Some(script) => Some(STANDARD.decode(script).map_err(|_| invalid("userdata"))?),
        };
        let this = Arc::clone(self);
        let applied = tokio::task::spawn_blocking(move || this.apply_files(&wanted)).await;
        let (mut problems, are_secrets_there) = applied.map_err(|error| {
            Error::system("provision the guest", &std::io::Error::other(error))
        })??;
        match script {
            Some(script) if are_secrets_there => {
                problems.extend(self.userdata.run(script).await.err());
            }
            Some(_) => self.userdata.expect(),
            None if pending => self.userdata.expect(),
            None => self.userdata.expect_none(),
        }
        let mut state = self.state.lock();
        state.is_asked = true;
        if problems.is_empty() {
            state.generation = generation;
        }
        drop(state);
        Ok(Provisioned {
            problems,
            userdata: self.userdata(),
        })
    }

    /// The problems, and whether all secrets are there.
    fn apply_files(&self, wanted: &Provision) -> Result<(Vec<String>, bool), Error> {
        let secrets = secrets::decode(&wanted.secrets)?;
        keys::check(&wanted.ssh_keys)?;
        let mut problems = Vec::new();
        if let Some(name) = &wanted.hostname {
            hostname::check(name)?;
            let is_new = self.state.lock().hostname.as_ref() != Some(name);
            if is_new {
                match hostname::set(&self.place, name) {
                    Ok(()) => self.state.lock().hostname = Some(name.clone()),
                    Err(why) => problems.push(why),
                }
            }
        }
        problems.extend(keys::write(&self.place, &wanted.ssh_keys));
        let written = secrets::write(&self.place, &secrets);
        let are_secrets_there = written.is_ok();
        problems.extend(written.err());
        Ok((problems, are_secrets_there))
    }
}

/// 400 for a field, without its value.
fn invalid(field: &str) -> Error {
    Error::bad_request(format!("invalid {field}"))
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
    let wanted = serde_json::from_slice(&body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Error::bad_request(format!("invalid body at line {line} column {column}"))
    })?;
    // What has begun is completed also if the client leaves.
    let task = tokio::spawn({
        let provisioner = Arc::clone(provisioner);
        async move { provisioner.apply(wanted).await }
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
