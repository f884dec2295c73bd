//! A member of etcd: its namespace, its process.
//! Out of scope: the cluster ([`super`]).

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use test_support::kernel::{self, Neighbour};
use test_support::programs;

use super::Lab;

/// A member, in a namespace of its own.
pub(super) struct Member {
    pub(super) host: Neighbour,
    pub(super) address: String,
    pub(super) child: Option<Child>,
}

impl Member {
    /// A namespace on the bridge.
    pub(super) fn new(number: u8) -> Self {
        let name = format!("e{number}");
        let host = Neighbour::alone(&name);
        let address = format!("10.77.0.1{number}");
        kernel::run(&format!(
            "ip link add {name} type veth peer name eth0 netns {name}
         ip link set {name} master etcd up
         ip -n {name} addr add {address}/24 dev eth0
         ip -n {name} link set eth0 up"
        ));
        Self {
            host,
            address,
            child: None,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.host.name
    }

    pub(super) fn peer_url(&self) -> String {
        format!("https://{}:2380", self.address)
    }

    pub(super) fn client_url(&self) -> String {
        format!("https://{}:2379", self.address)
    }

    pub(super) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a running member");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a pid"), signal).expect("sent");
    }
}

/// Where setup.sh has unpacked etcd.
pub(super) fn programs_dir() -> PathBuf {
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
    /// Starts the process of a member.
    pub(super) fn spawn(&mut self, at: usize, state: &str) {
        let member = &self.members[at];
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(member));
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
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args(["--initial-cluster", &self.initial_cluster()])
            .args(["--initial-cluster-token", &self.cluster_token()])
            .args(["--initial-cluster-state", state])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args([
                "--auth-token-ttl",
                &self.options.token_ttl.as_secs().to_string(),
            ])
            .arg("--experimental-watch-progress-notify-interval")
            .arg(format!("{}s", self.options.progress_interval.as_secs()))
            .args([
                "--bcrypt-cost",
                "4",
                "--logger",
                "zap",
                "--log-level",
                "warn",
            ]);
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
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.members[at].child = Some(command.spawn().expect("nsenter"));
    }
}
