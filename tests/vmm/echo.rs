//! The vsock device of every VMM with the tiny guest: connections of the host are echoed, those of the guest are refused.
//! Out of scope: a Linux guest behind the device of QEMU (`vsock`); single packets (`src/vsock`).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use slicectl::api::vm::Hypervisor;
use slicectl::reconcile::vmm::Desired;
use slicectl::vmm::VSOCK;

use crate::fixture::eventually;
use crate::real::{As, console, place, ways};

const PATIENCE: Duration = Duration::from_secs(20);
/// As in `tests/guest/vsock.c`.
const ECHO: u32 = 7000;
const HOST_PORT: u32 = 516;

/// A connection to this port of the guest; `None`: it is closed without a reply.
fn connect(dir: &Path, port: u32) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(dir.join(VSOCK)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(stream, "CONNECT {port}").unwrap();
    let mut reply = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap_or(0) > 0 {
        match byte {
            [b'\n'] => {
                assert!(reply.starts_with(b"OK "), "{reply:?}");
                return Some(stream);
            }
            [byte] => reply.push(byte),
        }
    }
    assert!(reply.is_empty(), "{reply:?}");
    None
}

fn assert_prints(desired: &Desired, text: &str) {
    let printed = || console(desired).contains(text);
    assert!(eventually(PATIENCE, printed), "{}", console(desired));
}

async fn echoes(hypervisor: Hypervisor, who: As) {
    let place = place(hypervisor, who).await;
    let desired = place.desired(|spec, _| spec.lifecycle.cmdline = Some("tiny=dial".to_owned()));
    place.boot(&desired).await;
    let dir = &desired.dir;
    assert_prints(&desired, "tiny: the host refuses a connection");
    // A device that connects to what listens there could do so. Nothing of ours ever does.
    assert!(!dir.join(format!("{VSOCK}_{HOST_PORT}")).exists());

    // More than the window of either side, in pieces that both sides can take.
    let mut first = connect(dir, ECHO).unwrap();
    for turn in 0..64_u8 {
        let sent: Vec<u8> = (0..4096_u32).map(|at| (at % 251) as u8 ^ turn).collect();
        first.write_all(&sent).unwrap();
        let mut received = vec![0; sent.len()];
        first.read_exact(&mut received).unwrap();
        assert!(received == sent, "{turn}");
    }
    // Each connection is its own, and a closed one makes room for another.
    for round in 0..12 {
        let mut other = connect(dir, ECHO).unwrap();
        for (stream, text) in [(&mut other, b"other"), (&mut first, b"first")] {
            stream.write_all(text).unwrap();
            let mut received = [0; 5];
            stream.read_exact(&mut received).unwrap();
            assert_eq!(&received, text, "{round}");
        }
    }
    assert!(connect(dir, 9).is_none(), "nobody listens");
    drop(first);
    place.clear(desired).await;
}

#[tokio::test]
async fn a_guest_of_firecracker_echoes_through_its_vsock_device() {
    for who in ways(Hypervisor::Firecracker) {
        echoes(Hypervisor::Firecracker, *who).await;
    }
}

#[tokio::test]
async fn a_guest_of_cloud_hypervisor_echoes_through_its_vsock_device() {
    for who in ways(Hypervisor::CloudHypervisor) {
        echoes(Hypervisor::CloudHypervisor, *who).await;
    }
}

#[tokio::test]
async fn a_guest_of_qemu_echoes_through_its_vsock_device() {
    for who in ways(Hypervisor::Qemu) {
        echoes(Hypervisor::Qemu, *who).await;
    }
}
