//! The real network managers and firewalls of Debian, in a private kernel: systemd-networkd, NetworkManager, firewalld, ufw.
//! Out of scope: what they do to our links.
//!
//! # Why
//! `tests/setup.sh` unpacks their packages. A private kernel has mounts of its own, in which they are put over `/usr`, `/etc` and `/var`;
//! what the programs write goes to its `/run`. `/sys` is read-only, so that none of them waits for udev.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::kernel::{attempt, run};
use super::programs;

/// What is unpacked, put into this private kernel, and the bus that the programs are asked over.
pub struct Managers {
    started: Vec<Child>,
}

impl Managers {
    /// Puts the programs there.
    pub fn unpacked() -> Self {
        let default = programs::root().join("target/managers");
        let dir = std::env::var_os("SLICE_MANAGERS_DIR").map_or(default, PathBuf::from);
        assert!(
            dir.join("done").exists(),
            "{} is not there: run tests/setup.sh",
            dir.display()
        );
        for part in ["usr", "etc", "var"] {
            run(&format!(
                "mkdir -p /run/over/{part} /run/over/{part}.work
                 mount -t overlay overlay -o lowerdir={}/root/{part}:/{part},upperdir=/run/over/{part},workdir=/run/over/{part}.work /{part}",
                dir.display()
            ));
        }
        // Without a policy daemon root may do everything, and none is started.
        run("mount -o remount,ro,bind /sys
             rm -f /usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service
             mkdir -p /run/dbus /run/log");
        let mut this = Self {
            started: Vec::new(),
        };
        let config = "--config-file=/usr/share/dbus-1/system.conf";
        this.start("dbus-daemon", &[config, "--nofork", "--nopidfile"]);
        until("the bus", || attempt("test -S /run/dbus/system_bus_socket"));
        this
    }

    fn start(&mut self, program: &str, args: &[&str]) -> usize {
        let name = program.rsplit('/').next().unwrap();
        let log = File::create(format!("/run/log/{name}")).unwrap();
        let child = Command::new(program)
            .args(args)
            .env("SYSTEMD_LOG_LEVEL", "debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        self.started.push(child);
        self.started.len() - 1
    }

    /// Starts systemd-networkd and waits until it answers.
    pub fn networkd(&mut self) -> usize {
        let at = self.start("/lib/systemd/systemd-networkd", &[]);
        until("networkd", || attempt("networkctl --no-pager list lo"));
        at
    }

    /// Starts NetworkManager and waits until it answers.
    pub fn network_manager(&mut self) -> usize {
        let at = self.start("/usr/sbin/NetworkManager", &["--no-daemon"]);
        until("NetworkManager", || {
            attempt("nmcli -t -f RUNNING general | grep -q running")
        });
        at
    }

    /// Starts firewalld and waits until it answers.
    pub fn firewalld(&mut self) -> usize {
        let at = self.start("/usr/sbin/firewalld", &["--nofork", "--nopid"]);
        until("firewalld", || attempt("firewall-cmd --state"));
        at
    }

    /// Ends one that was started.
    pub fn stop(&mut self, at: usize) {
        let child = &mut self.started[at];
        super::harness::signal(child.id(), rustix::process::Signal::TERM);
        child.wait().unwrap();
    }
}

impl Drop for Managers {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = attempt("tail -n 30 /run/log/*");
            eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
        }
        for child in &mut self.started {
            let _ended_before = child.kill();
            let _ = child.wait();
        }
    }
}

fn until(what: &str, mut look: impl FnMut() -> std::process::Output) {
    let begin = Instant::now();
    loop {
        let output = look();
        if output.status.success() {
            return;
        }
        let reported = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{what}: {reported}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}
