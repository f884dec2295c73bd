//! The REST API of existing clients, request by request: what is sent, and what must be answered. Groups without a VMM, and VMs with a
//! double of a VMM, with the real `slice-agent` as its guest.
//! Out of scope: the clients themselves (`sdk.sh`).

mod bodies;
pub mod client;
mod create;
mod endpoints;
mod guest;
mod idempotent;
mod input;
mod kills;
mod power;
mod recorded;
mod schemathesis;
mod secrets;
mod storage;
mod tags;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use slicectl::api::vm::Hypervisor;
use test_support::harness::{Harness, group, slots, with_daemon};
use test_support::{programs, vmm};

use self::client::{Answer, Api};
use super::guest_access::Killed;

/// A VM with a guest, its name and the socket of its vsock device.
struct Guest {
    name: String,
    socket: PathBuf,
}

/// A daemon with the group `sandbox` of one slot without a VMM.
fn with_slots(test: impl FnOnce(&mut Harness, &Api) + Send) {
    with_daemon(|mut harness| {
        harness.apply(&slots(1, "allow: [10.0.0.0/8]"));
        let api = Api::of(&harness);
        test(&mut harness, &api);
    });
}

/// A daemon with the group `box`, with these lines in it; its VMs have a double of a VMM.
fn with_vmm(lines: &str, test: impl FnOnce(&mut Harness, &Api) + Send) {
    let lines: String = lines
        .lines()
        .map(|line| format!("\n      {line}"))
        .collect();
    with_daemon(move |mut harness| {
        let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let program = vmm::program(Hypervisor::CloudHypervisor, programs.path());
        let vmm = format!(
            "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}{lines}",
            program.expect("a program").display(),
            vmm::tiny_guest().display()
        );
        let manifest = group("box", 0, "169.254.100.0/22", "").replace("hypervisor: none", &vmm);
        harness.apply(&manifest);
        let api = Api::of(&harness);
        test(&mut harness, &api);
    });
}

/// The socket of the vsock device of a VM.
fn socket_of(harness: &Harness, vm: &str) -> PathBuf {
    let control = harness.until("the control socket", || {
        let vm = harness.get(&format!("vm {vm}"));
        vm["status"]["vmm"]["api_socket"]
            .as_str()
            .map(PathBuf::from)
    });
    control.with_file_name("vsock.sock")
}

/// The real agent on this socket.
fn agent_on(harness: &Harness, socket: &Path) -> Killed {
    let _ = fs::remove_file(socket);
    let agent = Command::new(programs::built("slice-agent"))
        .args(["serve", "--unix"])
        .arg(socket)
        .env("LANG", "C")
        .stdin(Stdio::null())
        .spawn();
    let agent = Killed(agent.expect("slice-agent"));
    harness.until("the agent listens", || socket.exists().then_some(()));
    agent
}

/// Creates a VM of the group `box`.
fn guest(harness: &Harness, api: &Api, body: &Value) -> Guest {
    let created = api.post("/hostgroup/box/nodes", body);
    assert_eq!(created.status, 200, "{created:?}");
    let name = created.json()["hostname"]
        .as_str()
        .expect("a name")
        .to_owned();
    let socket = socket_of(harness, &name);
    Guest { name, socket }
}

/// A running VM with the real agent.
fn with_agent(test: impl FnOnce(&mut Harness, &Api, &str) + Send) {
    with_vmm("", |harness, api| {
        let guest = guest(harness, api, &json!({}));
        let _agent = agent_on(harness, &guest.socket);
        let health = format!("/vm/{}/health", guest.name);
        harness.until("the agent answers", || {
            (api.get(&health).status == 200).then_some(())
        });
        test(harness, api, &guest.name);
    });
}

/// That an answer is an error of this API: JSON with one sentence.
#[track_caller]
fn assert_error(answer: &Answer, status: u16, sentence: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(
        answer.header("content-type"),
        Some("application/json"),
        "{answer:?}"
    );
    let error = answer.json();
    let keys: Vec<_> = error.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["code", "error"], "{answer:?}");
    let code = match status {
        400 => "invalid_request",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not_found",
        405 => "method_not_allowed",
        408 => "timeout",
        409 => "conflict",
        410 => "gone",
        413 => "too_large",
        426 => "upgrade_required",
        429 => "too_many_requests",
        501 => "not_supported",
        502 => "unreachable",
        503 => "unavailable",
        504 => "agent_timeout",
        status => panic!("no code for {status}"),
    };
    assert_eq!(error["code"], code, "{answer:?}");
    let text = error["error"].as_str().expect("a text");
    assert!(text.contains(sentence), "{text:?} has no {sentence:?}");
}
