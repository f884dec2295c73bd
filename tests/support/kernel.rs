//! A private kernel for a test: network and mount namespaces of its own, and things to put into them.
//! Out of scope: tests; what `sliced` makes.
//!
//! ```ignore
//! #[test]
//! fn a_lan_host_is_reached() {
//!     kernel::private(async {
//!         let canaries = Canaries::release();
//!         let lan = Neighbour::join("lan0", "192.168.7.1/24", "192.168.7.10/24");
//!         kernel::run("busybox ping -c1 -W1 192.168.7.10");
//!         assert_eq!(kernel::ip("addr show dev lan0")[0]["ifname"], "lan0");
//!         lan.run("ip route add default via 192.168.7.1");
//!         canaries.assert_alive();
//!     });
//! }
//! ```
//!
//! # Why
//! Tests run at the same time on the threads of one process, and namespaces belong to threads. So each test moves its own
//! thread, then starts a runtime of its own whose threads inherit the namespaces; child processes inherit them, too. When the
//! test is over the kernel takes everything back with the last thread, whatever the test left behind.
//!
//! The host itself is never touched: `private` fails loudly rather than run a test in the namespaces it was started in.

use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::turns;

/// Runs `test` in a private kernel: fresh network and mount namespaces, `lo` up, an empty `/run` with `/run/netns`, and
/// `/sys` of the new network namespace. All threads of its runtime, those for blocking work too, are inside.
///
/// Fails without the right to make namespaces. As a plain user run the tests under `unshare -Urnm` where the kernel allows it.
pub fn private<T: Send>(test: impl Future<Output = T> + Send) -> T {
    private_sync(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(test)
    })
}

/// [`private`] for a test that needs no runtime, or brings its own.
pub fn private_sync<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let _turn = turns::beside_others();
    // A thread of our own: cargo's may be used for another test afterwards (`--test-threads=1` runs on the main thread).
    std::thread::scope(|scope| {
        let name = std::thread::current()
            .name()
            .unwrap_or("private kernel")
            .to_owned();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, || {
                turns::inside();
                move_in();
                test()
            })
            .expect("a thread");
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Runs this on a thread that has the mounts of a process.
///
/// # Errors
/// The process has ended.
pub fn with_mounts_of<T: Send>(pid: u32, run: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let moved = scope.spawn(|| {
            // SAFETY: this changes this thread's view only; setns(2) refuses one that shares it.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
            let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
            let kind = Some(LinkNameSpaceType::Mount);
            move_into_link_name_space(namespace.as_fd(), kind)?;
            Ok(run())
        });
        moved.join().expect("it ends")
    })
}

/// Moves the calling thread into a private kernel.
fn move_in() {
    let spaces = UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::FS;
    // SAFETY: these change this thread's view only; it was started for this, and no other thread shares it.
    if let Err(error) = unsafe { rustix::thread::unshare_unsafe(spaces) } {
        panic!("no right to make namespaces ({error}): run as root or under `unshare -Urnm`");
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).expect("mounts made private");
    mount("tmpfs", "/run");
    mount("sysfs", "/sys");
    fs::create_dir("/run/netns").expect("/run/netns");
    run("ip link set lo up");
}

fn mount(kind: &str, at: &str) {
    rustix::mount::mount(kind, at, kind, MountFlags::empty(), None)
        .unwrap_or_else(|error| panic!("cannot mount {kind} at {at}: {error}"));
}

/// Runs a shell command (or several, up to the first that fails) inside and answers its standard output; fails the test, with all that it said, when it fails.
pub fn run(command: &str) -> String {
    let output = attempt(command);
    assert!(
        output.status.success(),
        "`{command}` failed, {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs a shell command inside that may fail.
pub fn attempt(command: &str) -> Output {
    Command::new("sh")
        .args(["-ec", command])
        .stdin(Stdio::null())
        .output()
        .expect("sh")
}

/// `ip -j -d …` inside, parsed: `ip("addr show dev lo")`.
pub fn ip(arguments: &str) -> serde_json::Value {
    parse(&run(&format!("ip -j -d {arguments}")))
}

/// `iptables-save -t TABLE` inside, one rule or chain a line, without counters and remarks.
pub fn rules(table: &str) -> Vec<String> {
    run(&format!("iptables-save -t {table}"))
        .lines()
        .filter(|line| line.starts_with(['-', ':']))
        .map(|line| line.split(" [").next().unwrap_or(line).to_owned())
        .collect()
}

fn parse(json: &str) -> serde_json::Value {
    match json.trim() {
        "" => serde_json::Value::Array(Vec::new()),
        text => serde_json::from_str(text).expect("JSON of ip"),
    }
}

/// A network namespace beside the one that plays the host: a LAN host, the internet, a VM's.
pub struct Neighbour {
    /// In `/run/netns`, and the name of our end of its veth.
    pub name: String,
}

impl Neighbour {
    /// An empty namespace `/run/netns/NAME` with `lo` up.
    pub fn alone(name: &str) -> Self {
        run(&format!(
            "ip netns add {name} && ip -n {name} link set lo up"
        ));
        Self {
            name: name.to_owned(),
        }
    }

    /// A namespace and a veth to it: our end is called `name` and has address `ours`, its end is `eth0` with address
    /// `theirs` (both `IP/PREFIX`); its default route leads to us. More addresses: `.run("ip addr add …")`.
    pub fn join(name: &str, ours: &str, theirs: &str) -> Self {
        let this = Self::alone(name);
        let gateway = ours.split('/').next().unwrap_or(ours);
        run(&format!(
            "ip link add {name} type veth peer name eth0 netns {name}
             ip addr add {ours} dev {name}
             ip -n {name} addr add {theirs} dev eth0
             ip link set {name} up
             ip -n {name} link set eth0 up
             ip -n {name} route add default via {gateway}"
        ));
        this
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs a shell command in it; fails the test when it fails.
    pub fn run(&self, command: &str) -> String {
        run(&self.wrap(command))
    }

    /// Runs a shell command in it that may fail.
    pub fn attempt(&self, command: &str) -> Output {
        attempt(&self.wrap(command))
    }

    /// `ip -j -d …` in it, parsed.
    pub fn ip(&self, arguments: &str) -> serde_json::Value {
        parse(&self.run(&format!("ip -j -d {arguments}")))
    }

    fn wrap(&self, command: &str) -> String {
        let quoted = command.replace('\'', r"'\''");
        format!("nsenter --net=/run/netns/{} sh -c '{quoted}'", self.name)
    }
}

/// Things of strangers that nobody may touch: a link with an address and a label like ours, a chain with a rule, a rule in
/// FORWARD, a route, a neighbour, a namespace with a link.
pub struct Canaries {
    before: String,
}

impl Canaries {
    /// Puts them into the private kernel.
    pub fn release() -> Self {
        run("ip link add canary0 type bridge
             ip link set canary0 alias slice/canary up
             ip addr add 192.0.2.1/24 dev canary0
             ip route add 198.51.100.0/24 via 192.0.2.2
             ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev canary0
             iptables -N CANARY
             iptables -A CANARY -s 192.0.2.9 -j DROP
             iptables -A FORWARD -i canary0 -j CANARY
             iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -o canary1 -j MASQUERADE
             ip netns add canary
             ip -n canary link add canary0 type bridge");
        Self { before: look() }
    }

    /// Fails the test if one is gone or changed.
    pub fn assert_alive(&self) {
        assert_eq!(look(), self.before, "a canary was touched");
    }
}

/// Only what is the canaries', so that other things may come and go; rules of ours may name a canary's bridge.
fn look() -> String {
    run("ip -o link show canary0
         ip -4 -o addr show dev canary0
         ip route show dev canary0
         ip neigh show dev canary0 nud permanent
         iptables-save | grep -v '^-A SLICE-' | grep -i -E '^(:|-A).*(canary|192\\.0\\.2\\.)' | sed 's/ \\[.*//'
         ip -n canary -o link show canary0")
}
