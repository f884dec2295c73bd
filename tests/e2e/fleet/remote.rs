//! Commands for VMs on another node: two daemons in two network namespaces, with the certificates of a fleet.
//! Out of scope: the scheduler: the objects of VMs are written by the tests; what the commands do on one host.

mod certificate;
mod commands;
mod refused;

use std::fs;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rcgen::SerialNumber;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use slicectl::api::meta::{Meta, Name, Timestamp, Uid};
use slicectl::api::vm::Hypervisor;
use slicectl::fleet::keys::Key;
use slicectl::fleet::kv::Client;
use slicectl::fleet::object::{self, Binding, Group, NodeStatus, Resources, VERSION, Vm};
use test_support::harness::{Harness, group};
use test_support::kernel::{self, Neighbour};
use test_support::{programs, vmm};

use super::lab::{Lab, password};
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
    client: Client,
    runtime: tokio::runtime::Runtime,
    lab: Lab,
    /// The serial number of the certificate of node-a.
    serial_a: SerialNumber,
    serial_b: SerialNumber,
    agent: Option<Killed>,
    _network: Neighbour,
    programs: tempfile::TempDir,
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
        let lab = Lab::start();
        kernel::run(
            "ip link add nodea1 type veth peer name eth1 netns nodea
             ip link set nodea1 master etcd up
             ip -n nodea addr add 10.77.0.31/24 dev eth1
             ip -n nodea link set eth1 up",
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let client = {
            let _entered = runtime.enter();
            lab.client("control")
        };
        let mut b = Harness::new("slice-b");
        let serial_b = join(&mut b, &lab, "node-b", B);
        b.start();
        let mut a = Harness::new("slice-a");
        a.files = files;
        let serial_a = join(&mut a, &lab, "node-a", A);
        in_namespace(&network.path(), || a.start());
        let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut fleet = Fleet {
            a,
            b,
            client,
            runtime,
            lab,
            serial_a,
            serial_b,
            agent: None,
            _network: network,
            programs,
        };
        fleet.start_vm();
        fleet.b.until("node-b listens", || {
            TcpStream::connect((B, 8080)).ok().map(drop)
        });
        fleet.b.until("node-a knows the VM", || {
            let output = fleet.run(&["get", "vm", VM]);
            output.status.success().then_some(())
        });
        test(&mut fleet);
    });
}

fn url(address: &str) -> String {
    format!("https://{address}:8080")
}

/// Makes a daemon that is not started yet a node; the serial number of its certificate.
fn join(harness: &mut Harness, lab: &Lab, node: &str, address: &str) -> SerialNumber {
    let pki: &Pki = &lab.pki;
    let (identity, serial) = pki.node(node, &[address]);
    let crl = harness.dir.path().join("crl.pem");
    pki.revoke(&crl, &[]);
    let words = harness.write("password", &password("control"));
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(&words, mode).expect("its mode");
    let urls: Vec<String> = lab
        .endpoints()
        .iter()
        .map(|url| format!("'{url}'"))
        .collect();
    // Nobody schedules: the tests write the objects of VMs.
    let settings = format!(
        "api: {{bind_address: {address}}}\nfleet: {{endpoints: [{}], ca: {}, cert: {}, key: {}, crl: {}, node: {node}, user: control, password_file: {words}, control: false}}\n",
        urls.join(", "),
        pki.ca().display(),
        identity.cert.display(),
        identity.key.display(),
        crl.display(),
    );
    harness.write("sliced.yaml", &settings);
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

impl Fleet {
    /// A VM of the fleet on node-b, with the real agent.
    fn start_vm(&mut self) {
        let program = vmm::program(Hypervisor::CloudHypervisor, self.programs.path());
        let vmm = format!(
            "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}",
            program.expect("a program").display(),
            vmm::tiny_guest().display()
        );
        let manifest = group("box", 1, "169.254.100.0/22", "").replace("hypervisor: none", &vmm);
        let path = self.b.write("box.yaml", &manifest);
        self.b.until("the fleet is connected", || {
            let output = self.b.try_ctl(&format!("apply --fleet -f {path}"));
            output.status.success().then_some(())
        });
        self.bind(VM, "node-b");
        let socket = self.b.until("the control socket", || {
            let vm = self.b.get(&format!("vm {VM}"));
            let is_ready = vm["status"]["ready"] == true;
            let socket = vm["status"]["vmm"]["api_socket"]
                .as_str()
                .map(PathBuf::from);
            socket.filter(|_| is_ready)
        });
        let socket = socket.with_file_name("vsock.sock");
        let _ = fs::remove_file(&socket);
        let mut command = Command::new(programs::built("slice-agent"));
        command.args(["serve", "--unix"]).arg(&socket);
        let agent = command.env("LANG", "C").stdin(Stdio::null()).spawn();
        self.agent = Some(Killed(agent.expect("slice-agent")));
        self.b
            .until("the agent listens", || socket.exists().then_some(()));
    }

    fn put(&self, key: Key, value: Vec<u8>) {
        let put = self.client.put(key, value, None);
        self.runtime.block_on(put).expect("written");
    }

    /// Writes the object of a VM, bound to a node; `box` is the only group that exists.
    fn bind(&self, vm: &str, node: &str) {
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let found = self
            .runtime
            .block_on(self.client.get(Key::Group(name("box"))));
        let (_, found) = found.expect("an answer");
        let group: Group = object::decode(&found.expect("the group").value).expect("a group");
        let (of, index) = vm.rsplit_once('-').expect("an index");
        // A node does not run a VM of a group that is not in the fleet.
        let group_uid = match of {
            "box" => group.meta.uid,
            _ => Uid::random(),
        };
        let of = of.to_owned();
        let object = Vm {
            meta: Meta::new(name(vm), Timestamp::UNIX_EPOCH),
            group: name(&of),
            group_uid,
            index: index.parse().expect("an index"),
            group_generation: group.meta.generation,
            binding: Some(Binding {
                node: name(node),
                epoch: 1,
                group_generation: group.meta.generation,
                resources: Resources::default(),
                moving_from: None,
            }),
            epoch: 1,
            previous: Vec::new(),
            refusals: Vec::new(),
            pending: None,
        };
        let uid: Uid = object.meta.uid;
        self.put(Key::Vm(uid), object::encode(&object).expect("JSON"));
    }

    /// Writes what a node that does not exist reports of itself.
    fn register(&self, node: &str, api: Option<&str>) {
        let status = NodeStatus {
            labels: Default::default(),
            architecture: "x86_64".to_owned(),
            hypervisors: Vec::new(),
            secrets: Default::default(),
            has_guard: true,
            has_agent: true,
            networks: Default::default(),
            files: Default::default(),
            capacity: Resources::default(),
            allocatable: Resources::default(),
            version: "0.0.0".to_owned(),
            format: VERSION,
            api: api.map(str::to_owned),
            boot_id: "none".to_owned(),
        };
        let key = Key::NodeStatus(node.parse().expect("a name"));
        self.put(key, object::encode(&status).expect("JSON"));
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
