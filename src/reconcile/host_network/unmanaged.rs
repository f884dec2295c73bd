//! The files that configure network managers (systemd-networkd and NetworkManager) to ignore our links.
//! Out of scope: whether they do ([`crate::doctor`]).
//!
//! # Why
//! The files are written before the links exist, whether the programs run or not: a program that starts later reads them before it reads
//! any link. They are in `/run`, so that they do not survive a reboot. An unmanaged bridge is left to the network manager of its owner.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::fs::{self, Dir, Durability};
use crate::host::netns::Netns;
use crate::host::{Error, process};

const NETWORKD_RUN: &str = "/run/systemd/network";
const NM_RUN: &str = "/run/NetworkManager/conf.d";

/// How long a network manager may take to reload its files.
const RELOAD_TIMEOUT: Duration = Duration::from_millis(800);

/// Our links, by their present or future names.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct OurLinks {
    /// What the names of isolated VMs' veths start with.
    pub veth_prefix: String,
    /// Managed bridges.
    pub bridges: BTreeSet<String>,
    /// What the names of bridge VMs' TAPs start with; a number follows, or `x` and a number.
    pub tap_prefixes: BTreeSet<String>,
}

/// A program that configures links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// systemd-networkd.
    Networkd,
    /// NetworkManager.
    NetworkManager,
}

impl Manager {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Networkd, Self::NetworkManager];

    /// The file that it reads. networkd uses the first file that matches, in the order of names: ours has a low number.
    pub fn file(self, veth_prefix: &str) -> PathBuf {
        match self {
            Self::Networkd => {
                Path::new(NETWORKD_RUN).join(format!("05-slice-{veth_prefix}.network"))
            }
            Self::NetworkManager => Path::new(NM_RUN).join(format!("90-slice-{veth_prefix}.conf")),
        }
    }

    /// The content of the file.
    pub fn content(self, links: &OurLinks) -> String {
        match self {
            Self::Networkd => networkd_text(links),
            Self::NetworkManager => nm_text(links),
        }
    }

    /// The first 15 characters of its process name (proc_pid_comm(5)).
    fn comm(self) -> &'static str {
        match self {
            Self::Networkd => "systemd-network",
            Self::NetworkManager => "NetworkManager",
        }
    }

    fn reload(self) -> &'static [&'static str] {
        match self {
            Self::Networkd => &["networkctl", "reload"],
            Self::NetworkManager => &["nmcli", "general", "reload", "conf"],
        }
    }
}

/// A `.network` file (systemd.network(5)). Several `Name=` form one list. A TAP's name is its prefix and a number, so that a short prefix
/// matches no link of another program.
fn networkd_text(links: &OurLinks) -> String {
    let veths = format!("{}*", links.veth_prefix);
    let taps = links.tap_prefixes.iter();
    let taps = taps.flat_map(|prefix| [format!("{prefix}[0-9]*"), format!("{prefix}x[0-9]*")]);
    let names = [veths].into_iter().chain(links.bridges.iter().cloned());
    let names: String = names
        .chain(taps)
        .map(|name| format!("Name={name}\n"))
        .collect();
    format!(
        "# Links of slice's VMs: sliced sets them up.\n[Match]\n{names}\n[Link]\nUnmanaged=yes\n"
    )
}

/// Kinds of links that are never TAPs.
const NON_TAP_KINDS: [&str; 6] = ["ethernet", "wifi", "bridge", "bond", "vlan", "veth"];

/// A snippet (NetworkManager.conf(5)). The sections have unique names: `unmanaged-devices` in `[keyfile]` would replace the value of
/// another file. Its patterns have no digit class: `except:` keeps a short prefix from matching the host's own links.
fn nm_text(links: &OurLinks) -> String {
    let prefix = &links.veth_prefix;
    let mut text = format!(
        "# Links of slice's VMs: sliced sets them up.\n[device-{prefix}]\nmatch-device=interface-name:{prefix}*"
    );
    for bridge in &links.bridges {
        text.push_str(&format!(";interface-name:={bridge}"));
    }
    text.push_str("\nmanaged=0\n");
    if !links.tap_prefixes.is_empty() {
        let taps = links.tap_prefixes.iter();
        let taps = taps.map(|prefix| format!("interface-name:{prefix}*"));
        let exceptions = NON_TAP_KINDS
            .iter()
            .map(|kind| format!("except:type:{kind}"));
        let specs: Vec<String> = taps.chain(exceptions).collect();
        let specs = specs.join(";");
        text.push_str(&format!(
            "\n[device-{prefix}-taps]\nmatch-device={specs}\nmanaged=0\n"
        ));
    }
    text
}

/// Writes the files that differ, has the running programs reload them, and returns the files that were written.
pub async fn write_unmanaged(home: &Netns, links: &OurLinks) -> Result<Vec<PathBuf>, Error> {
    let mut written = Vec::new();
    for manager in Manager::ALL {
        let path = manager.file(&links.veth_prefix);
        if !write(&path, &manager.content(links))? {
            continue;
        }
        written.push(path);
        if runs(home, manager)? {
            reload(manager).await;
        }
    }
    Ok(written)
}

/// Returns whether the file had to be written.
fn write(path: &Path, text: &str) -> Result<bool, Error> {
    if fs::read_text(path)?.as_deref() == Some(text) {
        return Ok(false);
    }
    if let Some(dir) = path.parent() {
        fs::make_dir(dir, 0o755)?;
    }
    fs::write(path, text.as_bytes(), 0o644, Durability::Process)?;
    Ok(true)
}

/// A program that does not answer reads the file at its next start; doctor and this message describe the remedy until then.
async fn reload(manager: Manager) {
    let outcome = process::run_until(manager.reload(), RELOAD_TIMEOUT, |_| false).await;
    if let Err(error) = outcome {
        tracing::warn!(
            command = manager.reload().join(" "),
            %error,
            "cannot make a network manager reload its files"
        );
    }
}

/// Whether a program runs in this network namespace.
pub fn runs(home: &Netns, manager: Manager) -> Result<bool, Error> {
    let home = home.inode()?;
    let names = match fs::read_dir(Path::new("/proc"))? {
        Dir::Present(names) => names,
        Dir::Absent | Dir::NotADirectory => Vec::new(),
    };
    let pids = names
        .into_iter()
        .filter_map(|name| name.parse::<u32>().ok());
    Ok(pids.into_iter().any(|pid| {
        let comm = fs::read_text(Path::new(&format!("/proc/{pid}/comm")));
        if comm.ok().flatten().as_deref().map(str::trim_end) != Some(manager.comm()) {
            return false;
        }
        // A process that ends during the check does not count.
        let netns = Netns::open(Path::new(&format!("/proc/{pid}/ns/net")));
        netns
            .and_then(|netns| netns.inode())
            .is_ok_and(|inode| inode == home)
    }))
}
