//! Commands for VMs on another node: two daemons in two network namespaces, with the certificates of a fleet.
//! Out of scope: etcd: where VMs are is in a file (`SLICE_TEST_PLACES`); what the commands do on one host.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rcgen::SerialNumber;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use slicectl::api::vm::Hypervisor;
use test_support::harness::{Harness, group};
use test_support::kernel::{self, Neighbour};
use test_support::{programs, vmm};

use super::pki::Pki;
use crate::api_listener::configure;
use crate::api_listener::tls::{authority, save};

/// The VM, on node-b.
const VM: &str = "box-1";
/// The addresses of the nodes.
const A: &str = "10.66.0.2";
const B: &str = "10.66.0.1";

/// More than all buffers together.
const LARGE: usize = 50 << 20;

/// node-a without VMs, and node-b with a VM and the real agent.
struct Fleet {
    a: Harness,
    b: Harness,
    pki: Pki,
    /// The serial number of the certificate of node-a.
    serial_a: SerialNumber,
    serial_b: SerialNumber,
    _agent: Killed,
    _programs: tempfile::TempDir,
    _network: Neighbour,
}

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn with_fleet(test: impl FnOnce(&mut Fleet) + Send) {
    with_fleet_of(None, test);
}

/// `files`: the limit of open files of node-a.
fn with_fleet_of(files: Option<(u64, u64)>, test: impl FnOnce(&mut Fleet) + Send) {
    kernel::private_sync(|| {
        let network = Neighbour::join("nodea", &format!("{B}/24"), &format!("{A}/24"));
        let pki = Pki::new(Path::new("/run/pki"));
        let mut b = Harness::new("slice-b");
        let serial_b = join(&mut b, &pki, "node-b", B);
        b.start();
        let mut a = Harness::new("slice-a");
        a.files = files;
        let serial_a = join(&mut a, &pki, "node-a", A);
        in_namespace(&network.path(), || a.start());
        let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let agent = start_vm(&b, programs.path());
        let mut fleet = Fleet {
            a,
            b,
            pki,
            serial_a,
            serial_b,
            _agent: agent,
            _programs: programs,
            _network: network,
        };
        fleet.places(json!({
            "vms": {VM: "node-b"},
            "nodes": {"node-a": url(A), "node-b": url(B)},
        }));
        fleet.b.until("node-b listens", || {
            TcpStream::connect((B, 8080)).ok().map(drop)
        });
        test(&mut fleet);
    });
}

fn url(address: &str) -> String {
    format!("https://{address}:8080")
}

/// Makes a daemon that is not started yet a node; the serial number of its certificate.
fn join(harness: &mut Harness, pki: &Pki, node: &str, address: &str) -> SerialNumber {
    let (identity, serial) = pki.node(node, &[address]);
    let crl = harness.dir.path().join("crl.pem");
    pki.revoke(&crl, &[]);
    let settings = format!(
        "api: {{bind_address: {address}}}\nfleet: {{endpoints: ['https://{B}:2379'], ca: {}, cert: {}, key: {}, crl: {}, node: {node}}}\n",
        pki.ca().display(),
        identity.cert.display(),
        identity.key.display(),
        crl.display(),
    );
    harness.write("sliced.yaml", &settings);
    let places = harness.dir.path().join("places.json");
    harness
        .env
        .push(("SLICE_TEST_PLACES", places.display().to_string()));
    serial
}

/// Runs this on a thread in a network namespace; processes that it starts are in it.
fn in_namespace<T: Send>(path: &Path, run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            let namespace = fs::File::open(path).expect("a namespace");
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).expect("entered");
            run()
        });
        entered.join().expect("it ends")
    })
}

fn start_vm(harness: &Harness, directory: &Path) -> Killed {
    let program = vmm::program(Hypervisor::CloudHypervisor, directory).expect("a program");
    let vmm = format!(
        "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}",
        program.display(),
        vmm::tiny_guest().display()
    );
    let manifest = group("box", 1, "169.254.100.0/22", "").replace("hypervisor: none", &vmm);
    harness.apply(&manifest);
    let vm = harness.get(&format!("vm {VM}"));
    let control = vm["status"]["vmm"]["api_socket"]
        .as_str()
        .expect("a control socket");
    let socket = Path::new(control).with_file_name("vsock.sock");
    let _ = fs::remove_file(&socket);
    let mut command = Command::new(programs::built("slice-agent"));
    command.args(["serve", "--unix"]).arg(&socket);
    let agent = command.env("LANG", "C").stdin(Stdio::null()).spawn();
    let agent = Killed(agent.expect("slice-agent"));
    harness.until("the agent listens", || socket.exists().then_some(()));
    agent
}

impl Fleet {
    /// Both nodes know these places.
    fn places(&self, places: serde_json::Value) {
        self.a.write("places.json", &places.to_string());
        self.b.write("places.json", &places.to_string());
    }

    /// `slicectl` at node-a.
    fn ctl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(programs::built("slicectl"));
        command
            .args(words)
            .env("SLICE_SOCKET", self.a.run.join("sliced.sock"))
            .env_remove("TERM")
            .current_dir(self.a.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.ctl(words).output().expect("slicectl")
    }

    fn succeeds(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(
            output.status.success(),
            "{words:?}: {}\n{}",
            text(&output.stderr),
            self.b.log()
        );
        text(&output.stdout)
    }

    fn fails(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        text(&output.stderr)
    }

    /// An error of a command for the VM.
    fn error(&self) -> String {
        self.fails(&["logs", VM])
    }

    fn file(&self, name: &str) -> PathBuf {
        self.a.dir.path().join(name)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn commands_for_a_vm_on_another_node_work_as_on_its_own() {
    with_fleet(|fleet| {
        let described = fleet.succeeds(&["describe", "vm", VM]);
        assert!(described.contains(VM), "{described}");
        let output = fleet.succeeds(&["get", "vm", VM, "-o", "json"]);
        assert!(output.contains("169.254.100."), "{output}");
        let verdict = fleet.run(&["explain", VM, "1.1.1.1:443"]);
        assert!(verdict.stderr.is_empty(), "{}", text(&verdict.stderr));
        // The user is one of node-a, and his events are at the VM.
        fleet.succeeds(&["vm", "exec", VM, "--uid", "0", "--", "true"]);
        let events = fleet.succeeds(&["events", "vm", VM]);
        assert!(events.contains("(uid 0) on node node-a"), "{events}");
        power(fleet);
        follows_logs(fleet);
        events_of_all(fleet);
        let unknown = fleet.fails(&["logs", "box-9"]);
        assert!(unknown.contains("vm/box-9 not found"), "{unknown}");
    });
}

fn events_of_all(fleet: &Fleet) {
    let events = fleet.succeeds(&["events", "--fleet"]);
    assert!(events.starts_with("NODE "), "{events}");
    for expected in ["node-a", "node-b", "GuestAccess"] {
        assert!(events.contains(expected), "{expected}: {events}");
    }
    // A node that does not answer is reported, and is no error.
    fleet.a.write(
        "places.json",
        &json!({"vms": {VM: "node-b"}, "nodes": {"node-b": url(B), "node-c": url("10.66.0.9")}})
            .to_string(),
    );
    let output = fleet.run(&["events", "--fleet", "-o", "json"]);
    assert!(output.status.success());
    let errors = text(&output.stderr);
    assert!(
        errors.contains("there is no answer of node node-c"),
        "{errors}"
    );
    assert!(text(&output.stdout).contains(r#""node":"node-b""#));
}

fn power(fleet: &Fleet) {
    let state = |expected: &str| {
        fleet.b.until(expected, || {
            let vm = fleet.b.get(&format!("vm {VM}"));
            (vm["status"]["vmm"]["state"].as_str()?.to_lowercase() == expected).then_some(())
        });
    };
    fleet.succeeds(&["vm", "pause", VM, "--wait"]);
    state("paused");
    let refused = fleet.fails(&["vm", "exec", VM, "--", "true"]);
    assert!(refused.contains("is paused"), "{refused}");
    fleet.succeeds(&["vm", "resume", VM, "--wait"]);
    state("running");
}

fn follows_logs(fleet: &Fleet) {
    let mut following = fleet.ctl(&["logs", "-f", VM]).spawn().expect("slicectl");
    let mut lines = BufReader::new(following.stdout.take().expect("a pipe")).lines();
    let _following = Killed(following);
    let first = lines.next().expect("a line").expect("text");
    assert!(!first.is_empty());
}

#[test]
fn input_copies_and_connections_pass_between_nodes() {
    with_fleet(|fleet| {
        let content: Vec<u8> = (0..LARGE as u32 / 4).flat_map(u32::to_le_bytes).collect();
        exec_with_input(fleet, &content);
        fs::write(fleet.file("source"), &content).expect("written");
        let in_vm = fleet.file("in-vm");
        let before = [memory(&fleet.a), memory(&fleet.b)];
        let vm = format!("{VM}:{}", in_vm.display());
        fleet.succeeds(&["vm", "cp", "source", &vm, "--uid", "0"]);
        assert!(fs::read(&in_vm).expect("read") == content);
        fleet.succeeds(&["vm", "cp", &vm, "back"]);
        assert!(fs::read(fleet.file("back")).expect("read") == content);
        // It is not read into memory.
        for (harness, before) in [&fleet.a, &fleet.b].into_iter().zip(before) {
            let growth = memory(harness).saturating_sub(before);
            assert!(growth < 8 << 20, "sliced: {growth} bytes");
        }
        let directory = fleet.a.dir.path().display().to_string();
        let listed = fleet.succeeds(&["fs", "ls", VM, &directory]);
        assert!(listed.contains("in-vm"), "{listed}");
        forwards_a_port(fleet, &content[..4 << 20]);
        a_client_that_goes_ends_its_command(fleet);
    });
}

/// The greatest resident memory of a daemon so far, in bytes.
fn memory(harness: &Harness) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", harness.pid())).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a size") << 10
}

fn exec_with_input(fleet: &Fleet, content: &[u8]) {
    let words = ["vm", "exec", VM, "--uid", "0", "--", "wc", "-c"];
    let mut child = fleet
        .ctl(&words)
        .stdin(Stdio::piped())
        .spawn()
        .expect("slicectl");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(content).expect("sent");
    drop(input);
    let output = child.wait_with_output().expect("its output");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).trim(), content.len().to_string());
}

fn forwards_a_port(fleet: &Fleet, content: &[u8]) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
            all.reverse();
            let _ = stream.write_all(&all);
        }
    });
    let words = ["vm", "port-forward", VM, &format!("0:{port}")];
    let mut child = fleet.ctl(&words).spawn().expect("slicectl");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let line = lines.next().map(|line| line.expect("text"));
    let Some(line) = line else {
        panic!(
            "{}",
            text(&child.wait_with_output().expect("output").stderr)
        );
    };
    let _forwarding = Killed(child);
    let local = line.split(' ').nth(1).expect("an address");
    let mut stream = TcpStream::connect(local).expect("a connection");
    stream.write_all(content).expect("sent");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    answer.reverse();
    assert!(answer == content, "{} bytes", answer.len());
}

fn a_client_that_goes_ends_its_command(fleet: &Fleet) {
    let pid = fleet.file("pid");
    let script = format!("echo $$ > {}; exec sleep 1000", pid.display());
    let words = ["vm", "exec", VM, "--uid", "0", "--", "sh", "-c", &script];
    let client = Killed(fleet.ctl(&words).spawn().expect("slicectl"));
    let pid = fleet.b.until("the command runs", || {
        let text = fs::read_to_string(&pid).ok()?;
        text.trim().parse::<u32>().ok()
    });
    drop(client);
    let is_running = || {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.starts_with("sleep"))
    };
    fleet
        .b
        .until("the command ends", || (!is_running()).then_some(()));
}

#[test]
fn a_user_with_the_token_of_one_node_reaches_vms_on_others() {
    with_fleet(|fleet| {
        let token = fleet.a.state().join("api/token");
        let words = format!(
            "--url {} --token-file {} --ca {} vm exec {VM} --uid 0 -- echo there",
            url(A),
            token.display(),
            fleet.pki.ca().display()
        );
        assert_eq!(fleet.a.ctl(&words), "there\n");
        let events = fleet.b.ctl(&format!("events vm {VM}"));
        assert!(
            events.contains("API token (10.66.0.1) on node node-a"),
            "{events}"
        );
        // The token of node-a is none of node-b.
        let wrong = words.replace(&url(A), &url(B));
        let error = fleet.a.refused(&wrong, 1);
        assert!(error.contains("refused the token"), "{error}");
    });
}

#[test]
fn a_listener_has_a_certificate_for_nodes_and_may_have_another_for_users() {
    with_fleet(|fleet| {
        let other = authority("users");
        let [cert, key, ca] = [
            ("tls.crt", &other.cert),
            ("tls.key", &other.key),
            ("users.pem", &other.ca),
        ]
        .map(|(name, text)| save(&fleet.b, name, text).display().to_string());
        let settings =
            fs::read_to_string(fleet.b.dir.path().join("sliced.yaml")).expect("settings");
        let api = format!("api: {{bind_address: {B}}}");
        let both = format!("api: {{bind_address: 0.0.0.0, tls: {{cert: {cert}, key: {key}}}}}");
        configure(&fleet.b, &settings.replace(&api, &both));
        let token = fleet.b.state().join("api/token");
        let of_user = format!(
            "--url https://127.0.0.1:8080 --token-file {} --ca {ca} get vms",
            token.display()
        );
        fleet.b.until("it has the other certificate", || {
            fleet.b.try_ctl(&of_user).status.success().then_some(())
        });
        fleet.succeeds(&["logs", VM]);
        // Without it, a certificate that names no host is of no use to users, and the one before is kept.
        configure(&fleet.b, &settings);
        fleet.b.until("it has that of the fleet", || {
            (!fleet.b.try_ctl(&of_user).status.success()).then_some(())
        });
        fleet.succeeds(&["logs", VM]);
        fleet.pki.node("node-b", &[]);
        fleet.b.until("it is reported", || {
            let messages = fleet.b.messages("host", "ApiListenerFailed");
            messages
                .iter()
                .any(|text| {
                    text.contains("fleet.cert: the certificate has no subject alternative names")
                })
                .then_some(())
        });
        fleet.succeeds(&["logs", VM]);
    });
}

#[test]
fn a_request_is_forwarded_once_and_its_headers_only_by_nodes() {
    with_fleet(|fleet| {
        // Each node takes the VM for one of the other.
        let ghost = json!({"vms": {"ghost-1": "node-b"}, "nodes": {"node-b": url(B)}});
        fleet.a.write("places.json", &ghost.to_string());
        let back = json!({"vms": {"ghost-1": "node-a"}, "nodes": {"node-a": url(A)}});
        fleet.b.write("places.json", &back.to_string());
        let error = fleet.fails(&["logs", "ghost-1"]);
        assert!(error.contains("vm/ghost-1 not found"), "{error}");
        let socket = fleet.a.run.join("sliced.sock");
        let request = |header: &str| {
            let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("connected");
            let text = format!(
                "GET /v1/version HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{header}\r\n\r\n"
            );
            stream.write_all(text.as_bytes()).expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            answer
        };
        let answer = request("slice-forwarded-by: node-b");
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(request("accept: */*").starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn errors_name_the_node_and_what_is_wrong() {
    with_fleet(|fleet| {
        for (node, url, expected) in [
            (
                "node-b",
                json!(null),
                "vm/box-1 is on node node-b, which has no API for other nodes",
            ),
            ("node-b", json!("http://10.66.0.1:8080"), "invalid URL"),
            (
                "node-b",
                json!("https://10.66.0.1:9"),
                "which is unreachable at https://10.66.0.1:9",
            ),
            (
                "node-c",
                json!(url(B)),
                "its certificate is that of node node-b",
            ),
        ] {
            fleet.places(json!({"vms": {VM: node}, "nodes": {node: url}}));
            let error = fleet.error();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    });
}

#[test]
fn a_node_that_is_revoked_or_gone_is_refused_and_its_connections_end() {
    with_fleet(|fleet| {
        let marker = fleet.file("runs");
        let script = format!("touch {}; exec sleep 1000", marker.display());
        let words = ["vm", "exec", VM, "--uid", "0", "--", "sh", "-c", &script];
        let start = || {
            let _ = fs::remove_file(&marker);
            let child = fleet.ctl(&words).spawn().expect("slicectl");
            fleet
                .b
                .until("the command runs", || marker.exists().then_some(()));
            child
        };
        let ends = |mut child: Child| {
            let ended = || child.try_wait().expect("its status");
            let status = fleet.b.until("the connection ends", ended);
            assert!(!status.success());
        };
        let running = start();
        let (of_a, of_b) = (fleet.file("crl.pem"), fleet.b.dir.path().join("crl.pem"));
        fleet
            .pki
            .revoke(&of_b, std::slice::from_ref(&fleet.serial_a));
        ends(running);
        let error = fleet.error();
        assert!(
            error.contains("refuses the certificate of this node: it is revoked"),
            "{error}"
        );
        fleet.pki.revoke(&of_b, &[]);
        fleet.b.until("it is accepted again", || {
            fleet.run(&["logs", VM]).status.success().then_some(())
        });
        // The other direction.
        let running = start();
        fleet
            .pki
            .revoke(&of_a, std::slice::from_ref(&fleet.serial_b));
        ends(running);
        let error = fleet.error();
        assert!(error.contains("its certificate is revoked"), "{error}");
        fleet.pki.revoke(&of_a, &[]);
        fleet.b.until("it is accepted again", || {
            fleet.run(&["logs", VM]).status.success().then_some(())
        });
        // A list that is invalid changes nothing.
        fs::write(&of_b, "nonsense").expect("written");
        std::thread::sleep(Duration::from_millis(300));
        fleet.succeeds(&["logs", VM]);
        let places = json!({
            "vms": {VM: "node-b"},
            "nodes": {"node-b": url(B)},
            "gone": ["node-a"],
        });
        fleet.b.write("places.json", &places.to_string());
        let error = fleet.error();
        assert!(error.contains("node node-a is gone"), "{error}");
    });
}

#[test]
fn requests_to_agents_of_other_nodes_are_limited_by_the_node_of_the_user() {
    with_fleet_of(Some((512, 512)), |fleet| {
        let words = ["vm", "exec", VM, "--uid", "0", "--", "sleep", "1000"];
        let mut running = Vec::new();
        // The limit is an eighth of the files, and a half of it for one VM. More, one after another: node-a has few connections.
        for _ in 0..40 {
            running.push(Killed(fleet.ctl(&words).spawn().expect("slicectl")));
            std::thread::sleep(Duration::from_millis(50));
        }
        fleet.b.until("the limit", || {
            let output = fleet.run(&["vm", "exec", VM, "--uid", "0", "--", "true"]);
            let error = text(&output.stderr);
            error
                .contains("vm/box-1 has 32 requests to agents")
                .then_some(())
        });
        drop(running);
        fleet.b.until("it is free again", || {
            let output = fleet.run(&["vm", "exec", VM, "--uid", "0", "--", "true"]);
            output.status.success().then_some(())
        });
    });
}
