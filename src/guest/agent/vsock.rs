//! Waits until the kernel has vsock: an agent that is not from the image starts before the image loads its modules.
//! Out of scope: modules that are not in the image.

use std::process::Stdio;
use std::time::Duration;

use tokio::time::sleep;

use super::socket::Listener;
use crate::guest::protocol::PORT;

/// The driver of the device; `modprobe` loads what it depends on.
const MODULE: &str = "vmw_vsock_virtio_transport";
/// The places of `modprobe`.
const PROGRAMS: [&str; 4] = [
    "/sbin/modprobe",
    "/usr/sbin/modprobe",
    "/bin/modprobe",
    "/usr/bin/modprobe",
];
/// How long it may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The first and the longest delay between attempts; each is twice the previous one.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(10);

/// Listens on the port of the agent as soon as that is possible.
pub async fn listen() -> Listener {
    let mut delay = FIRST_DELAY;
    loop {
        // Also if the socket can be created: the driver is another module.
        load().await;
        match Listener::vsock(PORT) {
            Ok(listener) => return listener,
            Err(error) if delay == FIRST_DELAY => {
                eprintln!("slice-agent: listen on vsock port {PORT}: {error}: trying again");
            }
            Err(_) => {}
        }
        sleep(delay).await;
        delay = LAST_DELAY.min(delay * 2);
    }
}

/// Loads the driver, if it is a module of the image. Failures are not reported: it may be a part of the kernel.
async fn load() {
    let program = PROGRAMS
        .iter()
        .find(|path| std::path::Path::new(path).exists());
    let Some(program) = program else {
        return;
    };
    let child = std::process::Command::new(program)
        .args(["-q", MODULE])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        return;
    };
    let ended = tokio::time::timeout(TIMEOUT, async {
        while matches!(child.try_wait(), Ok(None)) {
            sleep(Duration::from_millis(20)).await;
        }
    });
    if ended.await.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
}
