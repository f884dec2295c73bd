//! Large files in both directions, with a bound for the memory of both processes.
//! Out of scope: speed.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::super::{Destination, GuestPath, Options, Source, download, upload};
use super::Agent;
use crate::guest::agent::files::router;

const MIB: u64 = 1 << 20;

/// What a process may use at most, in KiB. It contains the program and its libraries.
const MEMORY_LIMIT: u64 = 64 << 10;

/// Set for a process that is started by a test: the directory of the test.
const DIR: &str = "SLICE_COPY_DIR";

/// The maximum resident memory of a process so far, in KiB.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok())
        .expect("VmHWM")
}

/// Runs a test of this file in a process of its own.
fn start(test: &str, dir: &Path) -> Child {
    let path = module_path!().split_once("::").expect("a crate").1;
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{path}::{test}")])
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("this program")
}

/// 100 MiB that are random, and 300 MiB with a few bytes.
fn write_files(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let mut random = File::create(dir.join("random")).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..100 {
        let mut bytes = Vec::with_capacity(MIB as usize);
        while bytes.len() < MIB as usize {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        random.write_all(&bytes).unwrap();
    }
    let mut sparse = File::create(dir.join("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(123 * MIB)).unwrap();
    sparse.write_all(b"x").unwrap();
    sparse.set_len(300 * MIB).unwrap();
}

fn assert_equal(one: &Path, other: &Path) {
    let (mut one, mut other) = (File::open(one).unwrap(), File::open(other).unwrap());
    assert_eq!(
        one.metadata().unwrap().len(),
        other.metadata().unwrap().len()
    );
    let (mut a, mut b) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    loop {
        let length = one.read(&mut a).unwrap();
        if length == 0 {
            break;
        }
        other.read_exact(&mut b[..length]).unwrap();
        assert!(a[..length] == b[..length], "the contents differ");
    }
}

fn assert_sparse(path: &Path) {
    let blocks = fs::metadata(path).unwrap().blocks();
    assert!(blocks * 512 < MIB, "{} blocks", blocks);
}

/// The agent, until its standard input is closed.
#[tokio::test]
async fn serves_in_a_process_of_its_own() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let _agent = Agent::serve(Path::new(&dir), router());
    let end = std::thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
    while !end.is_finished() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The host: files one by one, and both in an archive.
#[tokio::test]
async fn copies_in_a_process_of_its_own() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    let agent = Agent(dir.join("agent.sock"));
    let options = Options {
        recursive: true,
        ..Options::default()
    };
    let path = |name: &str| dir.join(name);
    let guest = |name: &str| GuestPath::new(path(name).to_str().unwrap());
    for name in ["random", "sparse"] {
        let source = Source::Path(path("src").join(name));
        upload(
            &agent,
            source,
            &guest(&format!("guest-{name}")),
            &options,
            &Arc::default(),
        )
        .await
        .unwrap();
        let to = Destination::Path(path(&format!("host-{name}")));
        download(
            &agent,
            &guest(&format!("guest-{name}")),
            to,
            &options,
            &Arc::default(),
        )
        .await
        .unwrap();
    }
    let source = Source::Path(path("src"));
    upload(&agent, source, &guest("guest"), &options, &Arc::default())
        .await
        .unwrap();
    let to = Destination::Path(path("host"));
    download(&agent, &guest("guest"), to, &options, &Arc::default())
        .await
        .unwrap();
    assert!(
        peak(std::process::id()) < MEMORY_LIMIT,
        "{} KiB",
        peak(std::process::id())
    );
}

#[test]
fn large_files_are_copied_both_ways_with_little_memory() {
    // Not in memory, as /tmp may be.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    write_files(&dir.path().join("src"));
    let mut agent = start("serves_in_a_process_of_its_own", dir.path());
    while !dir.path().join("agent.sock").exists() {
        assert!(agent.try_wait().unwrap().is_none(), "the agent has ended");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let status = start("copies_in_a_process_of_its_own", dir.path())
        .wait()
        .unwrap();
    let agent_peak = peak(agent.id());
    drop(agent.stdin.take());
    agent.wait().unwrap();
    assert!(status.success(), "the host has failed");
    assert!(agent_peak < MEMORY_LIMIT, "{agent_peak} KiB");
    let at = |path: String| dir.path().join(path);
    for name in ["random", "sparse"] {
        for copy in ["guest-", "host-", "guest/", "host/"] {
            let copy = at(format!("{copy}{name}"));
            assert_equal(&at(format!("src/{name}")), &copy);
            if name == "sparse" {
                assert_sparse(&copy);
            }
        }
    }
}
