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

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use slicectl::fleet::keys;
use slicectl::fleet::kv::{Client, Config, Credentials, Identity, Password, Url};
use test_support::kernel::{self, Neighbour};
use test_support::programs;

use super::pki::{Pki, Validity};

/// For what must happen, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The nodes that have users, roles and certificates. `control` and `root` have them as well.
pub const NODES: [&str; 2] = ["node-a", "node-b"];

/// What differs between labs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a token is valid that is not used.
    pub token_ttl: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token_ttl: Duration::from_secs(300),
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

struct Member {
    host: Neighbour,
    address: String,
    child: Option<Child>,
}

impl Member {
    fn name(&self) -> &str {
        &self.host.name
    }

    fn peer_url(&self) -> String {
        format!("https://{}:2380", self.address)
    }

    fn client_url(&self) -> String {
        format!("https://{}:2379", self.address)
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a running member");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a pid"), signal).expect("sent");
    }
}

/// Where setup.sh has unpacked etcd.
fn programs_dir() -> PathBuf {
    let default = programs::root().join("target/etcd");
    let dir = std::env::var_os("SLICE_ETCD_DIR").map_or(default, PathBuf::from);
    assert!(
        dir.join("done").exists(),
        "{} is not there: run tests/setup.sh",
        dir.display()
    );
    dir.join("root/usr/bin")
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
        let members: Vec<Member> = (1..=3).map(member).collect();
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

    /// Deletes a user, and with it its tokens.
    pub fn delete_user(&self, user: &str) {
        self.ctl(&format!("user delete {user}"));
    }

    /// Compacts the history up to a revision.
    pub fn compact(&self, revision: u64) {
        self.ctl(&format!("compaction {revision}"));
    }

    /// `etcdctl` of root with these words (split at blanks), which must succeed within [`PATIENCE`]; its standard output.
    #[track_caller]
    pub fn ctl(&self, words: &str) -> String {
        self.until(words, || {
            let output = self.try_ctl(words);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then_some(text)
        })
    }

    fn try_ctl(&self, words: &str) -> Output {
        let user = format!("root:{}", password("root"));
        self.etcdctl(words).args(["--user", &user]).output().expect("etcdctl")
    }

    /// Without a user: there are none yet.
    fn etcdctl(&self, words: &str) -> Command {
        let root = self.pki.client("root", Validity::Now);
        let urls: Vec<String> = self.members.iter().map(Member::client_url).collect();
        let mut command = Command::new(self.programs.join("etcdctl"));
        command
            .args(words.split_whitespace())
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_CACERT", self.pki.ca())
            .env("ETCDCTL_CERT", root.cert)
            .env("ETCDCTL_KEY", root.key)
            .args(["--command-timeout", "3s", "--dial-timeout", "1s"])
            .stdin(Stdio::null());
        if !words.contains("--endpoints") {
            command.args(["--endpoints", &urls.join(",")]);
        }
        command
    }

    /// The users of a fleet: each node reads all keys and writes its own; `control` reads and writes all.
    fn create_users(&self) {
        let mut commands = vec!["role add control".to_owned()];
        let permit = |role: &str, what: &str| format!("role grant-permission {role} {what}");
        commands.push(permit("control", &format!("--prefix readwrite {}", keys::ROOT)));
        for node in NODES {
            commands.push(format!("role add {node}"));
            commands.push(permit(node, &format!("--prefix read {}", keys::ROOT)));
            commands.push(permit(node, &format!("readwrite {}{node}", keys::NODE_STATUS)));
            commands.push(permit(node, &format!("readwrite {}{node}", keys::ALIVE)));
            commands.push(permit(node, &format!("--prefix readwrite {}{node}/", keys::STATUS)));
        }
        for user in ["root", "control"].iter().chain(&NODES) {
            commands.push(format!("user add {user}:{}", password(user)));
            commands.push(format!("user grant-role {user} {user}"));
        }
        commands.push("auth enable".to_owned());
        for words in commands {
            // Repeated: the first may come before the first election.
            self.until(&words, || {
                let output = self.etcdctl(&words).output().expect("etcdctl");
                let text = String::from_utf8_lossy(&output.stderr);
                (output.status.success() || text.contains("already")).then_some(())
            });
        }
    }

    fn others(&self, member: usize) -> impl Iterator<Item = &Member> {
        let all = self.members.iter().enumerate();
        all.filter(move |(at, _)| *at != member).map(|(_, member)| member)
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

    fn spawn(&mut self, at: usize, state: &str) {
        let member = &self.members[at];
        let log = File::options().create(true).append(true).open(self.log(member));
        let log = log.expect("a log");
        let (peer, client) = (member.peer_url(), member.client_url());
        // The member ends with this thread, however that ends.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", member.host.path().display()))
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(self.programs.join("etcd"))
            .args(["--name", member.name()])
            .arg("--data-dir")
            .arg(self.data(member))
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--initial-cluster", &self.initial_cluster()])
            .args(["--initial-cluster-token", &self.cluster_token()])
            .args(["--initial-cluster-state", state])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(["--auth-token-ttl", &self.options.token_ttl.as_secs().to_string()])
            .args(["--bcrypt-cost", "4", "--logger", "zap", "--log-level", "warn"]);
        for kind in ["", "peer-"] {
            command
                .arg(format!("--{kind}cert-file"))
                .arg(&self.server.cert)
                .arg(format!("--{kind}key-file"))
                .arg(&self.server.key)
                .arg(format!("--{kind}trusted-ca-file"))
                .arg(self.pki.ca())
                .arg(format!("--{kind}client-cert-auth"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.members[at].child = Some(command.spawn().expect("nsenter"));
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
            assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
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
                let text = kernel::attempt(&format!("tail -n 15 {}", log.display()));
                eprintln!("{}: {}", log.display(), String::from_utf8_lossy(&text.stdout));
            }
        }
    }
}

/// A namespace on the bridge.
fn member(number: u8) -> Member {
    let name = format!("e{number}");
    let host = Neighbour::alone(&name);
    let address = format!("10.77.0.1{number}");
    kernel::run(&format!(
        "ip link add {name} type veth peer name eth0 netns {name}
         ip link set {name} master etcd up
         ip -n {name} addr add {address}/24 dev eth0
         ip -n {name} link set eth0 up"
    ));
    Member {
        host,
        address,
        child: None,
    }
}

/// The password of a user.
pub fn password(user: &str) -> String {
    format!("password-of-{user}")
}
