//! A pseudoterminal, see pty(7).
//! Out of scope: the program on it.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::super::async_fd::register;

/// The master side of a terminal.
#[derive(Debug)]
pub struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    /// A new terminal of this size, and its slave side for a process.
    ///
    /// # Errors
    /// `/dev/ptmx` does not exist, or there are too many terminals.
    pub fn open(columns: u32, rows: u32) -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        // Without a path: devpts may be mounted elsewhere.
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let terminal = Self(register(master, interest)?);
        terminal.resize(columns, rows);
        Ok((terminal, slave))
    }

    /// Sets the size; the foreground process group receives `SIGWINCH`. Sizes above 65,535 are reduced to it.
    pub fn resize(&self, columns: u32, rows: u32) {
        let cells = |count| u16::try_from(count).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_col: cells(columns),
            ws_row: cells(rows),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // It fails only for descriptors that are no terminal.
        let _ = tcsetwinsize(self.0.get_ref(), size);
    }

    /// Reads output; 0 at its end.
    ///
    /// # Errors
    /// The terminal cannot be read.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.0.readable().await?;
            let read = guard.try_io(|master| match rustix::io::read(master, &mut *buffer) {
                // Linux: no process has the slave side open.
                Err(Errno::IO) => Ok(0),
                result => Ok(result?),
            });
            if let Ok(result) = read {
                return result;
            }
        }
    }

    /// Writes input. It waits while the program does not read it.
    ///
    /// # Errors
    /// No process has the terminal open.
    pub async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |master: &OwnedFd| Ok(rustix::io::write(master, bytes)?);
            let length = self.0.async_io(Interest::WRITABLE, write).await?;
            bytes = &bytes[length..];
        }
        Ok(())
    }
}
