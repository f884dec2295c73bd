//! The APIs of Firecracker and Cloud Hypervisor, request by request: what a double answers a real one answers, too.
//! Out of scope: what we ask of them (`real`).
//!
//! Real programs are named as for `real`. They need KVM.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use slicectl::api::vm::Hypervisor;

use crate::fixture::eventually;
use test_support::vmm::{double_of, program, tiny_guest};

/// A VMM with nothing but its API socket, in a network namespace of its own with a `tap0`.
struct Idle {
    vmm: Child,
    socket: PathBuf,
    dir: tempfile::TempDir,
}

impl Idle {
    fn start(program: &Path, dir: tempfile::TempDir, words: &[&str]) -> Self {
        let socket = dir.path().join("api.sock");
        let inner = "ip link set lo up && ip tuntap add dev tap0 mode tap && ip link set tap0 up && mount -t sysfs none /sys && exec \"$0\" \"$@\"";
        let vmm = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--propagation",
                "private",
                "--",
                "sh",
                "-c",
                inner,
            ])
            .arg(program)
            .args(words)
            .arg(socket.to_str().unwrap())
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let idle = Self { vmm, socket, dir };
        let there = || UnixStream::connect(&idle.socket).is_ok();
        assert!(
            eventually(Duration::from_secs(20), there),
            "{program:?} does not listen"
        );
        idle
    }

    /// Status and body of one request.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        let length = match body {
            "" => String::new(),
            body => format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            ),
        };
        stream
            .write_all(format!("{head}{length}\r\n{body}").as_bytes())
            .unwrap();
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&answer).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case("content-length")
                        .then(|| value.trim().parse::<usize>())
                });
                if body.len() >= length.map_or(0, Result::unwrap) {
                    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                    return (status, body.to_owned());
                }
            }
            match stream.read(&mut buffer) {
                Ok(0) => panic!("{method} {path}: hung up after {text:?}"),
                Ok(read) => answer.extend(&buffer[..read]),
                Err(error) => panic!("{method} {path}: {error} after {text:?}"),
            }
        }
    }

    /// `METHOD PATH BODY => STATUS WORDS`, line by line: a body without blanks or none; words that the answer's body holds, `?`
    /// for any, none for no body.
    fn report(&self, story: &[&str]) {
        for line in story {
            let (request, expected) = line.split_once(" => ").expect(line);
            let mut request = request.splitn(3, ' ');
            let mut word = || request.next().unwrap_or_default();
            let (status, output) = self.ask(word(), word(), word());
            let (desired, words) = expected.split_once(' ').unwrap_or((expected, ""));
            assert_eq!(status.to_string(), desired, "{line}: {output}");
            match words {
                "" => assert_eq!(output, "", "{line}"),
                "?" => {}
                words => assert!(output.contains(words), "{line}: {output}"),
            }
        }
    }

    /// Ended by itself, with this status.
    fn ends_with(mut self, status: i32) {
        let vmm = std::cell::RefCell::new(&mut self.vmm);
        let ended = || vmm.borrow_mut().try_wait().unwrap().is_some();
        assert!(eventually(Duration::from_secs(10), ended), "it goes on");
        assert_eq!(self.vmm.wait().unwrap().code(), Some(status));
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // What has ended by itself cannot be killed.
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

/// A line of a story whose body is made up.
fn reported(request: &str, body: &str, expected: &str) -> String {
    format!("{request} {body} => {expected}")
}

fn firecracker(named: Option<&str>) -> Idle {
    let dir = tempfile::tempdir().unwrap();
    let program = match named {
        Some(name) => double_of(name, dir.path()),
        None => program(Hypervisor::Firecracker, dir.path()).unwrap(),
    };
    Idle::start(&program, dir, &["--id", "one", "--api-sock"])
}

const CARD: &str = r#"{"iface_id":"eth0","host_dev_name":"tap0","guest_mac":"02:00:00:00:00:02"}"#;
const START: &str = r#"{"action_type":"InstanceStart"}"#;

fn boot_source() -> String {
    let kernel = tiny_guest();
    format!(
        r#"{{"kernel_image_path":{kernel:?},"boot_args":"reboot=k ip=172.16.0.2::172.16.0.1:255.255.255.0:one:eth0:off"}}"#
    )
}

/// From its beginning to its end, with everything that is wrong in between.
fn the_story_of_firecracker(vmm: Idle) {
    std::fs::write(vmm.dir.path().join("no-kernel"), "nothing").unwrap();
    let nothing = format!(
        r#"{{"kernel_image_path":"{}/no-kernel"}}"#,
        vmm.dir.path().display()
    );
    std::fs::write(vmm.dir.path().join("disk.img"), vec![0; 1 << 20]).unwrap();
    let drive = |id: &str, root: bool| {
        format!(
            r#"{{"drive_id":"{id}","path_on_host":"{}/disk.img","is_root_device":{root},"is_read_only":true}}"#,
            vmm.dir.path().display()
        )
    };
    vmm.report(&[
        "GET / => 200 Not started",
        "GET /version => 200 firecracker_version",
        r#"GET /machine-config => 200 "mem_size_mib":128"#,
        "GET /nothing => 400 fault_message",
        "GET / {} => 400 fault_message",
        "PUT /machine-config => 400 fault_message",
        r#"PUT /machine-config {"vcpu_count":1} => 400 missing field"#,
        r#"PUT /machine-config {"vcpu_count":0,"mem_size_mib":64} => 400 vCPU"#,
        r#"PUT /machine-config {"vcpu_count":1,"mem_size_mib":64,"x":1} => 400 unknown field"#,
        r#"PUT /machine-config {"vcpu_count":1,"mem_size_mib":64} => 204"#,
        r#"GET /machine-config => 200 "mem_size_mib":64"#,
        r#"PATCH /machine-config {"mem_size_mib":32,"track_dirty_pages":false} => 204"#,
        &reported("PUT /actions", START, "400 without kernel configuration"),
        r#"PUT /actions {"action_type":"Dance"} => 400 unknown variant"#,
        r#"PUT /actions {"action_type":"SendCtrlAltDel"} => 400 before starting"#,
        r#"PATCH /vm {"state":"Paused"} => 400 before starting"#,
        r#"PUT /boot-source {"kernel_image_path":"/not/there"} => 400 kernel"#,
        r#"PUT /boot-source {"kernel_image_path":"/etc/hostname","kernel":1} => 400 unknown field"#,
        &reported("PUT /drives/a", &drive("b", false), "400 does not match"),
        &reported("PUT /drives/a-b", &drive("a-b", false), "400 alphanumeric"),
        &reported("PUT /drives/a", &drive("a", true), "204"),
        &reported("PUT /drives/b", &drive("b", true), "400 root"),
        r#"PUT /network-interfaces/eth0 {"iface_id":"eth0","host_dev_name":"tap0","mac":"x"} => 400 unknown field"#,
        r#"PUT /network-interfaces/eth0 {"iface_id":"eth0","host_dev_name":"tap0","guest_mac":"x"} => 400 fault_message"#,
        &reported("PUT /network-interfaces/eth0", CARD, "204"),
        r#"PUT /vsock {"guest_cid":3,"uds_path":"v.sock"} => 204"#,
        "PUT /entropy {} => 204",
        r#"PUT /entropy {"x":1} => 400 unknown field"#,
        &reported("PUT /boot-source", &nothing, "204"),
        &reported("PUT /actions", START, "400 ernel"),
    ]);
    assert!(
        vmm.dir.path().join("v.sock").exists(),
        "bound when it was told"
    );
}

#[test]
fn firecracker_answers_so_before_it_is_started() {
    the_story_of_firecracker(firecracker(None));
}

#[test]
fn firecracker_answers_so_once_it_is_started() {
    let vmm = firecracker(None);
    let source = boot_source();
    vmm.report(&[
        r#"PUT /machine-config {"vcpu_count":1,"mem_size_mib":64} => 204"#,
        &reported("PUT /boot-source", &source, "204"),
        &reported("PUT /network-interfaces/eth0", CARD, "204"),
        &reported("PUT /actions", START, "204"),
        "GET / => 200 Running",
        &reported("PUT /actions", START, "400 after starting"),
        &reported("PUT /boot-source", &source, "400 after starting"),
        r#"PUT /machine-config {"vcpu_count":1,"mem_size_mib":64} => 400 after starting"#,
        r#"PATCH /vm {"state":"Running"} => 400 unknown variant"#,
        r#"PATCH /vm {"state":"Paused"} => 204"#,
        r#"PATCH /vm {"state":"Paused"} => 204"#,
        "GET / => 200 Paused",
        r#"PUT /actions {"action_type":"SendCtrlAltDel"} => 204"#,
        "GET / => 200 Paused",
        r#"PATCH /vm {"state":"Resumed"} => 204"#,
    ]);
    vmm.ends_with(0);
}

#[test]
fn an_old_firecracker_does_not_know_the_arguments_of_a_new_one() {
    let mtu = r#"{"iface_id":"eth0","host_dev_name":"tap0","mtu":1400}"#;
    let huge = r#"{"vcpu_count":1,"mem_size_mib":64,"huge_pages":"Transparent"}"#;
    let old = firecracker(Some("firecracker-1.10"));
    old.report(&[
        "GET /version => 200 1.10",
        &reported("PUT /network-interfaces/eth0", mtu, "400 unknown field"),
        "PUT /serial {} => 400 fault_message",
        &reported("PUT /machine-config", huge, "400 unknown variant"),
        r#"PATCH /machine-config {"mem_size_mib":32} => 400 missing field"#,
    ]);
    drop(old);
    let new = firecracker(Some("firecracker-1.17"));
    new.report(&[
        &reported("PUT /network-interfaces/eth0", mtu, "204"),
        "PUT /serial {} => 204",
        &reported("PUT /machine-config", huge, "204"),
        r#"PATCH /machine-config {"mem_size_mib":32} => 204"#,
    ]);
}

fn cloud_hypervisor(named: Option<&str>) -> Idle {
    let dir = tempfile::tempdir().unwrap();
    let program = match named {
        Some(name) => double_of(name, dir.path()),
        None => program(Hypervisor::CloudHypervisor, dir.path()).unwrap(),
    };
    Idle::start(&program, dir, &["--api-socket"])
}

#[test]
fn cloud_hypervisor_answers_so() {
    let vmm = cloud_hypervisor(None);
    let kernel = tiny_guest();
    let config = format!(
        r#"{{"cpus":{{"boot_vcpus":1,"max_vcpus":1}},"memory":{{"size":67108864}},"payload":{{"kernel":{kernel:?},"cmdline":"ip=172.16.0.2::172.16.0.1:255.255.255.0:one:eth0:off"}},"net":[{{"tap":"tap0","mac":"02:00:00:00:00:02","num_queues":2,"queue_size":256}}],"serial":{{"mode":"Null"}},"console":{{"mode":"Off"}}}}"#
    );
    vmm.report(&[
        "GET /api/v1/vmm.ping => 200 build_version",
        "GET /api/v1/nothing => 404 ?",
        "GET /api/v1/vm.info => 404 not created",
        "PUT /api/v1/vm.boot => 404 config is missing",
        "PUT /api/v1/vm.pause {} => 400 ?",
        "PUT /api/v1/vm.create { => 400 ?",
        &reported("PUT /api/v1/vm.create", &config, "204"),
        &reported("PUT /api/v1/vm.create", &config, "500 already created"),
        r#"GET /api/v1/vm.info => 200 "state":"Created""#,
        "PUT /api/v1/vm.pause => 500 not running",
        "PUT /api/v1/vm.boot => 204",
        r#"GET /api/v1/vm.info => 200 "state":"Running""#,
        "PUT /api/v1/vm.boot => 500 already created",
        "PUT /api/v1/vm.pause => 204",
        r#"GET /api/v1/vm.info => 200 "state":"Paused""#,
        "PUT /api/v1/vm.pause => 500 ?",
        "PUT /api/v1/vm.resume => 204",
        "PUT /api/v1/vm.resume => 500 ?",
        "PUT /api/v1/vm.reboot => 204",
        "PUT /api/v1/vm.shutdown => 204",
        r#"GET /api/v1/vm.info => 200 "state":"Created""#,
        "PUT /api/v1/vm.boot => 204",
        "PUT /api/v1/vm.delete => 204",
        "PUT /api/v1/vm.delete => 204",
        "PUT /api/v1/vmm.shutdown => 200",
    ]);
    vmm.ends_with(0);
}

#[test]
fn an_old_cloud_hypervisor_answers_500_as_plain_text() {
    let vmm = cloud_hypervisor(Some("cloud-hypervisor-46"));
    let (status, output) = vmm.ask("GET", "/api/v1/vm.info", "");
    assert_eq!(status, 500);
    assert!(!output.starts_with('['), "{output}");
}
