//! Running a short-lived program to hear what it says.
//! Not here: programs that outlive us.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{ChildStdout, Command};

use crate::host::Error;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Standard output, at most 1 MiB.
    pub output: String,
    /// Whether the caller had heard enough, as opposed to the program's end or the deadline.
    pub heard: bool,
}

const OUTPUT_LIMIT: usize = 1 << 20;

/// Runs a program until `enough` says so of its standard output, until it ends, or until the deadline. It is dead and reaped
/// when this returns. Standard error is thrown away: let the program write to standard output.
pub async fn run_until(
    argv: &[&str],
    deadline: Duration,
    enough: impl Fn(&str) -> bool,
) -> Result<Outcome, Error> {
    let program = argv.first().copied().unwrap_or_default();
    let wrap = |error| Error::io("run", program, error);
    let mut child = Command::new(program)
        .args(argv.get(1..).unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(wrap)?;
    let mut outcome = Outcome {
        output: String::new(),
        heard: false,
    };
    if let Some(stdout) = child.stdout.take() {
        let listening = listen(stdout, &mut outcome, enough);
        // Past the deadline: what was heard by then is the answer.
        let _ = tokio::time::timeout(deadline, listening).await;
    }
    // ESRCH and the like: it has ended by itself, and was reaped.
    let _ = child.kill().await;
    Ok(outcome)
}

/// Until there is enough, or no more.
pub(super) async fn listen(
    mut stdout: ChildStdout,
    outcome: &mut Outcome,
    enough: impl Fn(&str) -> bool,
) {
    let mut bytes = Vec::new();
    while bytes.len() < OUTPUT_LIMIT && stdout.read_buf(&mut bytes).await.unwrap_or(0) > 0 {
        outcome.output = String::from_utf8_lossy(&bytes).into_owned();
        outcome.heard = enough(&outcome.output);
        if outcome.heard {
            break;
        }
    }
}
