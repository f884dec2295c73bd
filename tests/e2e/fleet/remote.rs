//! Commands for VMs on another node: two daemons in two network namespaces, with the certificates of a fleet.
//! Out of scope: etcd: where VMs are is in a file (`SLICE_TEST_PLACES`); what the commands do on one host.

mod commands;
mod refused;

use std::fs;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rcgen::SerialNumber;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use slicectl::api::vm::Hypervisor;
use test_support::harness::{Harness, group};
use test_support::kernel::{self, Neighbour};
use test_support::{programs, vmm};

use super::pki::Pki;

/// The VM, on node-b.
const VM: &str = "box-1";
/// The addresses of the nodes.
const A: &str = "10.66.0.2";
const B: &str = "10.66.0.1";

/// More than all buffers together.
const LARGE: usize = 50 << 20;

/// node-a without VMs, and node-b with a VM and the real agent.
struct Fleet {
    a: Harness,
    b: Harness,
    pki: Pki,
    /// The serial number of the certificate of node-a.
    serial_a: SerialNumber,
    serial_b: SerialNumber,
    _agent: Killed,
    _programs: tempfile::TempDir,
    _network: Neighbour,
}

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn with_fleet(test: impl FnOnce(&mut Fleet) + Send) {
    with_fleet_of(None, test);
}

/// `files`: the limit of open files of node-a.
fn with_fleet_of(files: Option<(u64, u64)>, test: impl FnOnce(&mut Fleet) + Send) {
    kernel::private_sync(|| {
        let network = Neighbour::join("nodea", &format!("{B}/24"), &format!("{A}/24"));
        let pki = Pki::new(Path::new("/run/pki"));
        let mut b = Harness::new("slice-b");
        let serial_b = join(&mut b, &pki, "node-b", B);
        b.start();
        let mut a = Harness::new("slice-a");
        a.files = files;
        let serial_a = join(&mut a, &pki, "node-a", A);
        in_namespace(&network.path(), || a.start());
        let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let agent = start_vm(&b, programs.path());
        let mut fleet = Fleet {
            a,
            b,
            pki,
            serial_a,
            serial_b,
            _agent: agent,
            _programs: programs,
            _network: network,
        };
        fleet.places(json!({
            "vms": {VM: "node-b"},
            "nodes": {"node-a": url(A), "node-b": url(B)},
        }));
        fleet.b.until("node-b listens", || {
            TcpStream::connect((B, 8080)).ok().map(drop)
        });
        test(&mut fleet);
    });
}

fn url(address: &str) -> String {
    format!("https://{address}:8080")
}

/// Makes a daemon that is not started yet a node; the serial number of its certificate.
fn join(harness: &mut Harness, pki: &Pki, node: &str, address: &str) -> SerialNumber {
    let (identity, serial) = pki.node(node, &[address]);
    let crl = harness.dir.path().join("crl.pem");
    pki.revoke(&crl, &[]);
    let settings = format!(
        "api: {{bind_address: {address}}}\nfleet: {{endpoints: ['https://{B}:2379'], ca: {}, cert: {}, key: {}, crl: {}, node: {node}}}\n",
        pki.ca().display(),
        identity.cert.display(),
        identity.key.display(),
        crl.display(),
    );
    harness.write("sliced.yaml", &settings);
    let places = harness.dir.path().join("places.json");
    harness
        .env
        .push(("SLICE_TEST_PLACES", places.display().to_string()));
    serial
}

/// Runs this on a thread in a network namespace; processes that it starts are in it.
fn in_namespace<T: Send>(path: &Path, run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            let namespace = fs::File::open(path).expect("a namespace");
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).expect("entered");
            run()
        });
        entered.join().expect("it ends")
    })
}

fn start_vm(harness: &Harness, directory: &Path) -> Killed {
    let program = vmm::program(Hypervisor::CloudHypervisor, directory).expect("a program");
    let vmm = format!(
        "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}",
        program.display(),
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
    let mut command = Command::new(programs::built("slice-agent"));
    command.args(["serve", "--unix"]).arg(&socket);
    let agent = command.env("LANG", "C").stdin(Stdio::null()).spawn();
    let agent = Killed(agent.expect("slice-agent"));
    harness.until("the agent listens", || socket.exists().then_some(()));
    agent
}

impl Fleet {
    /// Both nodes know these places.
    fn places(&self, places: serde_json::Value) {
        self.a.write("places.json", &places.to_string());
        self.b.write("places.json", &places.to_string());
    }

    /// `slicectl` at node-a.
    fn ctl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(programs::built("slicectl"));
        command
            .args(words)
            .env("SLICE_SOCKET", self.a.run.join("sliced.sock"))
            .env_remove("TERM")
            .current_dir(self.a.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.ctl(words).output().expect("slicectl")
    }

    fn succeeds(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(
            output.status.success(),
            "{words:?}: {}\n{}",
            text(&output.stderr),
            self.b.log()
        );
        text(&output.stdout)
    }

    fn fails(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        text(&output.stderr)
    }

    /// An error of a command for the VM.
    fn error(&self) -> String {
        self.fails(&["logs", VM])
    }

    fn file(&self, name: &str) -> PathBuf {
        self.a.dir.path().join(name)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
