//! A question before data is destroyed. It is asked only if somebody can answer it: on a terminal.
//! Out of scope: what is destroyed.

use std::io::{self, BufRead, IsTerminal, Write};

use super::failure::Failure;

/// Whether a question can be asked: standard input and standard error are a terminal.
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a question on standard error. Only `y` and `yes` are a yes; the end of the input is a no.
///
/// # Errors
/// The answer is no.
pub fn ask(question: &str) -> Result<(), Failure> {
    let mut stderr = io::stderr().lock();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    let length = io::stdin().lock().read_line(&mut answer)?;
    if length == 0 {
        writeln!(stderr)?;
    }
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::one("cancelled: nothing was changed")),
    }
}

/// Asks before disks are deleted.
///
/// # Errors
/// The answer is no.
pub fn delete_disks(disks: usize) -> Result<(), Failure> {
    match disks {
        1 => ask("Delete 1 disk?"),
        disks => ask(&format!("Delete {disks} disks?")),
    }
}
