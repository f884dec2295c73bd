//! Starts a program: its session, terminal, limits, user and working directory. The only `unsafe` code of the agent.
//! Out of scope: the life of the process (`process`).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::{Mode, fchown};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Gid, Resource, Rlimit, Uid, chdir, geteuid, getrlimit, ioctl_tiocsctty, setrlimit, setsid,
    umask,
};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::error::{Error, reason};
use super::spec::{NOT_EXECUTABLE, NOT_FOUND, Resolved, StartError};

/// The soft limit of descriptors that the agent was started with, which is that of its children.
static DESCRIPTORS: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit of descriptors to the hard one: a forwarded connection takes two. Programs that use select(2) do not work with
/// such a limit, so children get the limit of before.
pub fn raise_descriptor_limit() {
    let before = DESCRIPTORS.get_or_init(|| getrlimit(Resource::Nofile));
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    // It fails only for a limit above the hard one; then the limit stays.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// What the standard streams of a process are.
#[derive(Debug)]
pub enum Streams {
    /// Pipes; `/dev/null` for those that are not used.
    Pipes {
        /// Whether there is a standard input.
        stdin: bool,
        /// Whether there is a standard output.
        stdout: bool,
        /// Whether there is a standard error.
        stderr: bool,
    },
    /// The slave side of a terminal, which becomes the controlling terminal of the session.
    Terminal(OwnedFd),
}

/// The steps of the child that can fail, as they are reported through a pipe: the standard library passes on only an error number.
const SESSION: u8 = 1;
const USER: u8 = 2;
const DIRECTORY: u8 = 3;

/// What the child changes about itself.
struct Setup {
    terminal: Option<OwnedFd>,
    descriptors: Option<Rlimit>,
    /// `None`: the agent is not root, and the child has its user.
    ids: Option<(Vec<Gid>, Gid, Uid)>,
    directory: CString,
    directory_required: bool,
    failed: OwnedFd,
}

impl Setup {
    /// Makes only system calls, on memory from before the fork; rustix makes them without the C library, for the calling thread.
    fn in_the_child(&self) -> io::Result<()> {
        let run = || {
            self.session().map_err(|error| (SESSION, error))?;
            self.user().map_err(|error| (USER, error))?;
            // After the change of the user: a directory that the user cannot enter is an error.
            self.enter().map_err(|error| (DIRECTORY, error))
        };
        run().map_err(|(step, error): (u8, Errno)| {
            let _ = rustix::io::write(&self.failed, &[step]);
            error.into()
        })
    }

    fn session(&self) -> Result<(), Errno> {
        default_signals();
        setsid()?;
        if let Some(terminal) = &self.terminal {
            ioctl_tiocsctty(terminal)?;
        }
        umask(Mode::from_bits_retain(0o022));
        if let Some(limit) = &self.descriptors {
            setrlimit(Resource::Nofile, *limit)?;
        }
        Ok(())
    }

    fn user(&self) -> Result<(), Errno> {
        if let Some((groups, gid, uid)) = &self.ids {
            set_thread_groups(groups)?;
            set_thread_res_gid(*gid, *gid, *gid)?;
            set_thread_res_uid(*uid, *uid, *uid)?;
        }
        Ok(())
    }

    fn enter(&self) -> Result<(), Errno> {
        match chdir(self.directory.as_c_str()) {
            Err(_) if !self.directory_required => chdir(c"/"),
            result => result,
        }
    }
}

/// Ignored signals stay ignored across exec(2): those that the agent was started with, by nohup(1) or an init, are no business of its
/// children. The standard library unblocks all signals.
fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: signal(2) takes two integers. It fails for SIGKILL and SIGSTOP, which have no other action.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Starts a process as the leader of its own session and process group. It blocks until the program is executed.
///
/// # Errors
/// The program cannot be executed, or the user or the working directory cannot be set.
pub fn spawn(resolved: &Resolved, streams: Streams) -> Result<Child, StartError> {
    let system = |error: Errno| StartError::from(Error::system("start a process", &error.into()));
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(system)?;
    let mut command = Command::new(&resolved.program);
    command.arg0(&resolved.name).args(&resolved.args);
    command.env_clear().envs(&resolved.env);
    let terminal = connect(&mut command, streams, resolved)
        .map_err(|error| Error::system("start a process", &error))?;
    let setup = Setup {
        terminal,
        descriptors: DESCRIPTORS.get().cloned(),
        ids: geteuid().is_root().then(|| ids(resolved)),
        directory: CString::new(resolved.cwd.as_str()).unwrap_or_default(),
        directory_required: resolved.cwd_required,
        failed: writer,
    };
    // SAFETY: between fork and exec, the closure makes only system calls: it does not allocate, lock or panic.
    unsafe { command.pre_exec(move || setup.in_the_child()) };
    command.spawn().map_err(|error| {
        let mut step = [0];
        let failed = rustix::io::read(&reader, &mut step).is_ok_and(|length| length == 1);
        failure(resolved, if failed { step[0] } else { 0 }, &error)
    })
}

/// Sets the standard streams. The result is the terminal for the setup.
fn connect(
    command: &mut Command,
    streams: Streams,
    resolved: &Resolved,
) -> io::Result<Option<OwnedFd>> {
    let pipe = |used| if used { Stdio::piped() } else { Stdio::null() };
    match streams {
        Streams::Pipes {
            stdin,
            stdout,
            stderr,
        } => {
            command
                .stdin(pipe(stdin))
                .stdout(pipe(stdout))
                .stderr(pipe(stderr));
            Ok(None)
        }
        Streams::Terminal(terminal) => {
            if geteuid().is_root() {
                // As login(1): programs such as tmux open the terminal by its path.
                fchown(&terminal, Some(Uid::from_raw(resolved.user.uid)), None)?;
            }
            let copy = || terminal.as_fd().try_clone_to_owned();
            command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
            Ok(Some(terminal))
        }
    }
}

fn ids(resolved: &Resolved) -> (Vec<Gid>, Gid, Uid) {
    let user = &resolved.user;
    let groups = user.groups.iter().map(|gid| Gid::from_raw(*gid));
    (
        groups.collect(),
        Gid::from_raw(user.gid),
        Uid::from_raw(user.uid),
    )
}

fn failure(resolved: &Resolved, step: u8, error: &io::Error) -> StartError {
    let text = reason(error);
    match step {
        SESSION => Error::system("create a session", error).into(),
        USER => Error::system("set the user", error).into(),
        DIRECTORY => Error::bad_request(format!("chdir \"{}\": {text}", resolved.cwd)).into(),
        _ => {
            // A login shell is named by its path, not by "-bash".
            let name = match resolved.name.starts_with('-') {
                true => &resolved.program,
                false => &resolved.name,
            };
            let missing = error.kind() == io::ErrorKind::NotFound;
            let exit_code = if missing { NOT_FOUND } else { NOT_EXECUTABLE };
            StartError::program(exit_code, name, &text)
        }
    }
}
