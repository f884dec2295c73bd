//! Packets of a guest, well-formed and not, and clients, for the connections of a guest.
//! Out of scope: the queues of a device (`tests/vmm/vsock.rs`).

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::mux::Mux;
use super::packet::{GUEST_CID, HOST_CID, Header, MAX_DATA, Op, SHUT_BOTH, SHUT_SEND, STREAM};
use crate::clock;

/// A guest of the test, with a listening port.
struct Guest {
    mux: Mux,
    now: Instant,
    dir: tempfile::TempDir,
}

const PORT: u32 = 516;
const BUFFER: u32 = 1 << 16;

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        Self {
            mux: Mux::new(listener).unwrap(),
            now: clock::monotonic(),
            dir,
        }
    }

    fn client(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("s")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream
    }

    /// The packets that the guest gets now, with their data.
    fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            // One client is accepted, and one event is handled, at a time.
            for _ in 0..3 {
                self.mux.on_events(self.now);
            }
            let mut buffer = [0; 4096];
            match self.mux.next_packet(&mut buffer, self.now) {
                Some(header) => found.push((header, buffer[..header.len as usize].to_vec())),
                None => return found,
            }
        }
    }

    fn ops(&mut self) -> Vec<Op> {
        self.packets().iter().map(|(header, _)| header.op).collect()
    }

    fn send(&mut self, host_port: u32, op: Op, flags: u32, data: &[u8]) {
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: PORT,
            dst_port: host_port,
            len: data.len() as u32,
            kind: STREAM,
            op,
            flags,
            buf_alloc: BUFFER,
            fwd_cnt: 0,
        };
        self.mux.receive(&header, data, self.now);
    }

    /// A connection that the guest has accepted, and its port of the host.
    fn connected(&mut self) -> (UnixStream, u32) {
        let mut client = self.client();
        client.write_all(b"CONNECT 516\n").unwrap();
        let [(request, _)] = self.packets()[..] else {
            panic!("one request");
        };
        assert_eq!((request.op, request.dst_port), (Op::Request, PORT));
        self.send(request.src_port, Op::Response, 0, b"");
        let mut reply = [0; 32];
        let count = client.read(&mut reply).unwrap();
        let expected = format!("OK {}\n", request.src_port);
        assert_eq!(&reply[..count], expected.as_bytes());
        (client, request.src_port)
    }
}

#[test]
fn only_a_valid_line_requests_a_connection() {
    for line in [
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT 4294967296\n",
        "connect 516\n",
        "GET / HTTP/1.1\n",
        "CONNECT 5160000000000000000000000000000000000000000",
        "\n",
    ] {
        let mut guest = Guest::new();
        let mut client = guest.client();
        client.write_all(line.as_bytes()).unwrap();
        assert_eq!(guest.ops(), [], "{line:?}");
        let closed = client.read(&mut [0]);
        assert!(matches!(closed, Ok(0) | Err(_)), "{line:?}");
        assert_eq!(guest.mux.connections(), 0, "{line:?}");
    }
}

#[test]
fn what_a_client_writes_behind_its_line_is_data_of_the_connection() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    client.write_all(b"CONN").unwrap();
    assert_eq!(guest.ops(), []);
    client.write_all(b"ECT 516\nearly").unwrap();
    let [(request, _)] = guest.packets()[..] else {
        panic!("one request");
    };
    guest.send(request.src_port, Op::Response, 0, b"");
    let packets = guest.packets();
    assert_eq!(packets[0].1, b"early");
}

#[test]
fn a_client_of_a_silent_guest_is_closed_after_a_timeout() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    client.write_all(b"CONNECT 516\n").unwrap();
    let _no_line = guest.client();
    assert_eq!(guest.ops(), [Op::Request]);
    assert_eq!(guest.mux.connections(), 2);
    // The timer of the deadline is real.
    std::thread::sleep(Duration::from_millis(1100));
    guest.now += Duration::from_secs(6);
    assert_eq!(guest.ops(), [Op::Reset]);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.mux.connections(), 0);
}

#[test]
fn data_are_sent_as_far_as_the_guest_has_space() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.connected();
    let data = vec![7; 100_000];
    let writer = std::thread::spawn(move || {
        client.write_all(&data).unwrap();
        client
    });
    let mut received = 0;
    for _ in 0..100 {
        let packets = guest.packets();
        received += packets.iter().map(|(_, data)| data.len()).sum::<usize>();
        if received >= BUFFER as usize {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(received, BUFFER as usize);
    // It was asked for credit, and gives some.
    let header = Header {
        fwd_cnt: BUFFER,
        ..Header::to_guest(PORT, port, Op::CreditUpdate)
    };
    let header = Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        buf_alloc: BUFFER,
        ..header
    };
    guest.mux.receive(&header, b"", guest.now);
    for _ in 0..100 {
        let packets = guest.packets();
        received += packets.iter().map(|(_, data)| data.len()).sum::<usize>();
        if received == 100_000 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(received, 100_000);
    writer.join().unwrap();
}

#[test]
fn a_guest_that_sends_more_than_fits_is_reset() {
    let mut guest = Guest::new();
    let (_client, port) = guest.connected();
    let data = vec![0; MAX_DATA];
    for _ in 0..100 {
        guest.send(port, Op::Data, 0, &data);
        if guest.mux.connections() == 0 {
            break;
        }
    }
    assert_eq!(guest.mux.connections(), 0);
    assert_eq!(guest.ops().last(), Some(&Op::Reset));
}

#[test]
fn each_direction_ends_alone() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.connected();
    guest.send(port, Op::Data, 0, b"bye");
    guest.send(port, Op::Shutdown, SHUT_SEND, b"");
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bye");
    client.write_all(b"still").unwrap();
    let packets = guest.packets();
    assert!(
        packets
            .iter()
            .any(|(header, data)| header.op == Op::Data && data == b"still")
    );
    drop(client);
    let packets = guest.packets();
    let end = packets.iter().find(|(header, _)| header.op == Op::Shutdown);
    assert_eq!(end.unwrap().0.flags, SHUT_BOTH);
    guest.send(port, Op::Reset, 0, b"");
    assert_eq!(guest.mux.connections(), 0);
}

#[test]
fn connections_of_the_guest_are_refused_within_bounds() {
    let mut guest = Guest::new();
    let mut read = 0;
    for port in 0..10_000 {
        if guest.mux.can_receive() {
            guest.send(port, Op::Request, 0, b"");
            read += 1;
        }
    }
    assert!(read < 1_000, "it is not read while its replies wait");
    let ops = guest.ops();
    assert_eq!(ops.len(), read);
    assert!(ops.iter().all(|op| *op == Op::Reset));
    assert_eq!(guest.mux.connections(), 0);
    // A reset is not answered.
    guest.send(9, Op::Reset, 0, b"");
    assert_eq!(guest.ops(), []);
}

fn header() -> impl Strategy<Value = Header> {
    let known = prop_oneof![Just(1_u16), 0..12_u16];
    (
        any::<[u8; 44]>(),
        known,
        any::<bool>(),
        0..3_u32,
        any::<u32>(),
    )
        .prop_map(|(bytes, op, known_addresses, port, flags)| {
            let mut bytes = bytes;
            bytes[30..32].copy_from_slice(&op.to_le_bytes());
            let mut header = Header::decode(&bytes);
            if known_addresses {
                (header.src_cid, header.dst_cid) = (GUEST_CID, HOST_CID);
                (header.src_port, header.dst_port) = (PORT, (1 << 30) + port);
                header.kind = STREAM;
                header.flags = flags % 4;
            }
            header
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest sends, in whatever order: nothing panics, and what it costs is bounded.
    #[test]
    fn any_packets_of_a_guest_are_survived(
        headers in prop::collection::vec((header(), 0..2_000_usize), 0..200),
        clients in 0..4_usize,
    ) {
        let mut guest = Guest::new();
        let mut streams: Vec<UnixStream> = (0..clients).map(|_| guest.client()).collect();
        for stream in &mut streams {
            stream.write_all(b"CONNECT 516\n").unwrap();
        }
        for (at, (header, length)) in headers.into_iter().enumerate() {
            let header = Header { len: length as u32, ..header };
            if guest.mux.can_receive() {
                guest.mux.receive(&header, &vec![0; length], guest.now);
            }
            if at % 7 == 0 {
                for (header, data) in guest.packets() {
                    prop_assert_eq!(header.len as usize, data.len());
                }
            }
            if at % 50 == 49 {
                streams.pop();
            }
        }
        let _ = guest.packets();
        prop_assert!(guest.mux.connections() <= clients);
    }
}
