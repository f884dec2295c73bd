//! The end of the guest: the power button, signals, and the sequence that follows.
//! Out of scope: other programs.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

use super::super::async_fd::register;
use super::reap;

/// How long programs have to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// `KEY_POWER` of linux/input-event-codes.h.
const KEY_POWER: u16 = 116;
/// `EV_KEY` of linux/input-event-codes.h.
const EV_KEY: u16 = 1;
/// The size of `struct input_event` of linux/input.h on 64-bit machines: time, type, code, value.
const EVENT: usize = 24;

/// How the guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It powers off.
    PowerOff,
    /// It resets. This ends Firecracker, which requests a power-down by Ctrl-Alt-Delete, and QEMU with `-no-reboot`.
    Restart,
}

/// Waits for a request to end: SIGUSR1 and SIGUSR2 (`halt` and `poweroff` of busybox), SIGTERM (its `reboot`), SIGINT (Ctrl-Alt-Delete),
/// or the power button.
///
/// # Errors
/// A signal cannot be received.
pub async fn requested() -> io::Result<End> {
    // The kernel resets at once on Ctrl-Alt-Delete until this is called, reboot(2).
    let _ = rustix::system::reboot(RebootCommand::CadOff);
    let mut halt = signal(SignalKind::user_defined1())?;
    let mut power_off = signal(SignalKind::user_defined2())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = halt.recv() => End::PowerOff,
        _ = power_off.recv() => End::PowerOff,
        () = button() => End::PowerOff,
        _ = terminate.recv() => End::Restart,
        _ = interrupt.recv() => End::Restart,
    })
}

/// Waits for the power button. Never returns without one.
async fn button() {
    let entries = fs::read_dir("/dev/input").into_iter().flatten().flatten();
    let devices = entries.filter_map(|entry| {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("event") {
            return None;
        }
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(entry.path());
        register(opened.ok()?.into(), Interest::READABLE).ok()
    });
    let mut presses: FuturesUnordered<_> = devices.map(press).collect();
    while let Some(is_pressed) = presses.next().await {
        if is_pressed {
            return;
        }
    }
    std::future::pending().await
}

/// Waits until a device reports that its power button is pressed; false if it cannot be read.
async fn press(device: AsyncFd<OwnedFd>) -> bool {
    loop {
        let Ok(mut ready) = device.readable().await else {
            return false;
        };
        let mut buffer = [0; EVENT * 16];
        let read = ready.try_io(|device| Ok(rustix::io::read(device.get_ref(), &mut buffer)?));
        match read {
            Ok(Ok(0) | Err(_)) => return false,
            Ok(Ok(length)) => {
                let events = buffer[..length].chunks_exact(EVENT);
                if events.into_iter().any(is_press) {
                    return true;
                }
            }
            Err(_would_block) => {}
        }
    }
}

fn is_press(event: &[u8]) -> bool {
    let [.., kind_0, kind_1, code_0, code_1, a, b, c, d] = event else {
        return false;
    };
    let kind = u16::from_ne_bytes([*kind_0, *kind_1]);
    let code = u16::from_ne_bytes([*code_0, *code_1]);
    let value = i32::from_ne_bytes([*a, *b, *c, *d]);
    (kind, code, value) == (EV_KEY, KEY_POWER, 1)
}

/// Ends all programs and then the guest. Returns only if the kernel refuses.
pub async fn end(how: End) -> io::Error {
    signal_all(Signal::TERM);
    let _ = tokio::time::timeout(GRACE, all_ended()).await;
    signal_all(Signal::KILL);
    let _ = tokio::time::timeout(GRACE, all_ended()).await;
    rustix::fs::sync();
    let command = match how {
        End::PowerOff => RebootCommand::PowerOff,
        End::Restart => RebootCommand::Restart,
    };
    match rustix::system::reboot(command) {
        Ok(()) => io::Error::other("reboot(2) returned"),
        Err(error) => error.into(),
    }
}

/// Signals all processes but this one: PID -1, kill(2).
fn signal_all(signal: Signal) {
    // The negated PID of the init is -1.
    let _ = rustix::process::kill_process_group(Pid::INIT, signal);
}

async fn all_ended() {
    while reap::all().is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_press_of_the_power_button_is_one() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut bytes = vec![0; 16];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(code.to_ne_bytes());
            bytes.extend(value.to_ne_bytes());
            bytes
        };
        assert!(is_press(&event(1, 116, 1)));
        for other in [event(1, 116, 0), event(1, 115, 1), event(0, 116, 1)] {
            assert!(!is_press(&other));
        }
        assert!(!is_press(&[]));
    }
}
