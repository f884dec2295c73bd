//! Programs that do not end, in all the ways that they do it.
//! Out of scope: who runs them.

use std::fs;
use std::path::Path;

use super::*;

const SHORT: Duration = Duration::from_millis(400);

/// Writes the pid of whoever runs it, then does what it is told.
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

/// Processes noted in `pids` that live, zombies not among them.
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
fn whatever_a_program_does_it_ends_in_time_and_leaves_nobody() {
    // What it does; whether it ends by itself, and with which status.
    let table: [(&str, Option<i32>); 12] = [
        ("exit 3", Some(3)),
        ("echo out; echo err >&2", Some(0)),
        (
            "trap '' TERM INT HUP; sleep 60 & note $!; wait; sleep 60",
            None,
        ),
        // Standard output and error held open by a child that goes on.
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
        // The kernel may still be clearing away what was killed.
        let until = Instant::now() + Duration::from_secs(2);
        while !living(dir.path()).is_empty() {
            assert!(Instant::now() < until, "{what}: {:?}", living(dir.path()));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[tokio::test]
async fn a_program_that_is_listened_to_is_dead_with_its_group_afterwards() {
    for what in [
        "echo yes; sleep 60 & note $!; wait",
        "sleep 60 & note $!; wait",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let command = script(dir.path(), what);
        let words: Vec<&str> = command
            .get_args()
            .map(|word| word.to_str().unwrap())
            .collect();
        let argv = [&["sh"], &words[..]].concat();
        let outcome = run_until(&argv, SHORT, |said| said.contains("yes"))
            .await
            .unwrap();
        assert_eq!(outcome.heard, what.starts_with("echo"));
        let until = Instant::now() + Duration::from_secs(2);
        while !living(dir.path()).is_empty() {
            assert!(Instant::now() < until, "{what}: {:?}", living(dir.path()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
