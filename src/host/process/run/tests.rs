//! Programs that do not end, or leave descendants, in various ways.
//! Out of scope: the callers.

use std::fs;
use std::path::Path;

use super::*;

const SHORT: Duration = Duration::from_millis(400);

/// A shell that appends its PID to the file `pids` and then executes `what`.
fn script(dir: &Path, what: &str) -> Command {
    let mut command = Command::new("sh");
    let pids = dir.join("pids").display().to_string();
    command
        .args([
            "-c",
            &format!("note() {{ echo $1 >>{pids}; }}; note $$; {what}"),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The processes in the file `pids` that are alive, without zombies.
fn living(dir: &Path) -> Vec<String> {
    let pids = fs::read_to_string(dir.join("pids")).unwrap_or_default();
    let lives = |pid: &&str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .trim()
            .chars()
            .next();
        state.is_some_and(|state| state != 'Z')
    };
    pids.lines().filter(lives).map(str::to_owned).collect()
}

#[test]
fn every_program_ends_in_time_and_leaves_no_process() {
    // The script; its exit status if it ends by itself.
    let table: [(&str, Option<i32>); 12] = [
        ("exit 3", Some(3)),
        ("echo out; echo err >&2", Some(0)),
        (
            "trap '' TERM INT HUP; sleep 60 & note $!; wait; sleep 60",
            None,
        ),
        // A child that keeps running keeps standard output and error open.
        ("sleep 60 & note $!", Some(0)),
        ("(trap '' TERM; sleep 60) & note $!; exit 5", Some(5)),
        ("setsid sleep 60 & note $!", Some(0)),
        (
            "setsid sh -c 'setsid sleep 60 & sleep 60' & note $!; sleep 60",
            None,
        ),
        ("exec setsid sleep 60", Some(0)),
        ("while :; do echo endless; done", None),
        ("head -c 20000000 /dev/zero; exit 7", Some(7)),
        ("yes >&2 & note $!; exit 0", Some(0)),
        ("kill -STOP $$; sleep 60", None),
    ];
    for (what, ends) in table {
        let dir = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        let ended = run(&mut script(dir.path(), what), SHORT);
        let took = begin.elapsed();
        match (ended, ends) {
            (Ok(ended), Some(status)) => {
                assert_eq!(ended.status.code(), Some(status), "{what}");
                assert!(ended.stdout.len() <= OUTPUT_LIMIT, "{what}");
            }
            (Err(error), None) => {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{what}: {error}");
                assert!(error.to_string().contains("400ms"), "{error}");
                assert!(took >= SHORT, "{what}: {took:?}");
            }
            (ended, _) => panic!("{what}: {ended:?}"),
        }
        assert!(took < Duration::from_secs(5), "{what}: {took:?}");
        // The kernel may still be ending the killed processes.
        let until = Instant::now() + Duration::from_secs(2);
        while !living(dir.path()).is_empty() {
            assert!(Instant::now() < until, "{what}: {:?}", living(dir.path()));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[tokio::test]
async fn run_until_leaves_no_process_of_the_group() {
    for what in [
        "echo yes; sleep 60 & note $!; wait",
        "sleep 60 & note $!; wait",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let command = script(dir.path(), what);
        let args: Vec<&str> = command
            .get_args()
            .map(|arg| arg.to_str().unwrap())
            .collect();
        let argv = [&["sh"], &args[..]].concat();
        let outcome = run_until(&argv, SHORT, |output| output.contains("yes"))
            .await
            .unwrap();
        assert_eq!(outcome.matched, what.starts_with("echo"));
        let until = Instant::now() + Duration::from_secs(2);
        while !living(dir.path()).is_empty() {
            assert!(Instant::now() < until, "{what}: {:?}", living(dir.path()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
