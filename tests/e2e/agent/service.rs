//! The process: limits, rest, figures, the static binary.
//! Out of scope: single requests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use axum::body::Body;
use hyper::StatusCode;
use slicectl::guest::protocol::{Health, Stats};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Agent, LIMIT, bytes, sh, until};

#[tokio::test]
async fn health_and_figures_are_those_of_this_machine() {
    let agent = Agent::start().await;
    let health: Health = agent.get("GET", "/health").await;
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    assert_eq!(health.hostname, hostname.trim());
    assert_eq!(health.agent_version, env!("CARGO_PKG_VERSION"));
    assert!(health.userdata_ran && health.userdata_exit_code.is_none());
    assert!(health.agent_uptime > 0 && health.system_uptime > health.agent_uptime);
    let head = agent.request("HEAD", "/health", Body::empty()).await;
    assert_eq!(
        (head.status(), bytes(head).await.len()),
        (StatusCode::OK, 0)
    );
    let stats: Stats = agent.get("GET", "/stats").await;
    assert!(stats.total_cpus > 0 && stats.total_memory > 0 && stats.disk_space_total > 0);
    assert_eq!(stats.hostname, health.hostname);
}

#[tokio::test]
async fn unknown_paths_and_methods_have_errors_in_json() {
    let agent = Agent::start().await;
    assert_eq!(
        agent.error("GET", "/v2/x").await,
        (StatusCode::NOT_FOUND, "path \"/v2/x\" not found".to_owned())
    );
    assert_eq!(
        agent.error("PUT", "/health").await.0,
        StatusCode::METHOD_NOT_ALLOWED
    );
    let long = format!(
        "/exec?uid=0&cmd=echo&buffered=true&args={}",
        "x".repeat(60_000)
    );
    let found: slicectl::guest::protocol::Buffered = agent.get("POST", &long).await;
    assert_eq!(found.stdout.len(), 60_001);
}

#[tokio::test]
async fn the_handshake_is_that_of_a_vmm_and_other_ports_are_closed() {
    let agent = Agent::start().await;
    let mode = fs::metadata(agent.socket())
        .expect("a socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    for line in [
        "CONNECT 517\n",
        "CONNECT\n",
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT 516 \n",
        "\n",
        &"x".repeat(100),
    ] {
        let mut stream = UnixStream::connect(agent.socket())
            .await
            .expect("a connection");
        stream.write_all(line.as_bytes()).await.expect("written");
        let mut rest = Vec::new();
        // The agent may close it before all is read.
        let _ = timeout(LIMIT, stream.read_to_end(&mut rest))
            .await
            .expect("in time");
        assert!(
            rest.is_empty(),
            "{line:?}: {}",
            String::from_utf8_lossy(&rest)
        );
    }
    // The request in the same packet as the handshake.
    let mut stream = UnixStream::connect(agent.socket())
        .await
        .expect("a connection");
    stream
        .write_all(b"CONNECT 516\nGET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .expect("written");
    let mut all = String::new();
    timeout(LIMIT, stream.read_to_string(&mut all))
        .await
        .expect("in time")
        .expect("read");
    assert!(
        all.starts_with("OK ") && all.contains("\nHTTP/1.1 200 OK"),
        "{all}"
    );
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so_and_served_after_others_end() {
    let agent = Agent::start().await;
    let mut open = Vec::new();
    for _ in 0..2048 {
        open.push(agent.connect().await);
    }
    let (status, error) = agent.error("GET", "/health").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{error}");
    drop(open);
    until("a request is served", || async {
        let response = agent.request("GET", "/health", Body::empty()).await;
        if response.status() == StatusCode::OK {
            Ok(())
        } else {
            Err(())
        }
    })
    .await;
}

#[tokio::test]
async fn a_socket_of_an_earlier_agent_is_replaced_and_another_file_is_not() {
    let agent = Agent::start().await;
    let socket = agent.socket();
    let program = env!("CARGO_BIN_EXE_slice-agent");
    let file = agent.directory.path().join("file");
    fs::write(&file, "text").expect("written");
    let failed = Command::new(program)
        .args(["serve", "--unix"])
        .arg(&file)
        .output()
        .expect("run");
    assert!(!failed.status.success());
    let text = String::from_utf8_lossy(&failed.stderr);
    assert!(
        text.starts_with("slice-agent: listen on ") && text.lines().count() == 1,
        "{text}"
    );
    assert_eq!(fs::read_to_string(&file).expect("read"), "text");
    let mut second = Command::new(program)
        .args(["serve", "--unix"])
        .arg(&socket)
        .spawn()
        .expect("an agent");
    until("the second serves", || async {
        let mut stream = UnixStream::connect(&socket).await.map_err(|_| ())?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(|_| ())?;
        stream.shutdown().await.map_err(|_| ())?;
        if peer.pid.as_raw_nonzero().get().unsigned_abs() == second.id() {
            Ok(())
        } else {
            Err(())
        }
    })
    .await;
    second.kill().expect("killed");
    second.wait().expect("ended");
}

/// Ticks of CPU time, of 10 ms.
fn cpu_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("figures");
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .expect("a name")
        .1
        .split_ascii_whitespace()
        .collect();
    fields[11].parse::<u64>().expect("a figure") + fields[12].parse::<u64>().expect("a figure")
}

async fn assert_frugal(program: &Path, rss: u64) {
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let begin = Instant::now();
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("s");
        let mut child = Command::new(program)
            .args(["serve", "--unix"])
            .arg(&socket)
            .spawn()
            .expect("an agent");
        while UnixStream::connect(&socket).await.is_err() {
            assert!(begin.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_micros(200));
        }
        fastest = fastest.min(begin.elapsed());
        child.kill().expect("killed");
        child.wait().expect("ended");
    }
    let agent = Agent::start_program(program).await;
    agent.buffered(sh("true")).await;
    // The thread that started the process ends.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let before = cpu_time(agent.child.id());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (ticks, resident) = (cpu_time(agent.child.id()) - before, agent.memory("VmRSS:"));
    println!(
        "{}: started in {fastest:?}, idle: {ticks} ticks of CPU time in 5 s, {resident} KiB, {} threads",
        program.display(),
        agent.memory("Threads:")
    );
    assert!(fastest < Duration::from_millis(20), "{fastest:?}");
    assert_eq!(ticks, 0);
    assert!(resident < rss, "{resident} KiB");
    assert_eq!(agent.memory("Threads:"), 1);
}

#[tokio::test]
async fn an_agent_at_rest_takes_no_time_and_little_memory() {
    let _turn = test_support::turns::alone();
    // The ordinary build, without optimization.
    assert_frugal(Path::new(env!("CARGO_BIN_EXE_slice-agent")), 16 << 10).await;
}

/// Whether an ELF image has a program header `PT_INTERP`.
fn needs_loader(image: &[u8]) -> bool {
    let number = |at: usize, length: usize| {
        let bytes = image[at..at + length].iter().rev();
        bytes.fold(0, |all, byte| all << 8 | usize::from(*byte))
    };
    let (offset, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    assert!(image.starts_with(b"\x7fELF") && count > 0);
    (0..count).any(|index| number(offset + index * size, 4) == 3)
}

/// `examples/guest/agent.sh` builds it.
#[tokio::test]
async fn the_static_agent_is_small_needs_no_library_and_starts_at_once() {
    let Some(program) = std::env::var_os("SLICE_AGENT_BIN") else {
        println!("SLICE_AGENT_BIN is not set: the static agent is not tested");
        return;
    };
    let _turn = test_support::turns::alone();
    let program = Path::new(&program);
    assert!(needs_loader(&fs::read("/bin/sh").expect("a shell")));
    let size = fs::metadata(program).expect("the agent").len();
    println!("size: {size} bytes");
    assert!(size < 8 << 20, "{size} bytes");
    assert!(!needs_loader(&fs::read(program).expect("the agent")));
    assert_frugal(program, 8 << 10).await;
    let agent = Agent::start_program(program).await;
    let found = agent.buffered(sh("id -un; echo $HOME")).await;
    assert_eq!(found.stdout, "root\n/root\n");
}
