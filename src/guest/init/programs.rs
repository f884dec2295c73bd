//! The programs that run in a small guest: the agent, the program of the image, a shell on the console.
//! Out of scope: waiting for them (`reap`).

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::parameters::Parameters;
use super::prepare::report;
use crate::clock;

/// A program of the image that is started once the network is configured, with the environment variables `HOSTNAME`, `DEVICE`, `ADDRESS`
/// and `GATEWAY`. It is not restarted.
const START: &str = "/etc/slice/start";

/// Pause before a program is restarted.
const PAUSE: Duration = Duration::from_secs(1);

/// A program that is restarted when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Agent,
    Shell,
}

/// The programs that are restarted.
#[derive(Debug, Default)]
pub struct Programs {
    running: Vec<(Pid, Program)>,
    due: Vec<(Instant, Program)>,
}

impl Programs {
    /// Starts all programs.
    pub fn start(parameters: &Parameters) -> Self {
        let mut programs = Self::default();
        programs.spawn(Program::Agent);
        if Path::new(START).exists() {
            let started = Command::new(START)
                .envs(environment(parameters))
                .stdin(Stdio::null())
                .spawn();
            if let Err(error) = started {
                report(&format!("start {START}: {error}"));
            }
        }
        if Path::new("/bin/sh").exists() {
            programs.spawn(Program::Shell);
        }
        programs
    }

    /// A process has ended; one of these programs is started again after a pause.
    pub fn ended(&mut self, pid: Pid) {
        let Some(at) = self.running.iter().position(|(known, _)| *known == pid) else {
            return;
        };
        let (_, program) = self.running.swap_remove(at);
        self.due.push((clock::monotonic() + PAUSE, program));
    }

    /// Waits until a program is to be started again.
    pub async fn due(&self) {
        match self.due.iter().map(|(when, _)| *when).min() {
            Some(when) => tokio::time::sleep_until(when.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Starts the programs after their pause.
    pub fn restart(&mut self) {
        let now = clock::monotonic();
        let due: Vec<Program> = self
            .due
            .extract_if(.., |(when, _)| *when <= now)
            .map(|(_, program)| program)
            .collect();
        due.into_iter().for_each(|program| self.spawn(program));
    }

    fn spawn(&mut self, program: Program) {
        let started = match program {
            Program::Agent => agent(),
            Program::Shell => shell(),
        };
        match started {
            Ok(pid) => self.running.push((pid, program)),
            Err(error) => {
                report(&format!("start {program:?}: {error}"));
                self.due.push((clock::monotonic() + PAUSE, program));
            }
        }
    }
}

/// This program, as the agent.
fn agent() -> io::Result<Pid> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("slice-agent")
        .arg("serve")
        .stdin(Stdio::null());
    spawn(&mut command)
}

/// A shell with the console as its controlling terminal. `/dev/console` itself cannot be one.
fn shell() -> io::Result<Pid> {
    let active = fs::read_to_string("/sys/class/tty/console/active")?;
    let name = active.split_ascii_whitespace().last().unwrap_or("console");
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(Path::new("/dev").join(name))
    };
    let mut command = Command::new("/bin/sh");
    command
        .arg0("-sh")
        .current_dir("/")
        .env("HOME", "/root")
        .env("TERM", "vt100")
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .stdin(open()?)
        .stdout(open()?)
        .stderr(open()?);
    let terminal = || {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        Ok(())
    };
    // SAFETY: two system calls, which allocate nothing and take no lock.
    unsafe {
        command.pre_exec(terminal);
    }
    spawn(&mut command)
}

fn spawn(command: &mut Command) -> io::Result<Pid> {
    let child = command.spawn()?;
    Pid::from_raw(child.id().cast_signed()).ok_or_else(|| io::Error::other("no PID"))
}

fn environment(parameters: &Parameters) -> Vec<(&'static str, String)> {
    let mut variables = vec![(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
    )];
    variables.extend(parameters.hostname.clone().map(|name| ("HOSTNAME", name)));
    if let Some(network) = &parameters.network {
        variables.push(("DEVICE", network.device.clone()));
        let first = network.addresses.first();
        variables.extend(first.map(|subnet| ("ADDRESS", subnet.address.to_string())));
        variables.extend(network.gateway.map(|via| ("GATEWAY", via.to_string())));
    }
    variables
}
