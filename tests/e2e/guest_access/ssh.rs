//! The SSH server of the daemon, with the clients of OpenSSH and with rsync.
//! Out of scope: what the agent does with a request.
//!
//! | file | what it tests |
//! |---|---|
//! | `files` | scp, sftp and rsync |
//! | `forward` | connections to ports of the guest, and refused ones |
//! | `login` | who may log in, and how many may try |
//! | `menu` | the menu and the console |
//! | `server` | the host key, changes of the settings, the end of the daemon |
//! | `sessions` | commands and shells |

mod files;
mod forward;
mod login;
mod menu;
mod server;
mod sessions;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use test_support::harness::Harness;

use super::with_agent;

/// A login to the VM as root: its normal user depends on the system that runs the tests.
const ROOT: &str = "root+box-1";

/// The port of the server; each test has a network of its own.
const PORT: u16 = 2222;

/// A test with a running VM, its agent, the SSH server and a key that may log in.
fn with_ssh(test: impl FnOnce(&Ssh) + Send) {
    with_agent(|host| {
        let ssh = Ssh {
            harness: &host.harness,
        };
        ssh.keygen("alice");
        ssh.configure("{}", &["alice"]);
        ssh.listens();
        test(&ssh);
    });
}

/// The client's side.
struct Ssh<'h> {
    harness: &'h Harness,
}

impl Ssh<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.harness.dir.path().join(name)
    }

    /// Creates a key without a passphrase.
    fn keygen(&self, name: &str) {
        let mut command = Command::new("ssh-keygen");
        let comment = format!("{name}@test");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", &comment, "-f"]);
        let status = command.arg(self.path(name)).status();
        assert!(status.expect("ssh-keygen").success());
    }

    /// Replaces the settings file of the daemon.
    fn configure(&self, ssh: &str, keys: &[&str]) {
        let keys = keys.iter().map(|key| {
            let line = fs::read_to_string(self.path(&format!("{key}.pub"))).expect("a key");
            format!("  - {line}")
        });
        let text = format!(
            "ssh: {ssh}\nssh_keys:{}\n{}",
            if keys.len() == 0 { " []" } else { "" },
            keys.collect::<String>()
        );
        self.save_settings(&text);
    }

    fn save_settings(&self, text: &str) {
        let temp = self.path("sliced.yaml.new");
        fs::write(&temp, text).expect("written");
        fs::rename(temp, self.path("sliced.yaml")).expect("renamed");
    }

    /// Waits for the server.
    fn listens(&self) {
        self.harness.until("the SSH server listens", || {
            TcpStream::connect(("127.0.0.1", PORT)).ok()
        });
    }

    /// Options of `ssh`, `scp` and `sftp` for a login with this key.
    fn options(&self, key: &str) -> Vec<String> {
        let known_hosts = self.path("known_hosts");
        [
            "BatchMode=yes".to_owned(),
            "StrictHostKeyChecking=accept-new".to_owned(),
            format!("UserKnownHostsFile={}", known_hosts.display()),
            "IdentitiesOnly=yes".to_owned(),
            "IdentityAgent=none".to_owned(),
            format!("IdentityFile={}", self.path(key).display()),
            format!("Port={PORT}"),
            "LogLevel=ERROR".to_owned(),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .chain(["-F".to_owned(), "/dev/null".to_owned()])
        .collect()
    }

    /// A client. Of several values of an option, the first is used.
    fn program(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(words)
            .args(self.options("alice"))
            .current_dir(self.harness.dir.path())
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `ssh ARGUMENTS USER@127.0.0.1 COMMAND`.
    fn ssh(&self, words: &[&str], user: &str, command: &[&str]) -> Command {
        let mut ssh = self.program("ssh", words);
        ssh.arg(format!("{user}@127.0.0.1")).args(command);
        ssh
    }

    /// The output of a command in the VM.
    fn run(&self, command: &str) -> Output {
        self.ssh(&[], ROOT, &[command]).output().expect("ssh")
    }
}

/// Writes all, then reads all, at the same time.
fn exchange(command: &mut Command, input: Vec<u8>) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().expect("spawned");
    let mut stdin = child.stdin.take().expect("a pipe");
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("its output");
    writer.join().expect("written");
    output
}

/// Bytes that do not compress and do not repeat.
fn noise(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let mut urandom = fs::File::open("/dev/urandom").expect("random numbers");
    urandom.read_exact(&mut bytes).expect("random numbers");
    bytes
}

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}
