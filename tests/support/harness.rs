//! A host for a test: a private kernel with the real `sliced` in it, driven by the real `slicectl`.
//! Out of scope: tests; the private kernel itself (`kernel`).
//!
//! # Why
//! The state directory's path names the daemon, and processes are not in the private kernel: every harness has a state
//! directory of its own, or one test's daemon would collect the other's guests.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use serde_json::Value;

use slicectl::api::network::Mac;
use slicectl::host::process;
use slicectl::reconcile::vmm::RUN_DIR_VAR;

use super::guest_stack::Guest;
use super::{kernel, programs};

/// For what must happen, however busy the machine is. The bounds of the specification are asked for with [`Harness::within`].
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks.
const STEP: Duration = Duration::from_millis(15);

/// One daemon's folders, and the daemon while it runs.
pub struct Harness {
    /// Everything below it.
    pub dir: tempfile::TempDir,
    /// Put before the environment of the daemon.
    pub env: Vec<(&'static str, String)>,
    /// Put behind the daemon's words.
    pub args: Vec<String>,
    /// The daemon's RLIMIT_NOFILE, soft and hard; none: this process'.
    pub files: Option<(u64, u64)>,
    /// The run directory; in the private `/run`.
    pub run: PathBuf,
    /// The words of a program that starts the daemon, in other namespaces. None: it is started directly.
    pub starter: Vec<String>,
    child: Option<Child>,
}

/// Runs a test in a private kernel with a daemon that is not started yet.
pub fn empty(test: impl FnOnce(Harness) + Send) {
    kernel::private_sync(|| test(Harness::new("slice")));
}

/// Runs a test in a private kernel with a running daemon.
pub fn with_daemon(test: impl FnOnce(Harness) + Send) {
    empty(|mut harness| {
        harness.start();
        test(harness);
    });
}

impl Harness {
    /// Empty folders; `name` is that of the run directory, below `/run`.
    pub fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for part in ["conf", "state"] {
            fs::create_dir(dir.path().join(part)).expect("a directory");
        }
        Self {
            dir,
            env: Vec::new(),
            args: Vec::new(),
            files: None,
            run: PathBuf::from("/run").join(name),
            starter: Vec::new(),
            child: None,
        }
    }

    /// The config folder.
    pub fn conf(&self) -> PathBuf {
        self.dir.path().join("conf")
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// What the daemon has said, all its lives long.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The daemon's pid.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running daemon").id()
    }

    /// A program of this package, where the daemon runs.
    pub fn starter(&self, name: &str) -> Command {
        let program = programs::built(name);
        let Some((first, rest)) = self.starter.split_first() else {
            return Command::new(program);
        };
        let mut command = Command::new(first);
        command.args(rest).arg(program);
        command
    }

    /// The directory of this test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `sliced` with the directories of this test.
    pub fn sliced(&self) -> Command {
        let mut command = self.starter("sliced");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .expect("a log");
        command
            .env_remove("NOTIFY_SOCKET")
            .env("SLICE_CONFIG_DIR", self.conf())
            .env("SLICE_STATE_DIR", self.state())
            .env("SLICE_RUN_DIR", &self.run)
            .env("SLICE_SETTINGS", self.dir.path().join("sliced.yaml"))
            .env("SLICE_IMAGES", list(&images(self.dir.path())))
            .env("SLICE_PROGRAMS", list(&programs(self.dir.path())))
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .args(&self.args)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some((soft, hard)) = self.files {
            let limit = rustix::process::Rlimit {
                current: Some(soft),
                maximum: Some(hard),
            };
            // SAFETY: between fork and exec only one system call is made.
            unsafe {
                command.pre_exec(move || {
                    let files = rustix::process::Resource::Nofile;
                    Ok(rustix::process::setrlimit(files, limit)?)
                });
            }
        }
        command
    }

    /// Runs a daemon that is to end by itself, with its standard error; kills it after [`PATIENCE`].
    pub fn run_to_end(&self, mut command: Command) -> Output {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("sliced");
        let begin = Instant::now();
        while child.try_wait().expect("its status").is_none() {
            if begin.elapsed() > PATIENCE {
                child.kill().expect("killed");
                let output = child.wait_with_output().expect("its output");
                panic!(
                    "sliced goes on:\n{}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            std::thread::sleep(STEP);
        }
        child.wait_with_output().expect("its output")
    }

    /// Starts the daemon and waits until it says, as systemd hears it, that it is ready. How long that took.
    pub fn start(&mut self) -> Duration {
        let path = self.dir.path().join("notify");
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(STEP)).expect("a timeout");
        let begin = Instant::now();
        let mut command = self.sliced();
        command.env("NOTIFY_SOCKET", &path);
        // Its own process group: an interrupted test run is not its business.
        command.process_group(0);
        let mut child = command.spawn().expect("sliced");
        let mut words = [0; 512];
        loop {
            match socket.recv(&mut words) {
                Ok(length) if words[..length].starts_with(b"READY=1") => break,
                Ok(_) => {}
                // A call with a timeout is not restarted after a signal, such as that of a child's end (signal(7)).
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => panic!("{error}"),
            }
            if let Some(status) = child.try_wait().expect("its status") {
                panic!("sliced ended, {status}:\n{}", self.log());
            }
            assert!(begin.elapsed() < PATIENCE, "never ready:\n{}", self.log());
        }
        self.child = Some(child);
        begin.elapsed()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running daemon");
        child.kill().expect("killed");
        child.wait().expect("its status");
    }

    /// Kills the daemon if it runs.
    pub fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends the mounts of its namespaces, as a boot does. A plugin that a killed daemon started can run on and keep one busy
    /// (EBUSY) until it ends.
    pub fn unmount_namespaces(&self) {
        let netns = self.run.join("netns");
        for entry in std::fs::read_dir(&netns).expect("namespaces") {
            let path = entry.expect("an entry").path();
            self.until(&format!("{} is unmounted", path.display()), || {
                rustix::mount::unmount(&path, UnmountFlags::empty()).ok()
            });
        }
    }

    /// SIGTERM; its exit status, and how long it took to end.
    pub fn stop(&mut self) -> (ExitStatus, Duration) {
        let mut child = self.child.take().expect("a running daemon");
        let begin = Instant::now();
        signal(child.id(), rustix::process::Signal::TERM);
        (child.wait().expect("its status"), begin.elapsed())
    }

    /// The daemon's life again: SIGTERM, then start.
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Writes a file in the config folder, as `mv` does.
    pub fn save(&self, name: &str, text: &str) {
        let (new, path) = (self.dir.path().join("new"), self.conf().join(name));
        fs::write(&new, text).expect("written");
        fs::rename(&new, path).expect("renamed");
    }

    /// Writes a file in a config folder that is another file system.
    pub fn save_across(&self, name: &str, text: &str) {
        let new = self.conf().join("new");
        fs::write(&new, text).expect("written");
        fs::rename(&new, self.conf().join(name)).expect("renamed");
    }

    /// Writes a file beside the config folder.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// `slicectl` with these words (split at blanks).
    pub fn try_ctl(&self, words: &str) -> Output {
        Command::new(programs::built("slicectl"))
            .args(words.split_whitespace())
            .env("SLICE_SOCKET", self.run.join("sliced.sock"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("slicectl")
    }

    /// The same, and it must succeed: its standard output.
    pub fn ctl(&self, words: &str) -> String {
        let output = self.try_ctl(words);
        assert!(
            output.status.success(),
            "`slicectl {words}`: {}\n{}{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// The same, and it must fail with that status: its standard error.
    pub fn refused(&self, words: &str, status: i32) -> String {
        let output = self.try_ctl(words);
        let reported = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(
            output.status.code(),
            Some(status),
            "`slicectl {words}`: {reported}"
        );
        reported
    }

    /// `slicectl get … -o json`; null when there is no such object.
    pub fn get(&self, what: &str) -> Value {
        let output = self.try_ctl(&format!("get {what} -o json"));
        match output.status.success() {
            true => serde_json::from_slice(&output.stdout).expect("JSON"),
            false => Value::Null,
        }
    }

    /// All VMs' names, in order.
    pub fn vms(&self) -> Vec<String> {
        let list = self.get("vms");
        let items = list["items"].as_array().expect("items");
        let name = |vm: &Value| vm["metadata"]["name"].as_str().expect("a name").to_owned();
        items.iter().map(name).collect()
    }

    /// All that has happened, as far as it is remembered; `about` nothing: to anything.
    pub fn events(&self, about: &str) -> Vec<Value> {
        self.ctl(&format!("events {about} -o json"))
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    /// The messages of events with that reason.
    pub fn messages(&self, about: &str, reason: &str) -> Vec<String> {
        let events = self.events(about).into_iter();
        let found = events.filter(|event| event["reason"] == reason);
        found
            .map(|event| event["message"].as_str().expect("a message").to_owned())
            .collect()
    }

    /// Applies a manifest and waits until its group is Ready.
    pub fn apply(&self, manifest: &str) {
        let path = self.write("manifest.yaml", manifest);
        self.ctl(&format!("apply -f {path} --wait=60s"));
    }

    /// Looks until `look` finds something; fails the test, with the daemon's log, after [`PATIENCE`].
    #[track_caller]
    pub fn until<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        self.look_until(what, PATIENCE, look).0
    }

    /// The same, and it must not take longer than the specification says. On a machine that has more to do than it has
    /// processors the bound is wider by that factor.
    #[track_caller]
    pub fn within<T>(&self, bound: Duration, what: &str, look: impl FnMut() -> Option<T>) -> T {
        let (found, took) = self.look_until(what, PATIENCE, look);
        let bound = bound.mul_f64(crowd());
        assert!(
            took <= bound,
            "{what} took {took:?}, more than {bound:?}:\n{}",
            self.log()
        );
        eprintln!("{what}: {} ms", took.as_millis());
        found
    }

    #[track_caller]
    fn look_until<T>(
        &self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> (T, Duration) {
        let begin = Instant::now();
        loop {
            if let Some(found) = look() {
                return (found, begin.elapsed());
            }
            if begin.elapsed() > patience {
                let events = self.try_ctl("events").stdout;
                let events = String::from_utf8_lossy(&events).into_owned();
                panic!("waited in vain: {what}\n{events}\n{}", self.log());
            }
            std::thread::sleep(STEP);
        }
    }

    /// Waits until `look` returns the same for a while.
    #[track_caller]
    pub fn settles<T: PartialEq>(&self, a_while: Duration, mut look: impl FnMut() -> T) {
        let (begin, mut since, mut last) = (Instant::now(), Instant::now(), look());
        while since.elapsed() < a_while {
            assert!(begin.elapsed() < PATIENCE, "it changes: {}", self.log());
            std::thread::sleep(STEP);
            let now = look();
            if now != last {
                (since, last) = (Instant::now(), now);
            }
        }
    }

    /// Fails if `same` changes within a while: for what must *not* happen.
    #[track_caller]
    pub fn stays<T: PartialEq + Debug>(&self, a_while: Duration, mut same: impl FnMut() -> T) {
        let (begin, before) = (Instant::now(), same());
        while begin.elapsed() < a_while {
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(same(), before, "{}", self.log());
        }
    }
}

impl Drop for Harness {
    /// The daemon, and the guests that outlive it by design.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- sliced said:\n{}", self.log());
        }
        self.end();
        kill_guests(&self.run);
    }
}

/// Kills the guests that have this run directory.
pub fn kill_guests(run: &Path) {
    for pid in guests(run) {
        signal(pid, rustix::process::Signal::KILL);
    }
}

/// Where tests have images: a directory of their own, and what is built once for all of them.
pub fn images(own: &Path) -> Vec<PathBuf> {
    let guest = std::env::var_os("SLICE_GUEST_DIR").map(PathBuf::from);
    let built = programs::root().join("target/guest");
    let tmp = programs::scratch();
    // What is to be missing is missing below the last one.
    vec![
        own.to_owned(),
        tmp,
        guest.unwrap_or(built),
        "/nowhere".into(),
    ]
}

/// Where tests have programs: the system's, and those of their own.
pub fn programs(own: &Path) -> Vec<PathBuf> {
    let named = [
        "SLICE_TEST_QEMU",
        "SLICE_TEST_FIRECRACKER",
        "SLICE_TEST_JAILER",
        "SLICE_TEST_CLOUD_HYPERVISOR",
    ];
    let named = named.iter().filter_map(std::env::var_os).map(PathBuf::from);
    let named = named.filter_map(|program| program.parent().map(Path::to_owned));
    let own = [own.to_owned(), programs::scratch()];
    let system = slicectl::api::allowed::AllowedDirectories::default().programs;
    system.into_iter().chain(own).chain(named).collect()
}

fn list(dirs: &[PathBuf]) -> String {
    let dirs = dirs.iter().map(|dir| dir.to_str().expect("UTF-8"));
    dirs.collect::<Vec<_>>().join(":")
}

/// Processes that have a run directory of this test. Other tests may have one of the same name: what is found was started from the
/// calling thread's mounts.
pub fn guests(run: &Path) -> Vec<u32> {
    let found = process::find(RUN_DIR_VAR).unwrap_or_default().into_iter();
    found
        .filter(|found| Path::new(&found.value).starts_with(run.join("vm")))
        .map(|found| found.identity.pid)
        .collect()
}

/// The pids of all VMMs.
pub fn pids(harness: &Harness) -> Vec<u32> {
    let list = harness.get("vms");
    let items = list["items"].as_array().expect("items").iter();
    let pid = |vm: &Value| {
        vm["status"]["vmm"]["pid"]
            .as_u64()
            .and_then(|pid| pid.try_into().ok())
    };
    items.filter_map(pid).collect()
}

/// How many times more there is to do on this machine than it can do at once, at least 1.
pub fn crowd() -> f64 {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load
        .split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(1.0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (load / cores as f64).clamp(1.0, 10.0)
}

/// Sends a signal to one process.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let _ = rustix::process::kill_process(pid.expect("a pid"), signal);
}

/// A group `sandbox` of `count` slots without VMM, its /22 written; `network` are more lines of its network.
pub fn slots(count: u32, network: &str) -> String {
    group("sandbox", count, "169.254.100.0/22", network)
}

/// A group of slots without VMM.
pub fn group(name: &str, count: u32, range: &str, network: &str) -> String {
    format!(
        "config:
  host_groups:
    - name: {name}
      count: {count}
      vcpu: 1
      ram_mb: 128
      hypervisor: none
      network:
        mode: isolated
        range: {range}
        {network}
"
    )
}

/// A group of slots without VMM in bridge mode; `network` are the lines of its network.
pub fn bridge_group(name: &str, count: u32, network: &str) -> String {
    let network = network.replace('\n', "\n        ");
    format!(
        "config:
  host_groups:
    - name: {name}
      count: {count}
      vcpu: 1
      ram_mb: 128
      hypervisor: none
      network:
        mode: bridge
        {network}
"
    )
}

/// Where a VM's things are, as `slicectl` answers.
pub struct Place {
    /// The VM's uid.
    pub uid: String,
    /// The namespace's path.
    pub netns: String,
    /// The namespace's name for `ip netns`.
    pub name: String,
    /// The veth end on the host.
    pub link: String,
    /// The guest's address.
    pub ip: String,
    /// The gateway's address.
    pub gateway: String,
    /// Its /30.
    pub block: String,
}

impl Harness {
    /// Where that VM's things are.
    pub fn place(&self, vm: &str) -> Place {
        let found = self.get(&format!("vm {vm}"));
        let network = &found["status"]["network"];
        let text = |key: &str| network[key].as_str().expect(key).to_owned();
        let netns = text("netns");
        Place {
            uid: found["metadata"]["uid"].as_str().expect("a uid").to_owned(),
            name: netns.rsplit('/').next().expect("a name").to_owned(),
            netns,
            link: text("host_link"),
            ip: text("ip"),
            gateway: text("gateway"),
            block: self.get(&format!("lease {vm}"))["block"]
                .as_str()
                .expect("a block")
                .to_owned(),
        }
    }
}

impl Harness {
    /// Attaches to the TAP of a VM on a bridge, and asks for the gateway as a guest would.
    pub fn port(&self, vm: &str) -> Guest {
        let found = self.get(&format!("vm {vm}"));
        let network = &found["status"]["network"];
        let text = |key: &str| network[key].as_str().expect(key);
        let address = |key: &str| text(key).parse().expect("an address");
        let mac = Mac::try_from(text("mac").to_owned()).expect("a MAC").0;
        Guest::join(text("tap"), mac, address("ip"), address("gateway"))
    }
}

/// All that stands in the calling thread's namespaces and in every namespace in `/run/netns`: links, addresses, routes,
/// permanent neighbours, rules and switches. What differs between two builds of the same (indices, handles) is left out.
pub fn world() -> String {
    look(
        "sed -E 's/^[0-9]+: //; s/@if[0-9]+//; s/ link-netns(id)? [^ ]+//; s/ qdisc [^ ]+//; s/ state [A-Z]+//; s/<[^>]*>//; s/ (proto|src|scope) [^ ]+//g' | sort",
        "",
    )
}

/// The same with all that would change if anything were made anew: link indices and nftables' rule handles.
pub fn world_to_the_last_handle() -> String {
    look(
        "cat",
        "nft -a list ruleset | sed -E 's/packets [0-9]+ bytes [0-9]+//'",
    )
}

fn look(filter: &str, more: &str) -> String {
    kernel::run(&format!(
        r#"see="$(cat <<'END'
             ip -o link | {filter}
             ip -o -4 addr | {filter}
             ip -4 route show table all | {filter} | sort
             ip -4 neigh show nud permanent | sort
             iptables-save | grep -v '^#' | sed 's/ \[[0-9:]*\]$//'
             ip6tables-save | grep '^:' | sed 's/ \[[0-9:]*\]$//'
             cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/disable_ipv6
             bridge -d link show | sed -nE 'N; s/^[0-9]+: ([^:]+):.*(learning [a-z]+ flood [a-z]+).*(isolated [a-z]+).*/port \1 \2 \3/p' | sort
             bridge fdb show | grep -w static | sort
             tc qdisc show | sed -n 's/.*clsact .* dev \([^ ]*\) .*/\1/p' | sort | while read -r link; do echo "filters at $link"; tc filter show dev "$link" ingress; done
             {more}
END
           )"
           echo host; eval "$see"
           for name in $(ls /run/netns); do
             echo "namespace $name"
             ip netns exec "$name" sh -c "$see" || echo "gone"
           done"#
    ))
}
