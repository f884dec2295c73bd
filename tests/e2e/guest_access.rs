//! Access to a guest, from `slicectl` through the daemon to the real `slice-agent`, which serves the vsock socket of a VM whose VMM is a
//! double; and agents that misbehave.
//! Out of scope: the vsock devices of real VMMs.

mod background;
mod copy;
mod exec;
mod forward;
mod hostile;
mod refused;
mod shell;
mod ssh;

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

/// Runs a test with a running VM whose vsock socket nobody serves.
fn with_vm(test: impl FnOnce(&Host) + Send) {
    with_daemon(|harness| {
        let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let program = vmm::program(Hypervisor::CloudHypervisor, programs.path());
        let vmm = format!(
            "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}",
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
        test(&Host {
            harness,
            socket,
            _programs: programs,
        });
    });
}

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a test with a running VM and the real agent.
fn with_agent(test: impl FnOnce(&Host) + Send) {
    with_vm(|host| {
        let agent = Command::new(programs::built("slice-agent"))
            .args(["serve", "--unix"])
            .arg(&host.socket)
            .env("LANG", "C")
            .stdin(Stdio::null())
            .spawn();
        let _agent = Killed(agent.expect("slice-agent"));
        host.harness
            .until("the agent listens", || host.socket.exists().then_some(()));
        test(host);
    });
}

impl Host {
    /// `slicectl` with these words.
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
