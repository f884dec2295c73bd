//! A folder of configurations, a folder of plugins that write down what they hear, and a cache; gone with the test.
//! Out of scope: tests.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use slicectl::cni::{Attachment, Network, Runtime};
use tempfile::TempDir;

/// Writes down command, name, environment and standard input, then does what the files `say/NAME.COMMAND.*` say: writes
/// `err` to standard error, hangs with a child if there is `hang`, writes `out` to standard output, exits with `exit`.
const PLUGIN: &str = r#"#!/bin/sh
stage=$(dirname "$(dirname "$0")")
name=$(basename "$0")
echo "$CNI_COMMAND $name" >>"$stage/received/order"
count=$(wc -l <"$stage/received/order")
env >"$stage/received/$count.env"
say="$stage/say/$name.$CNI_COMMAND"
[ -f "$say.deaf" ] || cat >"$stage/received/$count.stdin"
[ -f "$say.err" ] && cat "$say.err" >&2
if [ -f "$say.hang" ]; then
    sleep 600 &
    echo "$$ $!" >"$stage/received/pids"
    wait
fi
[ -f "$say.pause" ] && sleep "$(cat "$say.pause")"
[ -f "$say.out" ] && cat "$say.out"
[ -f "$say.pause" ] && echo "ended $name" >>"$stage/received/ended"
[ -f "$say.exit" ] && exit "$(cat "$say.exit")"
exit 0
"#;

pub struct Stage {
    dir: TempDir,
    pub runtime: Runtime,
}

/// One call of a plugin, as it received it.
pub struct ReceivedCall {
    pub command: String,
    pub plugin: String,
    pub environment: BTreeMap<String, String>,
    pub text: String,
}

impl ReceivedCall {
    pub fn stdin(&self) -> Value {
        serde_json::from_str(&self.text).expect("JSON on standard input")
    }

    /// What CNI says, not what is inherited.
    pub fn parameters(&self) -> BTreeMap<&str, &str> {
        let all = self.environment.iter();
        all.filter(|(key, _)| key.starts_with("CNI_"))
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect()
    }
}

impl Stage {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for folder in ["conf", "bin", "received", "say"] {
            fs::create_dir(dir.path().join(folder)).expect("a folder");
        }
        let mut runtime = Runtime::new();
        runtime.conf_dir = dir.path().join("conf");
        runtime.bin_dirs = vec![dir.path().join("bin")];
        runtime.cache_dir = dir.path().join("cache");
        runtime.deadline = Duration::from_secs(20);
        Self { dir, runtime }
    }

    pub fn path(&self, at: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(at)
    }

    /// Installs a recording plugin that answers ADD with an interface called after it, and VERSION with all versions.
    pub fn plugin(&self, name: &str) {
        self.script(name, PLUGIN);
        self.say(name, "ADD.out", &result("1.0.0", name).to_string());
        let versions = json!({"cniVersion": "1.1.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
        self.say(name, "VERSION.out", &versions.to_string());
    }

    /// Installs a plugin with the given text.
    pub fn script(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, text).expect("a plugin");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    /// Tells a plugin how to behave: `say("two", "DEL.exit", "1")`.
    pub fn say(&self, plugin: &str, what: &str, text: &str) {
        fs::write(self.path("say").join(format!("{plugin}.{what}")), text).expect("a directive");
    }

    /// Takes that back.
    pub fn unsay(&self, plugin: &str, what: &str) {
        fs::remove_file(self.path("say").join(format!("{plugin}.{what}"))).expect("a directive");
    }

    /// Has a plugin fail.
    pub fn fail(&self, plugin: &str, command: &str, code: u64) {
        let error = json!({"cniVersion": "1.0.0", "code": code, "msg": "configured to fail", "details": "by the test"});
        self.say(plugin, &format!("{command}.out"), &error.to_string());
        self.say(plugin, &format!("{command}.exit"), "1");
    }

    /// Writes a configuration.
    pub fn conf(&self, file: &str, config: &Value) {
        self.conf_text(file, config.to_string());
    }

    pub fn conf_text(&self, file: &str, text: impl AsRef<[u8]>) {
        let path = self.path("conf").join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a configuration");
    }

    /// A network `net` of recording plugins, in `10-net.conflist`.
    pub fn chain(&self, version: &str, plugins: &[&str]) -> Network {
        for plugin in plugins {
            self.plugin(plugin);
            self.say(plugin, "ADD.out", &result(version, plugin).to_string());
        }
        let plugins: Vec<Value> = plugins.iter().map(|name| json!({"type": name})).collect();
        let config = json!({"cniVersion": version, "name": "net", "plugins": plugins});
        self.conf("10-net.conflist", &config);
        self.runtime.find("net").expect("the network")
    }

    /// `COMMAND PLUGIN` of every call so far.
    pub fn order(&self) -> Vec<String> {
        let order = fs::read_to_string(self.path("received/order")).unwrap_or_default();
        order.lines().map(str::to_owned).collect()
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<ReceivedCall> {
        let read = |count: usize, what: &str| {
            fs::read_to_string(self.path(format!("received/{count}.{what}"))).unwrap_or_default()
        };
        let order = self.order().into_iter().enumerate();
        let call = |(at, line): (usize, String)| {
            let (command, plugin) = line.split_once(' ').expect("two words");
            let environment = read(at + 1, "env");
            let pairs = environment.lines().filter_map(|line| line.split_once('='));
            ReceivedCall {
                command: command.to_owned(),
                plugin: plugin.to_owned(),
                environment: pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
                text: read(at + 1, "stdin"),
            }
        };
        order.map(call).collect()
    }

    /// Forgets what was received.
    pub fn hush(&self) {
        fs::remove_dir_all(self.path("received")).expect("received");
        fs::create_dir(self.path("received")).expect("received");
    }

    /// The files of the cache.
    pub fn records(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("cache/slice/results")) else {
            return Vec::new();
        };
        let name = |entry: std::io::Result<fs::DirEntry>| {
            let name = entry.expect("an entry").file_name();
            name.into_string().expect("UTF-8")
        };
        entries.map(name).collect()
    }
}

/// A result with one interface and one address.
pub fn result(version: &str, interface: &str) -> Value {
    let mut ip = json!({"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 0});
    if version.starts_with('0') {
        ip["version"] = json!("4");
    }
    json!({
        "cniVersion": version,
        "interfaces": [{"name": interface, "mac": "00:11:22:33:44:55", "sandbox": "/run/netns/blue"}],
        "ips": [ip],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.1.0.1"]}
    })
}

/// An attachment without arguments.
pub fn blue() -> Attachment {
    Attachment::new("blue", "/run/netns/blue", "eth0")
}
