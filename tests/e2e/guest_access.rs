//! Access to a guest, from `slicectl` through the daemon to the real `slice-agent`, which serves the vsock socket of a VM with a
//! double of a VMM; and agents that misbehave.
//! Out of scope: the vsock devices of real VMMs.

mod audit;
mod background;
mod copy;
mod crash;
mod exec;
mod forward;
mod hostile;
mod provision;
mod refused;
mod remote;
mod secrets;
mod shell;
mod ssh;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use slicectl::api::vm::Hypervisor;
use test_support::harness::{Harness, group, with_daemon};
use test_support::{programs, vmm};

/// The VM.
const VM: &str = "box-1";

/// A daemon with a running VM.
struct Host {
    harness: Harness,
    /// The socket of its vsock device.
    socket: PathBuf,
    _programs: tempfile::TempDir,
}

/// Runs a test with a running VM without a server on its vsock socket.
fn with_vm(test: impl FnOnce(&mut Host) + Send) {
    with_vm_of("", test);
}

/// The same with these lines in its group.
fn with_vm_of(lines: &str, test: impl FnOnce(&mut Host) + Send) {
    let lines: String = lines
        .lines()
        .map(|line| format!("\n      {line}"))
        .collect();
    with_daemon(move |harness| {
        let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let program = vmm::program(Hypervisor::CloudHypervisor, programs.path());
        let vmm = format!(
            "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}{lines}",
            program.expect("a program").display(),
            vmm::tiny_guest().display()
        );
        let manifest = group("box", 1, "169.254.100.0/22", "").replace("hypervisor: none", &vmm);
        harness.apply(&manifest);
        let vm = harness.get(&format!("vm {VM}"));
        let control = vm["status"]["vmm"]["api_socket"]
            .as_str()
            .expect("a control socket");
        let socket = Path::new(control).with_file_name("vsock.sock");
        let _ = fs::remove_file(&socket);
        test(&mut Host {
            harness,
            socket,
            _programs: programs,
        });
    });
}

/// A process that is killed when it is dropped.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a test with a running VM and the real agent.
fn with_agent(test: impl FnOnce(&mut Host) + Send) {
    with_vm(|host| {
        let _agent = host.agent(None);
        test(host);
    });
}

impl Host {
    /// The real agent; with `root`, it provisions this directory as if it were the file system of the guest.
    fn agent(&self, root: Option<&Path>) -> Killed {
        match root {
            Some(root) => self.agent_with(&["--root".as_ref(), root.as_os_str()]),
            None => self.agent_with(&[]),
        }
    }

    /// The same with these arguments.
    fn agent_with(&self, arguments: &[&OsStr]) -> Killed {
        let mut command = Command::new(programs::built("slice-agent"));
        command.args(["serve", "--unix"]).arg(&self.socket);
        command.args(arguments);
        let _ = fs::remove_file(&self.socket);
        let agent = command.env("LANG", "C").stdin(Stdio::null()).spawn();
        let agent = Killed(agent.expect("slice-agent"));
        self.harness
            .until("the agent listens", || self.socket.exists().then_some(()));
        agent
    }

    /// Reason and message of the condition `Agent`.
    fn condition(&self) -> (String, String) {
        let vm = self.harness.get(&format!("vm {VM}"));
        let conditions = vm["status"]["conditions"].as_array().expect("conditions");
        let found = conditions.iter().find(|it| it["type"] == "Agent");
        let text = |field: &str| {
            let value = found.and_then(|it| it[field].as_str());
            value.unwrap_or_default().to_owned()
        };
        (text("reason"), text("message"))
    }

    /// Waits for a message of the condition `Agent`.
    fn until_message(&self, expected: &str) {
        self.harness
            .until(expected, || (self.condition().1 == expected).then_some(()));
    }

    /// `slicectl` with these arguments.
    fn ctl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(programs::built("slicectl"));
        command
            .args(words)
            .env("SLICE_SOCKET", self.harness.run.join("sliced.sock"))
            .env_remove("TERM")
            .current_dir(self.harness.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The output of `slicectl vm exec VM -- …`.
    fn exec(&self, words: &[&str]) -> Output {
        let words = [&["vm", "exec", VM, "--uid", "0", "--"], words].concat();
        self.ctl(&words).output().expect("slicectl")
    }

    /// Number of descriptors of the daemon.
    fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.harness.pid());
        fs::read_dir(path).expect("descriptors").count()
    }
}

/// The resident memory of a process, in bytes.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| {
        line.trim()
            .trim_end_matches(" kB")
            .trim()
            .parse::<u64>()
            .ok()
    });
    kib.unwrap_or_default() << 10
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
