//! Applies what a guest is to get, one request at a time, and knows what it has got.
//! Out of scope: HTTP.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;

use super::place::Place;
use super::userdata::Userdata;
use super::{hostname, keys, secrets};
use crate::guest::agent::error::Error;
use crate::guest::protocol::{Provision, Provisioned, UserdataState, UserdataStatus};

/// What the guest has got.
#[derive(Debug)]
pub struct Provisioner {
    place: Place,
    /// One request at a time.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<Progress>,
    /// The userdata.
    pub userdata: Arc<Userdata>,
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
    pub fn userdata_status(&self) -> UserdataStatus {
        self.userdata.status()
    }

    /// Whether there is nothing to wait for: what the guest is to get is known, and its userdata has ended.
    pub fn has_run(&self) -> bool {
        match self.userdata_status().state {
            UserdataState::Succeeded | UserdataState::Failed => true,
            UserdataState::Pending | UserdataState::Running => false,
            UserdataState::None => self.state.lock().is_asked,
        }
    }

    /// Applies a request.
    ///
    /// # Errors
    /// 400: it is invalid.
    pub async fn apply(self: &Arc<Self>, desired: Provision) -> Result<Provisioned, Error> {
        let _turn = self.turn.lock().await;
        let (generation, pending) = (desired.generation.clone(), desired.userdata_pending);
        let script = match &desired.userdata {
            None => None,
            Some(script) => Some(
                STANDARD
                    .decode(script)
                    .map_err(|_| Error::invalid("userdata"))?,
            ),
        };
        let this = Arc::clone(self);
        let applied = tokio::task::spawn_blocking(move || this.apply_files(&desired)).await;
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
            userdata: self.userdata_status(),
        })
    }

    /// The problems, and whether all secrets are there.
    fn apply_files(&self, desired: &Provision) -> Result<(Vec<String>, bool), Error> {
        let secrets = secrets::decode(&desired.secrets)?;
        keys::check(&desired.ssh_keys)?;
        let mut problems = Vec::new();
        if let Some(name) = &desired.hostname {
            hostname::check(name)?;
            let is_new = self.state.lock().hostname.as_ref() != Some(name);
            if is_new {
                match hostname::set(&self.place, name) {
                    Ok(()) => self.state.lock().hostname = Some(name.clone()),
                    Err(why) => problems.push(why),
                }
            }
        }
        problems.extend(keys::write(&self.place, &desired.ssh_keys));
        let written = secrets::write(&self.place, &secrets);
        let are_secrets_there = written.is_ok();
        problems.extend(written.err());
        Ok((problems, are_secrets_there))
    }
}

#[cfg(test)]
mod tests;
