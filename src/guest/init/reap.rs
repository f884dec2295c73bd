//! Waits for ended processes: an init receives those of all parents that have ended.
//! Out of scope: what to do about them.

use rustix::process::{Pid, WaitOptions};

/// Waits for all processes that have ended. The PIDs, or `None` if there is no child at all.
pub fn all() -> Option<Vec<Pid>> {
    let mut ended = Vec::new();
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, _))) => ended.push(pid),
            Ok(None) => return Some(ended),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return (!ended.is_empty()).then_some(ended),
        }
    }
}
