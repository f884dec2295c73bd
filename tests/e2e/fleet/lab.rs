//! Three members of etcd, each in a network namespace on a bridge of the private kernel, with TLS, users and roles.
//! Out of scope: tests.
//!
//! ```ignore
//! kernel::private(async {
//!     let mut lab = Lab::start();
//!     let client = lab.client("control");
//!     lab.kill(lab.leader());
//! });
//! ```
//!
//! # Why
//! The data is on the tmpfs of the private kernel: a disk that is busy makes elections. `tests/setup.sh` unpacks etcd and does not install
//! it, since an installed etcd is started.

mod admin;
mod members;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use slicectl::fleet::kv::{Client, Config, Credentials, Identity, Password, Url};
use test_support::kernel;

use super::pki::{Pki, Validity};
pub use admin::password;
use members::{Member, programs_dir};

/// For what must happen, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The nodes that have users, roles and certificates. `control` and `root` have them as well.
pub const NODES: [&str; 6] = ["node-a", "node-b", "node-c", "node-d", "node-e", "node-f"];

/// What differs between labs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a token is valid that is not used.
    pub token_ttl: Duration,
    /// The interval in which a watch without changes reports progress.
    pub progress_interval: Duration,
    /// The nodes that have users and roles, of [`NODES`].
    pub nodes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token_ttl: Duration::from_secs(300),
            progress_interval: Duration::from_secs(600),
            nodes: 2,
        }
    }
}

/// A cluster, until it is dropped.
pub struct Lab {
    dir: PathBuf,
    programs: PathBuf,
    pub pki: Pki,
    server: Identity,
    members: Vec<Member>,
    options: Options,
    /// Another token is another cluster.
    token: u32,
}

impl Lab {
    /// A cluster with users, in the private kernel of this test. All of it is ready.
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    /// The same with options.
    pub fn with(options: Options) -> Self {
        let dir = PathBuf::from("/run/etcd");
        fs::create_dir_all(&dir).expect("a directory");
        kernel::run(
            "ip link add etcd type bridge
             ip addr add 10.77.0.1/24 dev etcd
             ip link set etcd up",
        );
        let members: Vec<Member> = (1..=3).map(Member::new).collect();
        let pki = Pki::new(&dir.join("pki"));
        let addresses: Vec<String> = members.iter().map(|m| m.address.clone()).collect();
        let mut lab = Self {
            server: pki.server(&addresses),
            programs: programs_dir(),
            dir,
            pki,
            members,
            options,
            token: 1,
        };
        lab.start_all("new");
        lab.create_users();
        lab
    }

    /// The URLs of all members.
    pub fn endpoints(&self) -> Vec<Url> {
        let urls = self.members.iter().map(Member::client_url);
        urls.map(|url| url.parse().expect("a URL")).collect()
    }

    /// The URL of a member.
    pub fn endpoint(&self, member: usize) -> Url {
        self.endpoints()[member].clone()
    }

    /// The settings of a user.
    pub fn config(&self, user: &str) -> Config {
        Config {
            ca: Some(self.pki.ca()),
            identity: Some(self.pki.client(user, Validity::Now)),
            credentials: Some(Credentials {
                user: user.to_owned(),
                password: Password::new(password(user)),
            }),
            ..Config::new(self.endpoints())
        }
    }

    /// A client of a user.
    pub fn client(&self, user: &str) -> Client {
        Client::new(&self.config(user)).expect("a client")
    }

    /// `kill -9`
    pub fn kill(&mut self, member: usize) {
        let mut child = self.members[member].child.take().expect("a running member");
        child.kill().expect("killed");
        child.wait().expect("its status");
    }

    /// Starts a member that was killed, and waits until it serves.
    pub fn restart(&mut self, member: usize) {
        self.spawn(member, "existing");
        self.wait(member);
    }

    /// Starts a member that was killed, without waiting: there may be no majority.
    pub fn restart_without_majority(&mut self, member: usize) {
        self.spawn(member, "existing");
    }

    /// SIGSTOP: connections are accepted by the kernel, and nothing is answered.
    pub fn pause(&self, member: usize) {
        self.members[member].signal(Signal::STOP);
    }

    /// SIGCONT
    pub fn resume(&self, member: usize) {
        self.members[member].signal(Signal::CONT);
    }

    /// Drops all packets between a member and the others. Clients reach it.
    pub fn partition(&self, member: usize) {
        for peer in self.others(member) {
            let address = &peer.address;
            self.members[member].host.run(&format!(
                "iptables -w -A INPUT -s {address} -j DROP
                 iptables -w -A OUTPUT -d {address} -j DROP"
            ));
        }
    }

    /// Drops all packets of a member, also those of clients.
    pub fn isolate(&self, member: usize) {
        self.members[member].host.run(
            "iptables -w -A INPUT ! -i lo -j DROP
             iptables -w -A OUTPUT ! -o lo -j DROP",
        );
    }

    /// Ends [`Lab::partition`] and [`Lab::isolate`] of a member.
    pub fn heal(&self, member: usize) {
        self.members[member].host.run("iptables -w -F");
    }

    /// The member that leads; waits for an election.
    #[track_caller]
    pub fn leader(&self) -> usize {
        self.until("a leader", || {
            let output = self.try_ctl("endpoint status -w json");
            let found: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            let leads = |status: &&serde_json::Value| {
                let status = &status["Status"];
                status["leader"] == status["header"]["member_id"]
            };
            let leaders: Vec<_> = found.as_array()?.iter().filter(leads).collect();
            // One that does not know yet that it was deposed is another one.
            let [leader] = leaders[..] else { return None };
            let urls = self.members.iter().map(Member::client_url);
            urls.into_iter().position(|url| leader["Endpoint"] == *url)
        })
    }

    /// A member that does not lead.
    #[track_caller]
    pub fn follower(&self) -> usize {
        (self.leader() + 1) % self.members.len()
    }

    /// Ends all members, deletes what they have stored, and creates another cluster at the same addresses.
    pub fn replace(&mut self) {
        self.stop_all();
        self.token += 1;
        self.start_all("new");
        self.create_users();
    }

    /// Writes a snapshot to a file of this name.
    pub fn snapshot(&self, name: &str) -> PathBuf {
        let path = self.dir.join(name);
        let endpoint = self.members[0].client_url();
        let words = format!("--endpoints {endpoint} snapshot save {}", path.display());
        self.ctl(&words);
        path
    }

    /// Ends all members and starts them with the content of a snapshot, as an administrator restores a cluster: its id stays.
    pub fn restore(&mut self, snapshot: &Path) {
        self.stop_all();
        for member in &self.members {
            self.ctl(&format!(
                "snapshot restore {} --name {} --data-dir {} --initial-cluster {} --initial-cluster-token {} \
                 --initial-advertise-peer-urls {}",
                snapshot.display(),
                member.name(),
                self.data(member).display(),
                self.initial_cluster(),
                self.cluster_token(),
                member.peer_url(),
            ));
        }
        self.start_all("existing");
    }

    /// Ends a member, deletes what it has stored, and replaces it by a new one at the same address.
    pub fn wipe(&mut self, member: usize) {
        self.kill(member);
        let path = self.data(&self.members[member]);
        fs::remove_dir_all(path).expect("removed");
        let list = self.ctl("member list");
        let name = self.members[member].name().to_owned();
        let line = list.lines().find(|line| line.contains(&name));
        let id = line.and_then(|line| line.split(',').next());
        self.ctl(&format!("member remove {}", id.expect("a member")));
        let url = self.members[member].peer_url();
        self.ctl(&format!("member add {name} --peer-urls {url}"));
        self.restart(member);
    }

    fn others(&self, member: usize) -> impl Iterator<Item = &Member> {
        let all = self.members.iter().enumerate();
        all.filter(move |(at, _)| *at != member)
            .map(|(_, member)| member)
    }

    fn data(&self, member: &Member) -> PathBuf {
        self.dir.join(format!("{}.data", member.name()))
    }

    fn log(&self, member: &Member) -> PathBuf {
        self.dir.join(format!("{}.log", member.name()))
    }

    fn initial_cluster(&self) -> String {
        let all = self.members.iter();
        let all = all.map(|member| format!("{}={}", member.name(), member.peer_url()));
        all.collect::<Vec<_>>().join(",")
    }

    fn cluster_token(&self) -> String {
        format!("lab-{}", self.token)
    }

    fn start_all(&mut self, state: &str) {
        for member in 0..self.members.len() {
            self.spawn(member, state);
        }
    }

    fn stop_all(&mut self) {
        for member in 0..self.members.len() {
            if self.members[member].child.is_some() {
                self.kill(member);
            }
            let data = self.data(&self.members[member]);
            let _absent = fs::remove_dir_all(data);
        }
    }

    /// Waits until a member serves with the majority.
    #[track_caller]
    fn wait(&self, member: usize) {
        let url = self.members[member].client_url();
        self.ctl(&format!("--endpoints {url} endpoint health"));
    }

    /// Looks until `look` finds something; fails the test after [`PATIENCE`].
    #[track_caller]
    pub fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "{what}: not within {PATIENCE:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                let _ended_before = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            for member in &self.members {
                let log = self.log(member);
                let text = kernel::attempt(&format!(
                    "grep -v rafthttp {} | tail -n 8 | cut -c 1-300",
                    log.display()
                ));
                eprintln!(
                    "{}: {}",
                    log.display(),
                    String::from_utf8_lossy(&text.stdout)
                );
            }
        }
    }
}
