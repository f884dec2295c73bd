//! The tiny guest (`tests/guest`): built, put into groups, listened to.
//! Out of scope: tests; other guests.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use super::harness::Harness;
use super::vmm;

/// The guest's image, built by this process when it is first asked for.
pub fn kernel() -> &'static str {
    static KERNEL: OnceLock<String> = OnceLock::new();
    KERNEL.get_or_init(|| vmm::tiny_guest().display().to_string())
}

/// A group of slots, as `harness` writes them, with a tiny guest in each; `words` tell it to misbehave.
pub fn guests(slots: &str, words: &str) -> String {
    let qemu = format!(
        "hypervisor: qemu\n      kernel_file: {}{}",
        kernel(),
        initrd(words)
    );
    slots
        .replace("ram_mb: 128", "ram_mb: 32")
        .replace("hypervisor: none", &qemu)
}

/// Words as an initrd, which every VMM can hand over. Beside the kernel: a VMM without rights can read that place, too.
fn initrd(words: &str) -> String {
    if words.is_empty() {
        return String::new();
    }
    let path = Path::new(kernel()).with_file_name(words.replace(' ', "+"));
    // Written once: a VM of another test that has the file would be restarted.
    static WRITING: Mutex<()> = Mutex::new(());
    let _writing = WRITING.lock();
    if std::fs::read_to_string(&path).ok().as_deref() != Some(words) {
        std::fs::write(&path, words).expect("written");
    }
    format!("\n      initrd_file: {}", path.display())
}

/// One VM of a tiny guest.
pub struct Tiny {
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: String,
    /// Its VMM's, while one runs.
    pub pid: Option<u32>,
    /// Where it prints; stays open when the file is removed.
    console: File,
    /// That file.
    pub log: PathBuf,
}

impl Tiny {
    /// All that it has printed.
    pub fn output(&self) -> String {
        let mut console = &self.console;
        let mut text = Vec::new();
        console.seek(SeekFrom::Start(0)).expect("a console");
        console.read_to_end(&mut text).expect("a console");
        String::from_utf8_lossy(&text).into_owned()
    }

    /// How many times it has found that its gateway answers.
    pub fn times_ready(&self) -> usize {
        self.output()
            .matches(&format!("ready {} {}\r\n", self.name, self.ip))
            .count()
    }
}

/// All VMs, by name, as soon as each has a console and every group has as many as it requests.
pub fn all(harness: &Harness) -> BTreeMap<String, Tiny> {
    harness.until("every VM with a console", || {
        let groups = harness.get("hostgroups");
        let groups = groups["items"].as_array().expect("items").iter();
        let count: u64 = groups
            .filter_map(|group| group["spec"]["count"].as_u64())
            .sum();
        let list = harness.get("vms");
        let vms = list["items"].as_array().expect("items");
        if (vms.len() as u64) < count {
            return None;
        }
        let vms = vms.iter();
        vms.map(|vm| {
            let (name, network) = (&vm["metadata"]["name"], &vm["status"]["network"]);
            let log = PathBuf::from(vm["status"]["vmm"]["log"].as_str()?);
            let tiny = Tiny {
                name: name.as_str()?.to_owned(),
                ip: network["ip"].as_str()?.to_owned(),
                pid: pid(vm),
                console: File::open(&log).ok()?,
                log,
            };
            Some((tiny.name.clone(), tiny))
        })
        .collect()
    })
}

/// The pids of all VMs' VMMs, by name.
pub fn pids(harness: &Harness) -> BTreeMap<String, Option<u32>> {
    let list = harness.get("vms");
    let vms = list["items"].as_array().expect("items").iter();
    let name = |vm: &serde_json::Value| vm["metadata"]["name"].as_str().expect("a name").to_owned();
    vms.map(|vm| (name(vm), pid(vm))).collect()
}

fn pid(vm: &serde_json::Value) -> Option<u32> {
    vm["status"]["vmm"]["pid"]
        .as_u64()
        .and_then(|pid| pid.try_into().ok())
}

/// Whether a process runs: not ended, not waiting to be reaped.
pub fn is_alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}
