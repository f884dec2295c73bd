//! Hosts of a fleet: each is a network namespace on the bridge of etcd with mounts of its own, a daemon and a guard.
//! Out of scope: tests; etcd ([`super::lab`]).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use test_support::harness::{Harness, kill_guests};
use test_support::kernel::{self, Neighbour};

use super::lab::{Lab, NODES, Options, password};
use super::pki::Validity;

/// A fleet.
pub struct Fleet {
    pub hosts: Vec<Host>,
    pub lab: Lab,
}

/// A host.
pub struct Host {
    pub name: &'static str,
    pub harness: Harness,
    pub net: Neighbour,
    /// It keeps the mount namespace.
    mounts: Child,
    guard: Option<Child>,
}

/// Runs a test with a fleet of which all daemons run. The first `control` hosts may schedule.
pub fn fleet(hosts: usize, control: usize, test: impl FnOnce(&mut Fleet) + Send) {
    fleet_with(hosts, control, |_| {}, test);
}

/// The same, with something done for each host before its daemon starts.
pub fn fleet_with(
    hosts: usize,
    control: usize,
    before: impl Fn(&mut Host) + Send + Sync,
    test: impl FnOnce(&mut Fleet) + Send,
) {
    kernel::private_sync(|| {
        let lab = Lab::with(Options {
            nodes: hosts,
            ..Options::default()
        });
        let mut fleet = Fleet {
            hosts: (0..hosts).map(Host::new).collect(),
            lab,
        };
        for (at, host) in fleet.hosts.iter_mut().enumerate() {
            host.configure(&fleet.lab, at < control);
            before(host);
            host.harness.start();
        }
        fleet.until("all nodes are Ready", |fleet| {
            let nodes = fleet.get("nodes")?;
            let ready = |node: &&Value| node["states"][0] == "Ready" && node["status"].is_object();
            (nodes.iter().filter(ready).count() == hosts).then_some(())
        });
        test(&mut fleet);
    });
}

impl Host {
    fn new(at: usize) -> Self {
        let name = format!("h{}", at + 1);
        let net = Neighbour::alone(&name);
        kernel::run(&format!(
            "ip link add {name} type veth peer name eth0 netns {name}
             ip link set {name} master etcd up
             ip -n {name} addr add 10.77.0.2{}/24 dev eth0
             ip -n {name} link set eth0 up",
            at + 1
        ));
        let ready = PathBuf::from(format!("/run/{name}.ready"));
        let mounts = Command::new("nsenter")
            .arg(format!("--net={}", net.path().display()))
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .args(["unshare", "--mount", "--propagation", "private"])
            .args(["sh", "-ec"])
            .arg(format!(
                "mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run/netns; mkdir -p /run/slice-ranges; mount -t tmpfs tmpfs /run/slice-ranges; touch {}; exec sleep infinity",
                ready.display()
            ))
            .stdin(Stdio::null())
            .spawn()
            .expect("nsenter");
        let mut harness = Harness::new(&name);
        harness.until("its mounts", || ready.exists().then_some(()));
        harness.starter = [
            "nsenter".to_owned(),
            format!("--net={}", net.path().display()),
            format!("--mount=/proc/{}/ns/mnt", mounts.id()),
            "--".to_owned(),
        ]
        .into();
        Self {
            name: NODES[at],
            harness,
            net,
            mounts,
            guard: None,
        }
    }

    /// Writes the settings file and the files that it names.
    fn configure(&self, lab: &Lab, control: bool) {
        let dir = self.harness.dir();
        let identity = lab.pki.client(self.name, Validity::Now);
        let user = if control { "control" } else { self.name };
        let file = |name: &str, content: &[u8]| secret(&dir.join(name), content);
        let read = |path: &Path| fs::read(path).expect("readable");
        file("ca.pem", &read(&lab.pki.ca()));
        file("cert.pem", &read(&identity.cert));
        file("key.pem", &read(&identity.key));
        file("password", password(user).as_bytes());
        let urls: Vec<String> = lab
            .endpoints()
            .iter()
            .map(|url| format!("\"{url}\""))
            .collect();
        let path = |name: &str| dir.join(name).display().to_string();
        let text = format!(
            "fleet:
  endpoints: [{}]
  ca: {}
  cert: {}
  key: {}
  node: {}
  user: {user}
  password_file: {}
  control: {control}
  labels: {{zone: {}}}
",
            urls.join(", "),
            path("ca.pem"),
            path("cert.pem"),
            path("key.pem"),
            self.name,
            path("password"),
            &self.name[5..],
        );
        fs::write(dir.join("sliced.yaml"), text).expect("written");
    }

    /// Starts the guard.
    pub fn start_guard(&mut self) {
        fs::create_dir_all(&self.harness.run).expect("a directory");
        let mut command = self.harness.starter("sliced");
        command
            .args(["fence", "--run-dir"])
            .arg(&self.harness.run)
            .stdin(Stdio::null());
        self.guard = Some(command.spawn().expect("sliced fence"));
        let lock = self.harness.run.join("fence.lock");
        self.harness
            .until("the lock of the guard", || lock.exists().then_some(()));
    }

    /// Stops the guard.
    pub fn stop_guard(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            guard.kill().expect("killed");
            guard.wait().expect("its end");
        }
    }

    /// Drops all packets between the host and the others.
    pub fn cut_off(&self) {
        kernel::run(&format!("ip link set {} down", self.net.name));
    }

    /// Ends [`Host::cut_off`].
    pub fn heal(&self) {
        kernel::run(&format!("ip link set {} up", self.net.name));
    }

    /// The names of the VMs that this host has.
    pub fn vms(&self) -> Vec<String> {
        self.harness.vms()
    }

    /// What is left of VMs on this host: namespaces, links.
    pub fn left(&self) -> String {
        let script = "ls /run/netns | grep -v -E '^(e|h)[0-9]$'; ip -o link | grep -o 'sl[0-9a-f-]*[^:@ ]*' || true";
        let output = self.run(script);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Runs a shell command in the namespaces of the host.
    pub fn run(&self, script: &str) -> Output {
        let words = &self.harness.starter;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["sh", "-c", script]);
        command.stdin(Stdio::null()).output().expect("nsenter")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.harness.end();
        // They are found from the mounts from which they were started.
        let run = self.harness.run.clone();
        let _ended_before = kernel::with_mounts_of(self.mounts.id(), || kill_guests(&run));
        for child in self.guard.iter_mut().chain([&mut self.mounts]) {
            let _ended_before = child.kill();
            let _ = child.wait();
        }
    }
}

/// Writes a file that others cannot read.
fn secret(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its mode");
}

impl Fleet {
    /// `slicectl` at the first host.
    #[track_caller]
    pub fn ctl(&self, words: &str) -> String {
        self.hosts[0].harness.ctl(words)
    }

    /// `slicectl get WHAT -o json` at the first host: the items. `None`: it fails.
    pub fn get(&self, what: &str) -> Option<Vec<Value>> {
        self.get_at(0, what)
    }

    /// The same at another host.
    pub fn get_at(&self, host: usize, what: &str) -> Option<Vec<Value>> {
        let harness = &self.hosts[host].harness;
        let output = harness.try_ctl(&format!("get {what} -o json"));
        let found: Value = serde_json::from_slice(&output.stdout).ok()?;
        output
            .status
            .success()
            .then(|| found["items"].as_array().cloned())?
    }

    /// Applies a manifest.
    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        let path = self.hosts[0].harness.write("fleet.yaml", manifest);
        self.ctl(&format!("apply --fleet -f {path}"));
    }

    /// Looks until `look` finds something.
    #[track_caller]
    pub fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        self.within(Duration::from_secs(60), what, &mut look)
    }

    /// The same, for a time.
    #[track_caller]
    pub fn within<T>(
        &self,
        time: Duration,
        what: &str,
        mut look: impl FnMut(&Self) -> Option<T>,
    ) -> T {
        let begin = std::time::Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            if begin.elapsed() > time {
                for host in &self.hosts {
                    eprintln!("--- {}\n{}", host.name, tail(&host.harness.log()));
                }
                eprintln!("{:?}", self.get("vms --fleet"));
                panic!("{what}: not within {time:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The numbers of VMs of each host.
    pub fn counts(&self) -> Vec<usize> {
        self.hosts.iter().map(|host| host.vms().len()).collect()
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
