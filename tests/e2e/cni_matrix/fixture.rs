//! A daemon with one VM for each chain, and what is observed of each VM after an event.
//! Out of scope: the events.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use slicectl::api::vm::Hypervisor;

use crate::cni_matrix::chains::{CHAINS, Chain};
use test_support::cni_networks::{
    CniNetworks, at, is_ready, left, message, plugin_dirs, use_plugins,
};
use test_support::harness::{self, Harness, signal};
use test_support::kernel::run;
use test_support::pings::Pings;
use test_support::turns;
use test_support::vmm;

/// Seconds that a guest may be without an answer.
pub const GAP: f64 = 1.0;

/// Longer than firewalld takes between the parts of a start or a reload.
const REST: Duration = Duration::from_millis(1500);

/// For the repair of all VMs.
const REPAIR: Duration = Duration::from_secs(15);

/// What of a VM no event changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub pid: u64,
    pub ip: String,
    pub mac: String,
}

/// One daemon with a group for each chain, and what was found at odds so far.
pub struct Matrix<'a> {
    pub harness: &'a mut Harness,
    dir: &'a Path,
    chains: Vec<&'static Chain>,
    observations: usize,
    faults: Vec<String>,
}

/// Runs a test with each set of plugins; `before` the daemon starts, with what it makes.
pub fn with_each<T: Send>(
    before: impl Fn(&mut Harness) -> T + Sync,
    test: impl Fn(&mut Matrix, T) + Sync,
) {
    // What is measured is the time of our repair on this machine.
    let _alone = turns::alone();
    for dir in plugin_dirs() {
        harness::empty(|mut harness| {
            let cni_networks = CniNetworks::install();
            cni_networks.configure_daemon(&mut harness);
            use_plugins(&mut harness, &dir);
            harness.env.push(("SLICE_LOG", "debug".to_owned()));
            let made = before(&mut harness);
            harness.start();
            let mut matrix = Matrix {
                harness: &mut harness,
                dir: &dir,
                chains: CHAINS.iter().filter(|chain| chain.is_in(&dir)).collect(),
                observations: 0,
                faults: Vec::new(),
            };
            matrix.apply(&cni_networks);
            test(&mut matrix, made);
            matrix.delete();
        });
    }
}

impl Matrix<'_> {
    /// Debian's plugins know the version 1.0.0 at most; from 1.1.0 on another runtime's GC asks the plugins, too.
    fn apply(&self, cni_networks: &CniNetworks) {
        let version = match self.dir.join("cnitool").exists() {
            true => "1.1.0",
            false => "1.0.0",
        };
        let hypervisor = cloud_hypervisor(self.harness);
        let mut manifest = "config:\n  host_groups:\n".to_owned();
        for (number, chain) in self.chains.iter().enumerate() {
            cni_networks.configure_network(chain.name, version, &chain.plugins(number));
            manifest += &format!(
                "    - name: {0}
      network_name: {0}
      count: 1
      vcpu: 1
      ram_mb: 128
      hypervisor: {1}{2}
",
                chain.name, hypervisor, chain.group
            );
        }
        self.harness.apply(&manifest);
    }

    fn vms(&self) -> impl Iterator<Item = String> {
        self.chains.iter().map(|chain| format!("{}-1", chain.name))
    }

    pub fn identities(&self) -> BTreeMap<String, Identity> {
        let identity = |vm: String| {
            let status = self.harness.get(&format!("vm {vm}"))["status"].clone();
            let text = |key: &str| {
                status["network"][key]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            let identity = Identity {
                pid: status["vmm"]["pid"].as_u64().unwrap_or_default(),
                ip: text("ip"),
                mac: text("mac"),
            };
            (vm, identity)
        };
        self.vms().map(identity).collect()
    }

    /// How many calls of that command this plugin has answered.
    fn calls(&self, command: &str, plugin: &str) -> usize {
        let log = self.harness.log();
        let ended = log
            .lines()
            .filter(|line| line.contains("a CNI plugin ended"));
        let words = [format!("command={command}"), format!("plugin=\"{plugin}\"")];
        ended
            .filter(|line| words.iter().all(|word| line.contains(word)))
            .count()
    }

    /// CHECKs of plugins that no chain excuses from it: of one chain's first plugin, and of the one that all chains have.
    pub fn checks(&self) -> [usize; 2] {
        ["ptp", "firewall"].map(|plugin| self.calls("CHECK", plugin))
    }

    /// Waits until the plugins were asked `times` times about every VM since `before`.
    pub fn until_checked(&self, times: usize, before: [usize; 2]) {
        let vms = [1, self.chains.len()];
        self.harness
            .until(&format!("{times} CHECKs of every VM"), || {
                let now = self.checks();
                let is_done = |at: usize| now[at] >= before[at] + times * vms[at];
                (is_done(0) && is_done(1)).then_some(())
            });
    }

    /// Waits until the plugins' rules are the same as before; what differs is a fault.
    pub fn until_rules(&mut self, event: &str, before: &[String]) {
        let begin = Instant::now();
        let mut now = rules();
        while now != before && begin.elapsed() < REPAIR {
            std::thread::sleep(Duration::from_millis(50));
            now = rules();
        }
        let differs = |from: &[String], to: &[String]| {
            let lines = from.iter().filter(|line| !to.contains(line));
            lines.cloned().collect::<Vec<_>>()
        };
        let (lost, new) = (differs(before, &now), differs(&now, before));
        let fault = (now != before).then(|| format!("lost {lost:#?}, new {new:#?}"));
        self.note(event, "all", "rules", fault);
    }

    /// `kill -9` of the daemon, and its first look at all VMs when it is started again.
    pub fn start_again(&mut self) {
        let before = self.checks();
        self.harness.kill();
        self.harness.start();
        self.until_checked(1, before);
    }

    pub fn until_ready(&self) {
        self.harness.until("all are ready", || {
            let mut vms = self.vms();
            vms.all(|vm| is_ready(self.harness, &vm).is_some())
                .then_some(())
        });
    }

    /// Until the daemon has acted on no VM for [`REST`]: an event may have several parts, each with a repair of its own.
    fn until_at_rest(&self) {
        let actions = || self.harness.log().matches("acted vm=").count();
        let mut last = (actions(), Instant::now());
        self.harness.until("the daemon is at rest", || {
            let now = actions();
            if now != last.0 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > REST).then_some(())
        });
    }

    pub fn note(&mut self, event: &str, chain: &str, observation: &str, fault: Option<String>) {
        self.observations += 1;
        let place = || format!("{}: {chain}: {event}: {observation}", self.dir.display());
        if let Some(fault) = fault {
            let fault = format!("{}: {fault}", place());
            eprintln!("{fault}");
            self.faults.push(fault);
        }
    }

    /// Something happens: `make` returns when the daemon has dealt with it. No guest has noticed more than a short gap.
    pub fn survives(&mut self, event: &str, make: impl FnOnce(&mut Self)) {
        let before = self.identities();
        let mut pings: Vec<Pings> = before.values().map(|vm| Pings::start(&vm.ip)).collect();
        for ping in &mut pings {
            ping.steady();
        }
        make(self);
        self.until_ready();
        self.until_at_rest();
        for (vm, ping) in before.keys().zip(pings) {
            let gap = ping.longest_gap();
            eprintln!("{event}: {vm}: {gap:.2} s without an answer");
            let fault = (gap > GAP).then(|| format!("{gap:.2} s"));
            self.note(event, vm, "pings", fault);
        }
        self.compare(event, &before, |identity| identity.clone());
    }

    pub fn compare(
        &mut self,
        event: &str,
        before: &BTreeMap<String, Identity>,
        of: impl Fn(&Identity) -> Identity,
    ) {
        let now = self.identities();
        for (vm, before) in before {
            let (before, now) = (of(before), of(&now[vm]));
            for (what, was, is) in [
                ("pid", before.pid.to_string(), now.pid.to_string()),
                ("IP", before.ip, now.ip),
                ("MAC", before.mac, now.mac),
            ] {
                let fault = (was != is).then(|| format!("{was} -> {is}"));
                self.note(event, vm, what, fault);
            }
            let reported = self.harness.messages(&format!("vm/{vm}"), "AddressChanged");
            self.note(
                event,
                vm,
                "AddressChanged",
                (!reported.is_empty()).then(|| reported.join("; ")),
            );
        }
    }

    /// What libcni's `GCNetworkList` does with no valid attachments: DEL of each record in its cache that another runtime wrote, and,
    /// from 1.1.0 on, GC of each plugin.
    pub fn collect_as_another_runtime(&mut self) {
        let listed = std::fs::read_dir("/var/lib/cni/results").map_or(0, Iterator::count);
        self.note(
            "foreign GC",
            "all",
            "records in its cache",
            (listed > 0).then(|| listed.to_string()),
        );
        let cnitool = self.dir.join("cnitool");
        if !cnitool.exists() {
            return;
        }
        run("ip netns add theirs");
        for chain in &self.chains {
            let environment = format!(
                "CNI_PATH={} NETCONFPATH={}",
                self.dir.display(),
                at("conf").display()
            );
            let cnitool = format!("{environment} {}", cnitool.display());
            let network = chain.name;
            run(&format!(
                "{cnitool} add {network} /run/netns/theirs >/dev/null
                 {cnitool} gc {network} /run/netns/theirs"
            ));
        }
        run("ip netns del theirs");
    }

    /// As a boot is seen by the daemon: processes, namespaces, links, rules and `/run` are gone; the state and `/var/lib` are kept.
    pub fn reboot(&mut self, before: &BTreeMap<String, Identity>) {
        self.harness.kill();
        for identity in before.values() {
            signal(u32::try_from(identity.pid).expect("a pid"), Signal::KILL);
        }
        self.harness.unmount_namespaces();
        run(&format!(
            "umount -l $(awk '$2 ~ \"^{0}/\" {{ print $2 }}' /proc/self/mounts)
             rm -rf {0} /run/netns/slice-*
             nft flush ruleset
             for link in $(ls /sys/class/net | grep -v '^lo$'); do
                 ip link del $link 2>/dev/null || true
             done
             echo 6e2a7d35-0f0a-4c0f-9d0c-3b3c1ad7c0d7 >/run/boot_id
             mount --bind /run/boot_id /proc/sys/kernel/random/boot_id",
            self.harness.run.display()
        ));
        self.harness.start();
    }

    /// Waits until no VM is reported as rejected by another program; what doctor advises is done first.
    pub fn until_opened(&mut self) {
        let warned = |vm: &str| message(self.harness, vm, "HostNetwork").contains("firewalld");
        let is_warned = |vm: String| warned(&vm);
        self.harness.until("masquerading", || {
            let masquerades = run("iptables-save -t nat").matches("-j MASQUERADE").count();
            (masquerades >= self.chains.len()).then_some(())
        });
        // `firewall` uses firewalld where it runs: at ADD it adds the guest's address to a zone, and a reload removes what is not permanent.
        let identities = self.identities();
        self.harness.until("all guests are in the zone", || {
            let sources = run("firewall-cmd --zone=trusted --list-sources");
            let in_zone = |ip: &str| {
                sources
                    .split_whitespace()
                    .any(|it| it.split('/').next() == Some(ip))
            };
            identities.values().all(|vm| in_zone(&vm.ip)).then_some(())
        });
        if !self.vms().any(is_warned) {
            return;
        }
        let output = self.harness.try_ctl("doctor -o json").stdout;
        let checks: Value = serde_json::from_slice(&output).expect("JSON");
        let checks = checks
            .as_array()
            .or(checks["items"].as_array())
            .expect("checks");
        let check = checks
            .iter()
            .find(|check| check["name"] == "other forward filters");
        let remedy = check.expect("a check")["remedy"]
            .as_str()
            .expect("a remedy");
        for command in remedy.split('`').skip(1).step_by(2) {
            run(command);
        }
        self.harness.until("nobody is warned", || {
            (!self.vms().any(is_warned)).then_some(())
        });
    }

    /// The last event: nothing is left over. Then everything that was found at odds fails the test.
    fn delete(&mut self) {
        for chain in self.chains.clone() {
            self.harness
                .ctl(&format!("delete hg {} --wait=30s", chain.name));
        }
        let left = left(&self.harness.run);
        self.note(
            "delete",
            "all",
            "leftovers",
            (!left.is_empty()).then(|| left.join("\n")),
        );
        println!(
            "{}: {} chains, {} observations, {} faults",
            self.dir.display(),
            self.chains.len(),
            self.observations,
            self.faults.len()
        );
        assert!(self.faults.is_empty(), "{:#?}", self.faults);
    }
}

/// The lines of a group's VMM: its guest answers at its TAP.
pub fn cloud_hypervisor(harness: &Harness) -> String {
    let program = vmm::program(Hypervisor::CloudHypervisor, harness.dir.path());
    format!(
        "cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}",
        program.expect("a program").display(),
        vmm::tiny_guest().display()
    )
}

/// What plugins have in the tables of iptables, sorted. `firewall` looks for its jumps and then adds them, without a lock: two that run
/// at the same time add a jump twice, which changes nothing for packets.
pub fn rules() -> Vec<String> {
    let saved = run("iptables-save");
    let of_plugins =
        |line: &&str| line.starts_with("-A") && (line.contains("CNI-") || line.contains("10.7"));
    let mut rules: Vec<String> = saved
        .lines()
        .filter(of_plugins)
        .map(str::to_owned)
        .collect();
    rules.sort();
    rules.dedup();
    rules
}
