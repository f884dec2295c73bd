//! Writes input to a VM's serial port, through the pipe that its VMM reads.
//! Out of scope: the output of the console (`streams`); creating the pipe ([`crate::reconcile::vmm`]).

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::wire::Refusal;

/// Writes `keys` to the pipe. With empty `keys`, only checks whether a process reads the pipe. Up to `PIPE_BUF` bytes are written
/// atomically (pipe(7)); a partial write of more is reported as an error.
pub(super) fn write_input(pipe: &Path, vm: &str, keys: &[u8]) -> Result<(), Refusal> {
    let refuse = |message: &str| Refusal::Conflict(vec![format!("vm/{vm} {message}")]);
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(pipe);
    let mut opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            return Err(match error.raw_os_error() {
                // No process has the pipe open for reading.
                Some(libc::ENXIO | libc::ENOENT) => refuse("is not running"),
                _ => Refusal::Failed(format!("cannot open {}: {error}", pipe.display())),
            });
        }
    };
    let written = opened
        .metadata()
        .and_then(|meta| match meta.file_type().is_fifo() {
            true => opened.write(keys),
            false => Err(io::Error::other("not a pipe")),
        });
    match written {
        Ok(count) if count == keys.len() => Ok(()),
        Ok(_) => Err(refuse(
            "does not read its console input: part of it was lost",
        )),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(refuse("does not read its console input"))
        }
        Err(error) => Err(Refusal::Failed(format!(
            "cannot write to {}: {error}",
            pipe.display()
        ))),
    }
}
