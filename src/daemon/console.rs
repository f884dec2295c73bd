//! What is typed at a VM's serial port, on its way to the VMM.
//! Out of scope: what comes back (`streams`); who made the pipe ([`crate::reconcile::vmm`]).

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::wire::Refusal;

/// Hands `keys` to whoever reads the pipe; nothing, to know whether somebody does. All of them or none (pipe(7): up to
/// `PIPE_BUF` bytes are one write; more may be cut, and that is told).
pub(super) fn type_in(pipe: &Path, vm: &str, keys: &[u8]) -> Result<(), Refusal> {
    let refuse = |why: &str| Refusal::Conflict(vec![format!("vm/{vm} {why}")]);
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(pipe);
    let mut opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            return Err(match error.raw_os_error() {
                // Nobody has it open for reading.
                Some(libc::ENXIO | libc::ENOENT) => refuse("does not run"),
                _ => Refusal::Failed(format!("cannot open {}: {error}", pipe.display())),
            });
        }
    };
    let written = opened
        .metadata()
        .and_then(|meta| match meta.file_type().is_fifo() {
            true => opened.write(keys),
            false => Err(io::Error::other("it is no pipe")),
        });
    match written {
        Ok(count) if count == keys.len() => Ok(()),
        Ok(_) => Err(refuse("does not read what is typed: a part of it was lost")),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(refuse("does not read what is typed"))
        }
        Err(error) => Err(Refusal::Failed(format!(
            "cannot write to {}: {error}",
            pipe.display()
        ))),
    }
}
