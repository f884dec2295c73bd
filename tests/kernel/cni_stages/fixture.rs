//! One VM, its network's configuration, and everything that may be left of it.
//! Out of scope: tests.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use slicectl::api::cni::CniOptions;
use slicectl::api::network::{Connection, TapOwner};
use slicectl::cni::Runtime;
use slicectl::host::Error as HostError;
use slicectl::host::tap::Framing;
use slicectl::owner::{Instance, TAP};
use slicectl::reconcile::firewall::cni::{self as redirect, CniFirewall, TapLink};
use slicectl::reconcile::net::cni::{CheckMode, CniNet, DataPath, Desired, IFNAME, Observed};
use slicectl::reconcile::{Error, OnHost, Probe, converge, no_probe};
use tempfile::TempDir;

use test_support::frames;
use test_support::guest_stack::{Guest, Kind};
use test_support::kernel;

pub const NETWORK: &str = "net";

pub struct Fixture {
    dir: Arc<TempDir>,
    pub runtime: Runtime,
    pub desired: Desired,
    /// The reasons and messages that were reported since the last call of [`Fixture::received`].
    pub reported: Arc<Mutex<Vec<String>>>,
}

impl Fixture {
    /// With Debian's plugins, and a folder for plugins of the test's own before them.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for folder in ["conf", "bin"] {
            fs::create_dir(dir.path().join(folder)).expect("a folder");
        }
        let mut runtime = Runtime::new();
        runtime.conf_dir = dir.path().join("conf");
        runtime.bin_dirs = vec![dir.path().join("bin"), "/usr/lib/cni".into()];
        runtime.cache_dir = dir.path().join("cache");
        runtime.deadline = Duration::from_secs(30);
        let uid = "7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a44".parse().unwrap();
        let desired = Desired {
            label: instance().vm_label(&"web-1".parse().unwrap(), uid),
            run_dir: "/run/slice".into(),
            network: Some(NETWORK.to_owned()),
            forced: false,
            data_path: Some(DataPath {
                tap_owner: TapOwner::default(),
                record: "{}".to_owned(),
                identity: None,
                requested: CniOptions::default(),
            }),
        };
        Self {
            dir: Arc::new(dir),
            runtime,
            desired,
            reported: Arc::default(),
        }
    }

    /// Uses the real plugins of this directory.
    pub fn with_plugins(plugins: &Path) -> Self {
        let mut this = Self::new();
        this.runtime.bin_dirs = vec![this.path("bin"), plugins.to_owned()];
        this
    }

    /// On a bridge, with masquerading, and with the firewall plugin.
    pub fn bridge() -> Self {
        let this = Self::new();
        this.configure("1.0.0", &this.bridge_plugins());
        this
    }

    /// Point to point, with masquerading.
    pub fn ptp() -> Self {
        let this = Self::new();
        let plugins = json!([{"type": "ptp", "ipMasq": true, "mtu": 1400, "ipam": this.ipam("10.78.0.0/24")}]);
        this.configure("0.4.0", &plugins);
        this
    }

    pub fn bridge_plugins(&self) -> Value {
        json!([
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
             "ipam": self.ipam("10.77.0.0/24")},
            {"type": "firewall"}
        ])
    }

    pub fn ipam(&self, subnet: &str) -> Value {
        json!({"type": "host-local", "dataDir": self.path("data"), "subnet": subnet,
               "routes": [{"dst": "0.0.0.0/0"}]})
    }

    pub fn configure(&self, version: &str, plugins: &Value) {
        let config = json!({"cniVersion": version, "name": NETWORK, "plugins": plugins});
        fs::write(self.path("conf/10-net.conflist"), config.to_string()).expect("a configuration");
    }

    pub fn plugin(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, script).expect("a plugin");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    pub fn path(&self, at: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(at)
    }

    pub fn netns(&self) -> PathBuf {
        self.desired.netns()
    }

    /// In the VM's namespace.
    pub fn inside(&self, command: &str) -> String {
        let netns = self.netns();
        kernel::run(&format!("nsenter --net={} {command}", netns.display()))
    }

    /// Both stages, the plugins asked first if all is well.
    pub async fn up(&self) -> Result<(Connection, Vec<String>), Error> {
        self.up_with(&no_probe()).await
    }

    /// Like `up`, without CHECK and STATUS.
    pub async fn up_unasked(&self) -> Result<(Connection, Vec<String>), Error> {
        self.up_as(CheckMode::Never, &no_probe()).await
    }

    pub async fn up_with(&self, probe: &Probe) -> Result<(Connection, Vec<String>), Error> {
        self.up_as(CheckMode::Once, probe).await
    }

    async fn up_as(
        &self,
        checking: CheckMode,
        probe: &Probe,
    ) -> Result<(Connection, Vec<String>), Error> {
        let reconciler = self.reconciler_with(checking);
        let net = converge(&reconciler, &self.desired, probe).await;
        let seen: Observed = net.result?;
        let want = self.desired.data_path.as_ref().expect("a desired VM");
        let connection = seen.connection_for(want).expect("converged, so connected");
        let join = match seen.chain_created_tap() {
            true => TapLink::Chain,
            false => TapLink::Redirect(IFNAME.to_owned()),
        };
        let forwarding_switch = self.forwarding_switch(&connection.tap, Some(join));
        let firewall = converge(&CniFirewall, &forwarding_switch, probe).await;
        firewall.result?;
        Ok((connection, [net.actions, firewall.actions].concat()))
    }

    pub async fn down(&self) -> Result<Vec<String>, Error> {
        self.down_with(&no_probe()).await
    }

    pub async fn down_with(&self, probe: &Probe) -> Result<Vec<String>, Error> {
        let firewall = converge(&CniFirewall, &self.forwarding_switch(TAP, None), probe).await;
        firewall.result?;
        let nothing = Desired {
            data_path: None,
            ..self.desired.clone()
        };
        let net = converge(&self.reconciler(), &nothing, probe).await;
        net.result?;
        Ok([firewall.actions, net.actions].concat())
    }

    fn reconciler(&self) -> CniNet {
        self.reconciler_with(CheckMode::Once)
    }

    fn reconciler_with(&self, checking: CheckMode) -> CniNet {
        let reported = Arc::clone(&self.reported);
        CniNet::new(self.runtime.clone(), checking).with_notices(Arc::new(move |notice| {
            let line = format!("{}: {}", notice.reason, notice.message);
            reported.lock().expect("no panic before").push(line);
        }))
    }

    /// The same host with another desired state.
    pub fn with(&self, desired: Desired) -> Self {
        Self {
            dir: Arc::clone(&self.dir),
            runtime: self.runtime.clone(),
            desired,
            reported: Arc::clone(&self.reported),
        }
    }

    /// Returns what was reported since the last call.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.reported.lock().expect("no panic before"))
    }

    pub async fn look(&self) -> Observed {
        self.look_and(CheckMode::Once).await
    }

    /// With or without the plugins' CHECK and STATUS.
    pub async fn look_and(&self, checking: CheckMode) -> Observed {
        let reconciler = CniNet::new(self.runtime.clone(), checking);
        reconciler.observe(&self.desired).await.expect("a look")
    }

    fn forwarding_switch(&self, tap: &str, join: Option<TapLink>) -> redirect::Desired {
        redirect::Desired {
            label: self.desired.label.clone(),
            netns: self.netns(),
            tap: tap.to_owned(),
            tap_link: join,
        }
    }

    /// What there is of ours and of the plugins, in words: files, namespaces, veths, rules, reservations.
    pub fn left(&self) -> BTreeSet<String> {
        let mut left = BTreeSet::new();
        for root in [
            self.path("cache"),
            self.path("data"),
            "/run/slice".into(),
            "/run/netns".into(),
        ] {
            files(&root, &mut left);
        }
        let rules = kernel::run("iptables-save | grep -E '^(:|-A)' | sed 's/ \\[.*//'");
        left.extend(rules.lines().map(str::to_owned));
        let veths = kernel::run("ip -o link show type veth | wc -l");
        left.insert(format!("{} veths", veths.trim()));
        left
    }
}

pub fn instance() -> Instance {
    Instance::of("/state".as_ref())
}

/// Directories that stay empty are nobody's leak.
fn files(root: &Path, left: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(root) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, left);
        } else {
            left.insert(path.display().to_string());
        }
    }
}

/// The guest pings its gateway; fails the test if there is no answer.
#[track_caller]
pub fn ping(connection: &Connection) {
    let gateway = connection.gateway.expect("a gateway");
    let netns = connection.netns.as_ref().expect("a namespace");
    let (mac, ip) = (connection.mac.0, connection.ip);
    let guest = Guest::attach_via(netns, Framing::VnetHdr, mac, ip, gateway);
    guest.probe(7, gateway, Kind::Ping);
    let answer = guest.receive_packet(Duration::from_secs(5), |seen| {
        (seen.source, seen.destination, seen.protocol) == (gateway, ip, frames::ICMP)
    });
    let state = || kernel::run("ip neigh; ip route; ip -o addr");
    assert!(
        answer.is_some(),
        "no answer to a ping of {gateway} by {ip}:\n{}",
        state()
    );
}

/// A crash just before the step with this number, from 0.
pub fn crash_before(step: usize) -> Probe {
    let count = AtomicUsize::new(0);
    Arc::new(move |action| match count.fetch_add(1, Ordering::Relaxed) {
        at if at == step => Err(HostError::other("go on with", action, "a crash")),
        _ => Ok(()),
    })
}

/// Fails the test unless a ping of one guest arrives at another one through the gateway.
#[track_caller]
pub fn reaches(one: &Connection, other: &Connection) {
    let attach = |connection: &Connection| {
        let gateway = connection.gateway.expect("a gateway");
        let netns = connection.netns.as_ref().expect("a namespace");
        let (mac, ip) = (connection.mac.0, connection.ip);
        Guest::attach_via(netns, Framing::VnetHdr, mac, ip, gateway)
    };
    let (from, to) = (attach(one), attach(other));
    from.probe(7, other.ip, Kind::Ping);
    let came = to.receive_packet(Duration::from_secs(5), |seen| {
        (seen.source, seen.destination, seen.protocol) == (one.ip, other.ip, frames::ICMP)
    });
    assert!(came.is_some(), "no ping arrived");
}
