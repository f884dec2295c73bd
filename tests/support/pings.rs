//! `ping` of a guest from the host, and the longest time without an answer.
//! Out of scope: guests that send (`guest_stack`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

use super::harness;

/// A neighbour entry that was confirmed is not overwritten by another MAC within `locktime` (arp(7)), which is one second.
const LOCKTIME: Duration = Duration::from_millis(1500);

/// A `ping` that runs, twenty requests a second.
pub struct Pings {
    address: String,
    child: Child,
    log: PathBuf,
}

impl Pings {
    /// Starts it; the answers go to a file in the private `/run`.
    pub fn start(address: &str) -> Self {
        let log = PathBuf::from(format!("/run/pings-{address}"));
        Self {
            address: address.to_owned(),
            child: spawn(address, &log),
            log,
        }
    }

    /// Waits until the guest has answered for longer than the kernel keeps a neighbour entry unchanged. `ping` exits when there is no
    /// route to the guest (ENETUNREACH), as during a repair of ptp, and is then started again.
    pub fn steady(&mut self) {
        let begin = Instant::now();
        while !self.is_steady() {
            if self.child.try_wait().expect("its status").is_some() {
                self.child = spawn(&self.address, &self.log);
            }
            assert!(
                begin.elapsed() < harness::PATIENCE,
                "{} has no answers",
                self.log.display()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_steady(&self) -> bool {
        let times = self.answers();
        let span = times.first().zip(times.last());
        span.is_some_and(|(from, to)| to - from > LOCKTIME.as_secs_f64())
    }

    /// Ends it: seconds between two answers, or between the last answer and now, at most.
    pub fn longest_gap(mut self) -> f64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        harness::signal(self.child.id(), Signal::INT);
        self.child.wait().expect("its status");
        let mut times = self.answers();
        times.push(now.expect("after 1970").as_secs_f64());
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.fold(0.0, f64::max)
    }

    /// When each answer came (`ping -D`).
    fn answers(&self) -> Vec<f64> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let answers = text.lines().filter(|line| line.contains("bytes from"));
        let time = |line: &str| line.strip_prefix('[')?.split(']').next()?.parse().ok();
        answers.filter_map(time).collect()
    }
}

fn spawn(address: &str, log: &Path) -> Child {
    let out = File::create(log).expect("a log");
    let mut ping = Command::new("ping");
    ping.args(["-D", "-n", "-i", "0.05", address]);
    let ping = ping.stdin(Stdio::null()).stdout(out).stderr(Stdio::null());
    ping.spawn().expect("ping")
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ended_before = self.child.kill();
        let _ = self.child.wait();
    }
}
