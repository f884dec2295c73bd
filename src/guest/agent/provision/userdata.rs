//! Runs the userdata: once, as root, without a deadline.
//! Out of scope: its record (`record`), its output (`log`).
//!
//! It is executed by the interpreter of its first line (`#!`), else by `/bin/sh`. The interpreter gets a file in `/run`, which may be mounted
//! with noexec. It ends with the service of the agent, or with the guest; then it has failed, and is not run again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Bytes;
use futures::Stream;
use rustix::process::geteuid;
use tokio::sync::watch;

use super::files::write_durable;
use super::log::Log;
use super::place::Place;
use super::record;
use crate::guest::agent::child::Streams;
use crate::guest::agent::error::{Error, reason};
use crate::guest::agent::output;
use crate::guest::agent::process::{Ending, Scope, Spawned, start};
use crate::guest::agent::spec::{Spec, StartError};
use crate::guest::agent::users::Accounts;
use crate::guest::protocol::{
    CHUNK, Encoding, ExecQuery, UserdataLogsQuery, UserdataState, UserdataStatus,
};

const SCRIPT: &str = "run/slice/userdata";

/// Both streams of the userdata are one, so that its lines are in the order in which they were written.
const MERGE: &str = "exec \"$@\" 2>&1";

/// The userdata of the guest.
#[derive(Debug)]
pub struct Userdata {
    place: Place,
    status: watch::Sender<UserdataStatus>,
    log: Arc<Log>,
}

impl Userdata {
    /// With the state of an earlier run.
    pub fn new(place: &Place) -> Arc<Self> {
        Arc::new(Self {
            place: place.clone(),
            status: watch::Sender::new(record::load(place)),
            log: Log::open(place),
        })
    }

    /// The state.
    pub fn status(&self) -> UserdataStatus {
        self.status.borrow().clone()
    }

    /// There is userdata that has not been sent.
    pub fn expect(&self) {
        self.change_before_run(UserdataState::Pending);
    }

    /// There is none.
    pub fn expect_none(&self) {
        self.change_before_run(UserdataState::None);
    }

    fn change_before_run(&self, state: UserdataState) {
        self.status.send_if_modified(|status| {
            let is_before = matches!(status.state, UserdataState::None | UserdataState::Pending);
            let changes = is_before && status.state != state;
            if changes {
                status.state = state;
            }
            changes
        });
    }

    /// Waits until it does not run.
    pub async fn ended(&self) -> UserdataStatus {
        let mut status = self.status.subscribe();
        let ended = status
            .wait_for(|status| status.state != UserdataState::Running)
            .await;
        // The sender is part of `self`.
        ended.map(|status| status.clone()).unwrap_or_default()
    }

    /// Its output.
    ///
    /// # Errors
    /// 500: it cannot be read.
    pub async fn read_log(
        &self,
        query: UserdataLogsQuery,
    ) -> Result<impl Stream<Item = Bytes> + Send + use<>, Error> {
        let stream = Arc::clone(&self.log).read(query).await;
        stream.map_err(|error| Error::system("read the output of the userdata", &error))
    }

    /// Starts it, unless it has run before.
    ///
    /// # Errors
    /// Why it was not started, as a sentence. It is started by a later request.
    pub async fn run(self: &Arc<Self>, script: Vec<u8>) -> Result<(), String> {
        if !matches!(
            self.status().state,
            UserdataState::None | UserdataState::Pending
        ) {
            return Ok(());
        }
        let this = Arc::clone(self);
        let prepared = tokio::task::spawn_blocking(move || this.prepare(&script)).await;
        let prepared = prepared.unwrap_or_else(|error| Err(error.to_string()));
        let (record, spec) = match prepared {
            Ok(prepared) => prepared,
            Err(why) => {
                self.expect();
                return Err(why);
            }
        };
        self.status
            .send_modify(|status| status.state = UserdataState::Running);
        let streams = Streams::Pipes {
            stdin: false,
            stdout: true,
            stderr: false,
        };
        match start(spec, streams, Scope::Group).await {
            Ok(spawned) => {
                tokio::spawn(Arc::clone(self).collect(spawned, record));
            }
            Err(error) => {
                let (code, text) = match error {
                    StartError::Program { exit_code, text } => (exit_code, text),
                    StartError::Request(error) => (126, error.text),
                };
                self.log.append(format!("{text}\n").as_bytes());
                self.finish(record, Some(code), None).await;
            }
        }
        Ok(())
    }

    /// Records the start and writes the script. Returns the path of the record, and what is executed.
    fn prepare(&self, script: &[u8]) -> Result<(PathBuf, Spec), String> {
        let fail = |error: io::Error| format!("cannot write the userdata: {}", reason(&error));
        let path = self.place.at(SCRIPT);
        write_durable(&path, script, 0o700).map_err(fail)?;
        let accounts = Accounts::read_below(self.place.root()).map_err(fail)?;
        let target = accounts.user(None, None).name;
        let query = ExecQuery {
            cmd: "/bin/sh".to_owned(),
            args: arguments(script, &path),
            env: vec![format!("TARGET_USER={target}")],
            uid: Some(geteuid().as_raw()),
            cwd: Some("/".to_owned()),
            ..ExecQuery::default()
        };
        let spec = Spec::of_exec(&query).map_err(|error| error.text)?;
        let record = record::begin(&self.place)?;
        self.log.begin();
        Ok((record, spec))
    }

    async fn collect(self: Arc<Self>, spawned: Spawned, record: PathBuf) {
        let Spawned {
            process,
            abandoned,
            stdout,
            ..
        } = spawned;
        // It outlives the request.
        abandoned.keep();
        if let Ok(mut chunks) = output::read(&process, stdout, None, Encoding::Base64, CHUNK) {
            while let Some(chunk) = chunks.recv().await {
                let log = Arc::clone(&self.log);
                let appended = tokio::task::spawn_blocking(move || log.append(&chunk.data));
                if appended.await.is_err() {
                    break;
                }
            }
        }
        let Ending {
            exit_code, signal, ..
        } = process.ended().await;
        self.finish(record, Some(exit_code), signal).await;
    }

    async fn finish(&self, record: PathBuf, exit_code: Option<i32>, signal: Option<String>) {
        let status = UserdataStatus {
            state: match exit_code {
                Some(0) => UserdataState::Succeeded,
                _ => UserdataState::Failed,
            },
            exit_code,
            signal,
        };
        let (place, recorded) = (self.place.clone(), status.clone());
        let written = tokio::task::spawn_blocking(move || {
            let _ = fs::remove_file(place.at(SCRIPT));
            record::end(&place, &record, &recorded)
        });
        if let Ok(Err(error)) = written.await {
            // After a reboot it counts as interrupted.
            let text = reason(&error);
            eprintln!("slice-agent: record the end of the userdata: {text}");
        }
        self.log.end();
        self.status.send_replace(status);
    }
}

/// The arguments of a shell that executes a script with its interpreter.
fn arguments(script: &[u8], path: &Path) -> Vec<String> {
    let mut words = vec!["-c".to_owned(), MERGE.to_owned(), "userdata".to_owned()];
    let first = script
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let line = first.strip_prefix(b"#!").map(String::from_utf8_lossy);
    let line = line
        .as_deref()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    match line {
        None => words.push("/bin/sh".to_owned()),
        // As the kernel does: all that follows the interpreter is one argument.
        Some(line) => match line.split_once([' ', '\t']) {
            None => words.push(line.to_owned()),
            Some((interpreter, argument)) => {
                words.push(interpreter.to_owned());
                words.push(argument.trim().to_owned());
            }
        },
    }
    words.push(path.display().to_string());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_of_the_first_line_executes_the_script() {
        for (script, expected) in [
            ("echo", &["/bin/sh", "/s"][..]),
            ("", &["/bin/sh", "/s"]),
            ("#!/bin/bash\necho", &["/bin/bash", "/s"]),
            ("#! /bin/bash -e -u \necho", &["/bin/bash", "-e -u", "/s"]),
            (
                "#!/usr/bin/env python3\n",
                &["/usr/bin/env", "python3", "/s"],
            ),
            ("#!\n", &["/bin/sh", "/s"]),
            ("# comment", &["/bin/sh", "/s"]),
        ] {
            let words = arguments(script.as_bytes(), Path::new("/s"));
            assert_eq!(words[3..], *expected, "{script}");
        }
    }
}
