//! What the guest of a VM is to get, and whether it has got it.
//! Out of scope: when its agent is asked ([`super::agents`]); what the agent does ([`crate::guest`]).
//!
//! Userdata is sent until the guest has run it, and not before all secrets of the VM exist: it may need them. What is missing is one
//! sentence in the condition `Agent`; the VM is ready nevertheless.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Engine;
use crate::api::allowed::Purpose;
use crate::api::condition::{Reason, Status};
use crate::api::event::{EventReason, EventType};
use crate::api::meta::Name;
use crate::api::provision::{MAX_FILE, Provision, Userdata, check_format};
use crate::api::secret::SecretName;
use crate::api::vm::Vm;
use crate::guest::probe;
use crate::guest::protocol::{self, Health, UserdataState, UserdataStatus};
use crate::secrets::{Error, Secret, Secrets};
use crate::vmm::{FileAccess, inspect_blocking};

/// The message for an agent of an earlier version.
const NOT_SUPPORTED: &str =
    "its slice-agent cannot provision the guest: update it to that of this version";

/// What a guest is to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    name: Name,
    provision: Provision,
}

impl Desired {
    /// Of a VM.
    pub fn of(vm: &Vm) -> Self {
        Self {
            name: vm.meta.name.clone(),
            provision: vm.spec.guest_access.provision.clone(),
        }
    }

    /// The part that can change while the guest runs.
    pub fn live(vm: &Vm) -> Self {
        let Provision {
            userdata: _,
            ssh_keys,
            secrets,
        } = &vm.spec.guest_access.provision;
        Self {
            name: vm.meta.name.clone(),
            provision: Provision {
                userdata: None,
                ssh_keys: ssh_keys.clone(),
                secrets: secrets.clone(),
            },
        }
    }

    /// Whether the guest may have a secret.
    pub fn has_secret(&self, name: &SecretName) -> bool {
        self.provision.secrets.contains(name)
    }
}

/// What an agent that answers has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What the guest has not got, one sentence each.
    problems: Vec<String>,
    /// Before the request, and after it.
    userdata_before: UserdataState,
    userdata: UserdataStatus,
}

impl Outcome {
    /// Whether the userdata runs.
    pub fn is_running(&self) -> bool {
        self.userdata.state == UserdataState::Running
    }

    /// The event of the end of the userdata, if it is new. `is_open`: whether an end is expected, because this run of the daemon knows a
    /// state before it. An end before the daemon has started is only in the condition.
    pub fn userdata_event(&self, is_open: &mut bool) -> Option<(EventType, EventReason, String)> {
        let was_open = *is_open || !self.userdata_before.has_ended();
        *is_open = was_open && !self.userdata.state.has_ended();
        let (kind, reason) = match self.userdata.state {
            UserdataState::Succeeded => (EventType::Normal, EventReason::UserdataSucceeded),
            UserdataState::Failed => (EventType::Warning, EventReason::UserdataFailed),
            UserdataState::None | UserdataState::Pending | UserdataState::Running => return None,
        };
        let text = userdata_text(&self.userdata).filter(|_| was_open);
        text.map(|text| (kind, reason, text))
    }

    /// The condition.
    pub fn condition(self) -> (Status, Reason, String) {
        let Self {
            mut problems,
            userdata,
            userdata_before: _,
        } = self;
        let reason = match userdata.state {
            UserdataState::Failed => Reason::UserdataFailed,
            _ if !problems.is_empty() => Reason::NotProvisioned,
            UserdataState::Pending | UserdataState::Running => Reason::UserdataRunning,
            UserdataState::None | UserdataState::Succeeded => Reason::Answering,
        };
        problems.extend(userdata_text(&userdata));
        let message = match problems.is_empty() {
            true => String::new(),
            false => format!("answers; {}", problems.join("; ")),
        };
        (Status::True, reason, message)
    }
}

fn userdata_text(userdata: &UserdataStatus) -> Option<String> {
    match (userdata.state, userdata.exit_code, &userdata.signal) {
        (UserdataState::None | UserdataState::Pending, ..) => None,
        (UserdataState::Running, ..) => Some("userdata running".to_owned()),
        (UserdataState::Succeeded, ..) => Some("userdata succeeded".to_owned()),
        (UserdataState::Failed, _, Some(signal)) => Some(format!("userdata was ended by {signal}")),
        (UserdataState::Failed, Some(code), None) => {
            Some(format!("userdata failed with exit status {code}"))
        }
        (UserdataState::Failed, None, None) => {
            Some("userdata was interrupted, and is not run again".to_owned())
        }
    }
}

/// Gives the guest what it has not.
pub async fn provision(
    engine: &Arc<Engine>,
    desired: Desired,
    health: &Health,
    socket: &Path,
) -> Outcome {
    let Some(generation) = &health.generation else {
        let problems = match desired.provision.is_default() {
            true => Vec::new(),
            false => vec![NOT_SUPPORTED.to_owned()],
        };
        return Outcome {
            problems,
            ..Outcome::default()
        };
    };
    let has_userdata = desired.provision.userdata.is_some();
    // Another product may have run userdata in the image.
    let of_vm = |status: Option<UserdataStatus>| status.filter(|_| has_userdata);
    let status = of_vm(health.userdata.clone()).unwrap_or_default();
    let before = status.state;
    let outcome = move |problems, userdata| Outcome {
        problems,
        userdata_before: before,
        userdata,
    };
    let (secrets, files) = (
        Arc::clone(&engine.secrets),
        engine.processes.files().clone(),
    );
    let is_needed = !before.has_ended() && before != UserdataState::Running;
    let key = format!("provision of {}", desired.name);
    let resolved = inspect_blocking(key, move || {
        Ok(resolve(&desired, &secrets, &files, is_needed))
    });
    let Resolved { request, problems } = match resolved.await {
        Ok(resolved) => resolved,
        Err(why) => return outcome(vec![why], status),
    };
    if request.generation == *generation {
        return outcome(problems, status);
    }
    match probe::provision(socket, &request).await {
        Ok(done) => outcome(
            [problems, done.problems].concat(),
            of_vm(Some(done.userdata)).unwrap_or_default(),
        ),
        Err(why) => {
            let problem = format!("cannot provision the guest: {why}");
            outcome([problems, vec![problem]].concat(), status)
        }
    }
}

/// A request, and what it lacks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Resolved {
    request: protocol::Provision,
    problems: Vec<String>,
}

/// Reads what a guest is to get. `needs_userdata`: it has not run it.
fn resolve(
    desired: &Desired,
    secrets: &Secrets,
    files: &FileAccess,
    needs_userdata: bool,
) -> Resolved {
    let Desired { name, provision } = desired;
    let mut found = Resolved::default();
    let mut generation = Generation::default();
    generation.add("hostname", name.as_str());
    found.request.hostname = Some(name.to_string());
    for key in &provision.ssh_keys {
        generation.add("key", key.line());
        found.request.ssh_keys.push(key.to_string());
    }
    for secret in &provision.secrets {
        match secrets.get(secret) {
            Ok(Some(Secret {
                revision,
                value,
                permissions,
                uid,
                gid,
                ..
            })) => {
                generation.add(secret.as_str(), &revision.to_string());
                found.request.secrets.push(protocol::Secret {
                    name: secret.to_string(),
                    data: STANDARD.encode(value.0),
                    permissions,
                    uid,
                    gid,
                });
            }
            Ok(None) => {
                generation.add(secret.as_str(), "missing");
                let message = format!("secret \"{secret}\" does not exist");
                found.problems.push(message);
            }
            Err(error) => {
                generation.add(secret.as_str(), "unreadable");
                found.problems.push(match error {
                    Error::Damaged(_) => error.to_string(),
                    other => format!("cannot read the secret \"{secret}\": {other}"),
                });
            }
        }
    }
    if let Some(userdata) = &provision.userdata {
        found.add_userdata(userdata, files, needs_userdata, &mut generation);
    }
    found.request.generation = generation.finish();
    found
}

impl Resolved {
    fn add_userdata(
        &mut self,
        userdata: &Userdata,
        files: &FileAccess,
        is_needed: bool,
        generation: &mut Generation,
    ) {
        match userdata {
            Userdata::Script(script) => generation.add("userdata", script.as_str()),
            Userdata::File(path) => generation.add("userdata_file", &path.to_string_lossy()),
        }
        if !is_needed {
            return;
        }
        self.request.userdata_pending = true;
        if let Some(missing) = self.problems.first_mut() {
            missing.push_str(", and userdata waits for it");
            return;
        }
        let script = match userdata {
            Userdata::Script(script) => Ok(script.as_str().as_bytes().to_vec()),
            Userdata::File(path) => read_file(path, files),
        };
        match script {
            Ok(script) => {
                self.request.userdata = Some(STANDARD.encode(script));
                self.request.userdata_pending = false;
            }
            Err(why) => {
                generation.add("userdata", "unreadable");
                self.problems.push(format!("userdata_file: {why}"));
            }
        }
    }
}

fn read_file(path: &Path, files: &FileAccess) -> Result<Vec<u8>, String> {
    let named = files.open(Purpose::Image, path);
    let named = named.map_err(|error| match error.is_absent() {
        true => format!("{} does not exist", path.display()),
        false => error.to_string(),
    })?;
    let fail = |why: &str| Err(format!("{}: {why}", path.display()));
    if named.device().is_some() {
        return fail("it is a block device, expected a file");
    }
    let mut bytes = Vec::new();
    let read = named
        .open()
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        return fail(&error.to_string());
    }
    if bytes.len() as u64 > MAX_FILE {
        return fail(&format!("it has more than {MAX_FILE} bytes"));
    }
    match check_format(&bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => fail(&error.to_string()),
    }
}

/// Identifies a request. Values of secrets are no part of it: see [`crate::secrets`].
#[derive(Default)]
struct Generation(blake3::Hasher);

impl Generation {
    fn add(&mut self, key: &str, value: &str) {
        for text in [key, value] {
            self.0.update(&(text.len() as u64).to_le_bytes());
            self.0.update(text.as_bytes());
        }
    }

    fn finish(self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests;
