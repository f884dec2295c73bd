//! CNI networks for a test: their configurations, plugins that write down what they hear and do as they are told, and all
//! that may be left over.
//! Out of scope: tests; the daemon (`harness`).
//!
//! # Why
//! Everything lies below the private `/run`: it goes with the test, and no path of the machine itself is told to any plugin.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use slicectl::cni::Runtime;
use slicectl::host::tap::Framing;

use super::guest_stack::Guest;
use super::harness::{self, Harness};
use super::{kernel, lab};

/// Below it everything is.
pub const ROOT: &str = "/run/cni-test";

/// The network that most tests speak of.
pub const NETWORK: &str = "net";

/// Debian's.
const PLUGINS: &str = "/usr/lib/cni";

/// Writes down what it is asked, then does as the files `say/NAME.COMMAND.*` say: hangs, or answers with `out` and ends with
/// `exit`. Else it does what a plugin of Debian's does: `ptp` in the first place, in others one that passes on what it got.
const RECORDER: &str = r#"#!/bin/sh
root=$(dirname "$(dirname "$0")")
name=$(basename "$0")
[ "$CNI_COMMAND" = VERSION ] || echo "$CNI_COMMAND $name" >>"$root/received"
say="$root/say/$name.$CNI_COMMAND"
if [ -f "$say.hang" ]; then
    echo $$ >"$root/hanging"
    exec sleep 600
fi
if [ -f "$say.out" ]; then
    cat >/dev/null
    cat "$say.out"
    exit "$(cat "$say.exit")"
fi
case "$name" in
one) exec /usr/lib/cni/ptp ;;
*) exec /usr/lib/cni/tuning ;;
esac
"#;

/// Folders of configurations and plugins.
pub struct CniNetworks(());

/// Runs a test in a private kernel with a running daemon that knows where these networks are.
pub fn with_daemon(test: impl FnOnce(Harness, CniNetworks) + Send) {
    harness::empty(|mut harness| {
        let cni_networks = CniNetworks::install();
        cni_networks.configure_daemon(&mut harness);
        harness.start();
        test(harness, cni_networks);
    });
}

/// As a daemon in this process uses them.
pub fn runtime() -> Runtime {
    let mut runtime = Runtime::new();
    runtime.conf_dir = at("conf");
    runtime.bin_dirs = vec![at("bin"), PLUGINS.into()];
    runtime.cache_dir = at("cache");
    runtime
}

/// A path below [`ROOT`].
pub fn at(path: &str) -> PathBuf {
    Path::new(ROOT).join(path)
}

impl CniNetworks {
    /// Empty folders in the private kernel.
    pub fn install() -> Self {
        for folder in ["conf", "bin", "say"] {
            fs::create_dir_all(at(folder)).expect("a folder");
        }
        Self(())
    }

    /// Tells a daemon that is to be started.
    pub fn configure_daemon(&self, harness: &mut Harness) {
        let path = |path: &str| at(path).display().to_string();
        harness.env.extend([
            ("SLICE_CNI_CONF_DIR", path("conf")),
            ("SLICE_CNI_CACHE_DIR", path("cache")),
            ("CNI_PATH", format!("{}:{PLUGINS}", path("bin"))),
        ]);
    }

    /// Writes the configuration of [`NETWORK`], as `mv` does.
    pub fn configure(&self, plugins: &Value) {
        self.configure_network(NETWORK, "1.0.0", plugins);
    }

    /// The same for any network, in a file of that name, and for any version of the specification.
    pub fn configure_network(&self, name: &str, version: &str, plugins: &Value) {
        let config = json!({"cniVersion": version, "name": name, "plugins": plugins});
        let file = format!("conf/10-{name}.conflist");
        fs::write(at("new"), config.to_string()).expect("written");
        fs::rename(at("new"), at(&file)).expect("renamed");
    }

    /// The shipped chain: a bridge that masquerades, and `firewall`.
    pub fn bridge(&self, bridge: &str, subnet: &str) {
        self.configure(&json!([
            {"type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true, "ipam": ipam(subnet)},
            {"type": "firewall"}
        ]));
    }

    /// Point to point, without masquerading.
    pub fn ptp(&self, subnet: &str) {
        self.configure(&json!([{"type": "ptp", "ipam": ipam(subnet)}]));
    }

    /// Three recording plugins, `one` point to point.
    pub fn recorders(&self, subnet: &str) {
        for name in ["one", "two", "three"] {
            self.recorder(name);
        }
        self.configure(
            &json!([{"type": "one", "ipam": ipam(subnet)}, {"type": "two"}, {"type": "three"}]),
        );
    }

    /// Installs a recording plugin.
    pub fn recorder(&self, name: &str) {
        let path = at("bin").join(name);
        fs::write(&path, RECORDER).expect("a plugin");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    /// Has a plugin answer so.
    pub fn say(&self, plugin: &str, command: &str, out: &str, exit: u8) {
        let say = |what: &str| at("say").join(format!("{plugin}.{command}.{what}"));
        fs::write(say("exit"), exit.to_string()).expect("a directive");
        fs::write(say("out"), out).expect("a directive");
    }

    /// Has a plugin fail.
    pub fn fail(&self, plugin: &str, command: &str, code: u64) {
        let error = json!({"cniVersion": "1.0.0", "code": code, "msg": "configured to fail", "details": "by the test"});
        self.say(plugin, command, &error.to_string(), 1);
    }

    /// Has a plugin hang.
    pub fn hang(&self, plugin: &str, command: &str) {
        let path = at("say").join(format!("{plugin}.{command}.hang"));
        fs::write(path, "").expect("a directive");
    }

    /// The plugin that hangs.
    pub fn hanging(&self) -> Option<u32> {
        fs::read_to_string(at("hanging")).ok()?.trim().parse().ok()
    }

    /// Takes back everything that was said.
    pub fn unsay(&self) {
        fs::remove_dir_all(at("say")).expect("directives");
        fs::create_dir(at("say")).expect("a folder");
    }

    /// `COMMAND PLUGIN` of every call since it was asked last.
    pub fn calls(&self) -> Vec<String> {
        let received = fs::read_to_string(at("received")).unwrap_or_default();
        let _ = fs::remove_file(at("received"));
        received.lines().map(str::to_owned).collect()
    }
}

/// Of `host-local`, in a folder of the test.
pub fn ipam(subnet: &str) -> Value {
    json!({"type": "host-local", "dataDir": at("data"), "subnet": subnet, "routes": [{"dst": "0.0.0.0/0"}]})
}

/// A group of slots without VMM in [`NETWORK`].
pub fn pod(count: u32) -> String {
    format!(
        "config:
  network_name: {NETWORK}
  host_groups:
    - name: pod
      count: {count}
      vcpu: 1
      ram_mb: 128
      hypervisor: none
"
    )
}

/// The guest of a CNI VM, at its TAP.
pub fn guest(harness: &Harness, vm: &str) -> Guest {
    let found = harness.get(&format!("vm {vm}"));
    let network = &found["status"]["network"];
    let text = |key: &str| network[key].as_str().expect(key);
    let address = |key: &str| text(key).parse::<Ipv4Addr>().expect("an address");
    Guest::attach_via(
        Path::new(text("netns")),
        Framing::VnetHdr,
        lab::mac(text("mac")),
        address("ip"),
        address("gateway"),
    )
}

/// The folders of real plugins to test with: Debian's, and newer ones where `SLICE_TEST_CNI_PLUGINS` names a folder.
pub fn plugin_dirs() -> Vec<PathBuf> {
    let newer = std::env::var_os("SLICE_TEST_CNI_PLUGINS").filter(|dir| !dir.is_empty());
    let debian = PathBuf::from(PLUGINS);
    [debian].into_iter().chain(newer.map(Into::into)).collect()
}

/// Has the daemon look for plugins in this folder instead of Debian's.
pub fn use_plugins(harness: &mut Harness, dir: &Path) {
    let path = format!("{}:{}", at("bin").display(), dir.display());
    harness.env.retain(|(key, _)| *key != "CNI_PATH");
    harness.env.push(("CNI_PATH", path));
}

/// A plugin that does what Calico does: these /32, a gateway outside of every subnet, and a result without a gateway or a route.
pub fn calico(addresses: &[&str]) -> String {
    let made: String = addresses
        .iter()
        .map(|ip| {
            format!("ip route add {ip} dev cali0\n    inside ip addr add {ip} dev eth0\n    ")
        })
        .collect();
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"address": ip})).collect();
    let result = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "cali0"}], "ips": ips});
    format!(
        r#"#!/bin/sh
set -e
inside() {{ nsenter --net="$CNI_NETNS" "$@"; }}
case "$CNI_COMMAND" in
VERSION) echo '{{"cniVersion":"1.0.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0"]}}' ;;
CHECK) ;;
DEL) ip link del cali0 2>/dev/null || true ;;
ADD)
    ip link add cali0 type veth peer name eth0 netns "$CNI_NETNS"
    ip link set cali0 up
    ip addr add 169.254.1.1/32 dev cali0
    {made}inside ip link set eth0 up
    inside ip route add 169.254.1.1 dev eth0 scope link
    inside ip route add default via 169.254.1.1 dev eth0
    echo '{result}'
    ;;
esac
"#
    )
}

pub fn is_ready(harness: &Harness, vm: &str) -> Option<()> {
    (harness.get(&format!("vm {vm}"))["status"]["ready"] == true).then_some(())
}

/// The message of that condition.
pub fn message(harness: &Harness, vm: &str, condition: &str) -> String {
    let vm = harness.get(&format!("vm {vm}"));
    let mut conditions = vm["status"]["conditions"].as_array().into_iter().flatten();
    let found = conditions.find(|found| found["type"] == condition);
    let message = found.and_then(|found| found["message"].as_str());
    message.unwrap_or_default().to_owned()
}

/// The files of the cache, those of unfinished ADDs, too.
pub fn records() -> Vec<PathBuf> {
    ["slice/results", "results", "unfinished", "slice/abandoned"]
        .map(|folder| at("cache").join(folder))
        .iter()
        .flat_map(|folder| files(folder))
        .collect()
}

/// The reservations of `host-local`, a file for each address, of all networks.
pub fn reservations() -> Vec<PathBuf> {
    let is_address = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.parse::<IpAddr>().is_ok())
    };
    let networks = files(&at("data"));
    let mut found: Vec<PathBuf> = networks.iter().flat_map(|network| files(network)).collect();
    found.retain(is_address);
    found
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// What there is of attachments, by anybody: records, reservations, veths, rules that name a container or an address of
/// the tests' networks, namespaces, and VMs' directories. Chains and bridges that all attachments share are nobody's leak.
pub fn left(run_dir: &Path) -> Vec<String> {
    let output = kernel::run(&format!(
        "ip -o link show type veth; ip -o link show type ifb
         iptables-save | grep -E '^-A.*(10\\.7[0-9]\\.|slice-)|^:CNI-[0-9a-f]{{24}}' || true
         find /run/netns {0}/netns {0}/vm -mindepth 1 2>/dev/null | grep -v /canary || true",
        run_dir.display()
    ));
    let files = records().into_iter().chain(reservations());
    let files = files.map(|path| path.display().to_string());
    files.chain(output.lines().map(str::to_owned)).collect()
}
