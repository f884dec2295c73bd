//! What is to be executed: the program, its arguments, user, environment and working directory, checked and looked up.
//! Out of scope: starting it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use axum::http::StatusCode;
use rustix::process::{getegid, geteuid};

use super::error::Error;
use super::users::{Accounts, User};
use crate::guest::protocol::{ExecQuery, SftpQuery, ShellQuery};

/// `PATH` of a process if its request has none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The exit status of shells for a program that does not exist.
pub const NOT_FOUND: i32 = 127;

/// The exit status of shells for a program that cannot be executed.
pub const NOT_EXECUTABLE: i32 = 126;

/// Why a process was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The request is invalid.
    Request(Error),
    /// The program does not exist or cannot be executed.
    Program {
        /// [`NOT_FOUND`] or [`NOT_EXECUTABLE`].
        exit_code: i32,
        /// `exec: "NAME": REASON`.
        text: String,
    },
}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        Self::Request(error)
    }
}

impl StartError {
    /// `exec: "NAME": REASON`.
    pub fn program(exit_code: i32, name: &str, reason: &str) -> Self {
        let text = format!("exec: \"{name}\": {reason}");
        Self::Program { exit_code, text }
    }
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Request(error) => error,
            StartError::Program { text, .. } => Self::bad_request(text),
        }
    }
}

/// What a request asks for.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// The program and its arguments; empty: a login shell.
    argv: Vec<String>,
    /// The login shell; `None`: the user's.
    shell: Option<String>,
    env: Vec<String>,
    user: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    cwd: Option<String>,
}

/// A process that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The path of the program, absolute or relative to `cwd`.
    pub program: String,
    /// `argv[0]`.
    pub name: String,
    /// The arguments.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The user.
    pub user: User,
    /// The working directory.
    pub cwd: String,
    /// Whether `cwd` was requested; the home directory of a user need not exist.
    pub cwd_required: bool,
}

impl Spec {
    /// The command of `exec`.
    ///
    /// # Errors
    /// 400: no program, an invalid environment or working directory.
    pub fn of_exec(query: &ExecQuery) -> Result<Self, Error> {
        if query.cmd.is_empty() {
            return Err(Error::bad_request("cmd is required"));
        }
        Self {
            argv: argv(&query.cmd, &query.args, query.shell.as_deref()),
            shell: None,
            env: query.env.clone(),
            user: query.user.clone(),
            uid: query.uid,
            gid: query.gid,
            cwd: query.cwd.clone(),
        }
        .check()
    }

    /// The command of `shell`.
    ///
    /// # Errors
    /// 400: an invalid environment or working directory.
    pub fn of_shell(query: &ShellQuery) -> Result<Self, Error> {
        let shell = query.shell.clone().filter(|shell| !shell.is_empty());
        let cmd = query.cmd.as_deref().filter(|cmd| !cmd.is_empty());
        let mut env = vec!["TERM=xterm-256color".to_owned()];
        env.extend(query.env.iter().cloned());
        Self {
            argv: cmd.map_or_else(Vec::new, |cmd| argv(cmd, &query.args, shell.as_deref())),
            shell,
            env,
            user: query.user.clone(),
            uid: query.uid,
            gid: query.gid,
            cwd: query.cwd.clone(),
        }
        .check()
    }

    /// The server of `sftp`: this program, wherever it is. The link is that of the process that follows it, which is the child.
    ///
    /// # Errors
    /// 400: an invalid user.
    pub fn of_sftp(query: &SftpQuery) -> Result<Self, Error> {
        Self {
            argv: vec!["/proc/self/exe".to_owned(), "sftp".to_owned()],
            user: query.user.clone(),
            uid: query.uid,
            gid: query.gid,
            ..Self::default()
        }
        .check()
    }

    fn check(self) -> Result<Self, Error> {
        if self.user.is_some() && self.uid.is_some() {
            return Err(Error::bad_request(
                "found user and uid, expected one of them",
            ));
        }
        let texts = self
            .argv
            .iter()
            .chain(&self.env)
            .chain(&self.shell)
            .chain(&self.cwd);
        if texts.into_iter().any(|text| text.contains('\0')) {
            return Err(Error::bad_request("invalid request: found a NUL character"));
        }
        for pair in &self.env {
            if pair.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
                let text = format!("invalid env \"{pair}\": expected NAME=VALUE");
                return Err(Error::bad_request(text));
            }
        }
        if let Some(cwd) = &self.cwd {
            let is_absolute = cwd.starts_with('/') || cwd == "~" || cwd.starts_with("~/");
            if !is_absolute || cwd.split('/').any(|part| part == "..") {
                let text = format!(
                    "invalid cwd \"{cwd}\": expected a path that begins with / or ~, without .."
                );
                return Err(Error::bad_request(text));
            }
        }
        Ok(self)
    }

    /// Looks up the user and the program. Reads files of the guest, which may take time.
    ///
    /// # Errors
    /// The agent is not root and another user is requested, or the program does not exist.
    pub fn resolve(&self) -> Result<Resolved, StartError> {
        let accounts = Accounts::read().map_err(|error| Error::system("read users", &error))?;
        let uid = match &self.user {
            Some(name) => {
                let uid = accounts.uid_of(name);
                let missing = || Error::bad_request(format!("user \"{name}\" not found"));
                Some(uid.ok_or_else(missing)?)
            }
            None => self.uid,
        };
        let user = accounts.user(uid, self.gid);
        may_become(&user)?;
        let env = self.environment(&user);
        let cwd = match self.cwd.as_deref() {
            None => user.home.clone(),
            Some(cwd) => match cwd.strip_prefix('~') {
                Some(rest) => format!("{}{rest}", user.home.trim_end_matches('/')),
                None => cwd.to_owned(),
            },
        };
        let (name, program, args) = match self.argv.split_first() {
            Some((name, args)) => (name.clone(), look_up(name, &env)?, args.to_vec()),
            None => {
                let shell = self.shell.as_ref().unwrap_or(&user.shell);
                let program = look_up(shell, &env)?;
                // login(1): a shell with an argv[0] that begins with "-" reads the files of a login.
                let name = shell.rsplit('/').next().unwrap_or_default();
                (format!("-{name}"), program, Vec::new())
            }
        };
        Ok(Resolved {
            program,
            name,
            args,
            env,
            cwd: if cwd.is_empty() { "/".to_owned() } else { cwd },
            cwd_required: self.cwd.is_some(),
            user,
        })
    }

    /// The environment of a login, and of the request, which has priority.
    fn environment(&self, user: &User) -> BTreeMap<String, String> {
        let shell = self.shell.as_ref().unwrap_or(&user.shell);
        let login = [
            ("HOME", user.home.as_str()),
            ("USER", &user.name),
            ("LOGNAME", &user.name),
            ("SHELL", shell),
            ("PATH", PATH),
        ];
        let requested = self.env.iter().filter_map(|pair| pair.split_once('='));
        let all = login.into_iter().chain(requested);
        all.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }
}

fn argv(cmd: &str, args: &[String], shell: Option<&str>) -> Vec<String> {
    let direct = std::iter::once(cmd.to_owned()).chain(args.iter().cloned());
    match shell.filter(|shell| !shell.is_empty()) {
        None => direct.collect(),
        Some(shell) => {
            let line = direct.collect::<Vec<_>>().join(" ");
            vec![shell.to_owned(), "-lc".to_owned(), line]
        }
    }
}

/// Only root may change the ids of a process: setuid(2), setgroups(2).
fn may_become(user: &User) -> Result<(), Error> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() || (uid.as_raw(), gid.as_raw()) == (user.uid, user.gid) {
        return Ok(());
    }
    let text = format!(
        "permission denied: the agent runs as {}:{} and cannot start programs as {}:{}",
        uid.as_raw(),
        gid.as_raw(),
        user.uid,
        user.gid
    );
    Err(Error::new(StatusCode::FORBIDDEN, text))
}

/// The path of a program. Relative directories of `PATH` are not searched.
fn look_up(name: &str, env: &BTreeMap<String, String>) -> Result<String, StartError> {
    if name.contains('/') {
        return Ok(name.to_owned());
    }
    let directories = env.get("PATH").map_or("", String::as_str).split(':');
    let mut denied = false;
    for directory in directories.filter(|directory| directory.starts_with('/')) {
        let path = format!("{}/{name}", directory.trim_end_matches('/'));
        let Ok(metadata) = Path::new(&path).metadata() else {
            continue;
        };
        match metadata.permissions().mode() & 0o111 {
            _ if !metadata.is_file() => {}
            0 => denied = true,
            _ => return Ok(path),
        }
    }
    Err(match denied {
        true => StartError::program(NOT_EXECUTABLE, name, "permission denied"),
        false => StartError::program(NOT_FOUND, name, "executable file not found in $PATH"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(change: impl FnOnce(&mut ExecQuery)) -> Result<Spec, Error> {
        let mut query = ExecQuery {
            cmd: "sh".to_owned(),
            ..ExecQuery::default()
        };
        change(&mut query);
        Spec::of_exec(&query)
    }

    #[test]
    fn invalid_requests_are_refused_with_what_was_found_and_expected() {
        type Change = fn(&mut ExecQuery);
        let table: [(Change, &str); 9] = [
            (|q| q.cmd.clear(), "cmd is required"),
            (|q| q.cmd = "a\0b".to_owned(), "NUL"),
            (|q| q.args = vec!["\0".to_owned()], "NUL"),
            (
                |q| q.env = vec!["A".to_owned()],
                "invalid env \"A\": expected NAME=VALUE",
            ),
            (|q| q.env = vec!["=1".to_owned()], "invalid env \"=1\""),
            (
                |q| q.cwd = Some("/a/../b".to_owned()),
                "invalid cwd \"/a/../b\"",
            ),
            (|q| q.cwd = Some("~/..".to_owned()), "invalid cwd"),
            (|q| q.cwd = Some("relative".to_owned()), "invalid cwd"),
            (|q| q.cwd = Some(String::new()), "invalid cwd"),
        ];
        for (change, expected) in table {
            let error = exec(change).expect_err(expected);
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
            assert!(error.text.contains(expected), "{}", error.text);
        }
    }

    #[test]
    fn a_shell_runs_the_words_as_one_line_in_a_login_shell() {
        let spec = exec(|q| {
            q.args = vec!["$FOO".to_owned(), "b".to_owned()];
            q.shell = Some("/bin/bash".to_owned());
        });
        assert_eq!(spec.expect("valid").argv, ["/bin/bash", "-lc", "sh $FOO b"]);
        let direct = exec(|q| q.shell = Some(String::new()));
        assert_eq!(direct.expect("valid").argv, ["sh"]);
    }

    #[test]
    fn a_program_is_looked_up_in_the_path_of_the_request() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().display();
        let file = |name: &str, mode| {
            let file = directory.path().join(name);
            std::fs::write(&file, "").expect("written");
            std::fs::set_permissions(file, PermissionsExt::from_mode(mode)).expect("changed");
        };
        file("yes", 0o755);
        file("no", 0o644);
        std::fs::create_dir(directory.path().join("dir")).expect("a directory");
        let env = |value: String| BTreeMap::from([("PATH".to_owned(), value)]);
        let found = |name| look_up(name, &env(format!("relative::/absent:{path}")));
        assert_eq!(found("yes"), Ok(format!("{path}/yes")));
        assert_eq!(found("./x"), Ok("./x".to_owned()));
        assert_eq!(
            found("no"),
            Err(StartError::program(126, "no", "permission denied"))
        );
        let absent = |name| StartError::program(127, name, "executable file not found in $PATH");
        assert_eq!(found("dir"), Err(absent("dir")));
        assert_eq!(found("x"), Err(absent("x")));
    }
}
