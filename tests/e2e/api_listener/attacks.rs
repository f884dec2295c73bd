//! Whatever clients of the listener do, the repair of a VM takes no longer than without them, and the daemon's memory is bounded.
//! Out of scope: how each of them is refused (`hostile`).

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use test_support::harness::{Harness, slots, with_daemon};
use test_support::kernel::run;
use test_support::turns;

use super::hostile::memory;
use super::{PORT, bearer, configure, connect, exchange, listens, request, text};

/// As much as the daemon may grow because of clients: the limits of bodies and of responses are below it.
const GROWTH: u64 = 160 << 20;

/// What clients do until they are stopped.
struct Attack<'a> {
    harness: &'a Harness,
    token: &'a str,
    stop: &'a AtomicBool,
    /// Set when they have begun.
    ready: &'a AtomicBool,
}

impl Attack<'_> {
    fn begins(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Writes the same to all connections again and again; one that is closed is replaced.
    fn feed(&self, count: usize, head: &str, part: &[u8], pause: Duration) {
        let open = || {
            TcpStream::connect(("127.0.0.1", PORT)).and_then(|stream| {
                stream.set_write_timeout(Some(Duration::from_millis(20)))?;
                (&stream).write_all(head.as_bytes()).map(|()| stream)
            })
        };
        let mut streams: Vec<Option<TcpStream>> = (0..count).map(|_| open().ok()).collect();
        while self.goes_on() {
            for slot in &mut streams {
                let is_open = slot.as_mut().is_some_and(|stream| {
                    match stream.write_all(part) {
                        Ok(()) => true,
                        // It is not read: that is the purpose.
                        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
                    }
                });
                if !is_open {
                    *slot = open().ok();
                }
            }
            self.begins();
            std::thread::sleep(pause);
        }
    }

    fn head(&self, line: &str, more: &str) -> String {
        let token = self.token;
        format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\n{more}\r\n")
    }
}

type Run = fn(&Attack<'_>);

const CREATE: &str = "POST /hostgroup/sandbox/nodes";
const JSON: &str = "content-type: application/json\r\n";

const ATTACKS: [(&str, Run); 11] = [
    ("nothing", |attack| {
        attack.begins();
    }),
    ("bodies of creates that arrive byte by byte", |attack| {
        let head = attack.head(CREATE, &format!("{JSON}content-length: 60000\r\n"));
        attack.feed(60, &head, b" ", Duration::from_millis(100));
    }),
    ("chunked bodies without an end", |attack| {
        let head = attack.head(CREATE, &format!("{JSON}transfer-encoding: chunked\r\n"));
        let chunk = [b"4000\r\n", [b' '; 0x4000].as_slice(), b"\r\n"].concat();
        attack.feed(20, &head, &chunk, Duration::from_millis(5));
    }),
    ("heads without an end", |attack| {
        let line = [b"x-a: ", [b'a'; 4000].as_slice(), b"\r\n"].concat();
        attack.feed(
            60,
            "GET /nodes HTTP/1.1\r\nhost: x\r\n",
            &line,
            Duration::from_millis(5),
        );
    }),
    ("pipelined lists that nobody reads", |attack| {
        let list = attack.head("GET /v1/objects/vm", "");
        attack.feed(
            60,
            &list,
            list.repeat(50).as_bytes(),
            Duration::from_millis(20),
        );
    }),
    ("watches that nobody reads, while tags change", |attack| {
        let watch = attack.head("GET /v1/watch?events=true", "");
        let streams: Vec<TcpStream> = (0..60).map(|_| connect(PORT)).collect();
        for mut stream in &streams {
            stream.write_all(watch.as_bytes()).expect("sent");
        }
        let mut turn = 0;
        while attack.goes_on() {
            turn += 1;
            let body = format!(
                "{{\"replace\": [\"turn={turn}\", \"long={}\"]}}",
                "x".repeat(60)
            );
            let head = format!(
                "{JSON}connection: close\r\ncontent-length: {}\r\n",
                body.len()
            );
            let change = attack.head("PATCH /vm/extra/tags", &head) + &body;
            let (status, answer) = exchange(connect(PORT), &change);
            assert_eq!(status, 200, "{answer}");
            attack.begins();
        }
    }),
    ("thousands of connections without a byte", |attack| {
        let address = ([127, 0, 0, 1], PORT).into();
        let mut streams = Vec::new();
        while attack.goes_on() || streams.len() < 1000 {
            // What does not fit into the queue of the socket is lost, and would be sent again after a second.
            let opened = TcpStream::connect_timeout(&address, Duration::from_millis(50));
            streams.extend(opened.ok().filter(|_| streams.len() < 10_000));
            if streams.len() >= 500 {
                attack.begins();
            }
        }
        eprintln!("{} connections", streams.len());
    }),
    ("requests without a token", |attack| {
        while attack.goes_on() {
            let (status, answer) = request(PORT, "GET /nodes", "Bearer guess");
            assert!([0, 401, 429].contains(&status), "{answer}");
            attack.begins();
        }
    }),
    ("requests that are invalid", |attack| {
        while attack.goes_on() {
            for line in [
                "GET /nowhere",
                "POST /nodes",
                "DELETE /vm/%00/tags",
                "GET /nodes?tag=a&tag_prefix=b",
            ] {
                let (status, answer) = request(PORT, line, attack.token);
                assert!((400..500).contains(&status), "{line}: {answer}");
            }
            attack.begins();
        }
    }),
    ("creates that are refused", |attack| {
        while attack.goes_on() {
            let body = format!("{{\"userdata\": \"{}\"}}", "x".repeat(60_000));
            let head = format!(
                "{JSON}connection: close\r\ncontent-length: {}\r\n",
                body.len()
            );
            let (status, answer) = exchange(connect(PORT), &(attack.head(CREATE, &head) + &body));
            assert!([400, 409].contains(&status), "{answer}");
            attack.begins();
        }
    }),
    ("a token that is rotated during requests", |attack| {
        let path = attack.harness.state().join("api/token");
        let first = fs::read_to_string(&path).expect("a token");
        let mut turn = 0;
        while attack.goes_on() {
            let new = path.with_extension("new");
            turn += 1;
            fs::write(&new, format!("{turn:032}")).expect("written");
            run(&format!("chmod 600 {}", new.display()));
            fs::rename(&new, &path).expect("renamed");
            let (status, answer) = request(PORT, "GET /nodes", &format!("Bearer {turn:032}"));
            assert!([0, 200, 401, 429].contains(&status), "{answer}");
            attack.begins();
        }
        fs::write(&path, first).expect("written");
    }),
];

/// How long the daemon takes to create the link of a VM again: the shortest of three times is that of the daemon, and not of the other
/// programs of this machine. Each VM is repaired once: repairs in a quick sequence are delayed, since another program may revert them.
fn repair(harness: &Harness, first: usize) -> Duration {
    let attempts = (first..first + 3).map(|number| {
        let place = harness.place(&format!("sandbox-{number}"));
        let index = format!("/sys/class/net/{}/ifindex", place.link);
        let before = fs::read_to_string(&index).expect("a link");
        let begin = Instant::now();
        run(&format!("ip link del {}", place.link));
        harness.until("another link", || {
            let now = fs::read_to_string(&index).ok()?;
            (now != before).then_some(())
        });
        begin.elapsed()
    });
    attempts.min().expect("three")
}

#[test]
fn no_client_holds_up_a_repair_or_takes_the_memory_of_the_daemon() {
    let _alone = turns::alone();
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        ..files
    };
    setrlimit(Resource::Nofile, most).expect("the hard limit");
    with_daemon(|harness| {
        harness.apply(&slots(60, ""));
        harness.ctl("vm add sandbox --name extra --wait");
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        let token = bearer(&harness);
        let before = memory(&harness);
        let mut without = None;
        for (turn, (name, attack)) in ATTACKS.into_iter().enumerate() {
            let (stop, ready) = (AtomicBool::new(false), AtomicBool::new(false));
            let took = std::thread::scope(|scope| {
                let _stop = StopAtEnd(&stop);
                let clients = Attack {
                    harness: &harness,
                    token: &token,
                    stop: &stop,
                    ready: &ready,
                };
                let running = scope.spawn(move || attack(&clients));
                harness.until(name, || {
                    assert!(!running.is_finished() || name == "nothing", "{name} ended");
                    ready.load(Ordering::Relaxed).then_some(())
                });
                repair(&harness, 3 * turn + 1)
            });
            let growth = memory(&harness).saturating_sub(before);
            eprintln!("{name}: repaired after {took:?}, {} KB more", growth >> 10);
            let without = *without.get_or_insert(took);
            let bound = without * 3 + Duration::from_secs(1);
            assert!(took < bound, "{name}: {took:?}, without {without:?}");
            assert!(growth < GROWTH, "{name}: {growth}");
            harness.until("the API serves others", || {
                (request(PORT, "GET /v1/version", &token).0 == 200).then_some(())
            });
        }
    });
}

/// Ends the clients, also if the test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_request_with_two_lengths_is_one_request_at_most() {
    with_daemon(|harness| {
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        let token = bearer(&harness);
        let hidden = text("GET /v1/version", &token);
        let post = |lengths: &str, body: &str| {
            format!(
                "POST /healthz HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\n{lengths}\r\n{body}{hidden}"
            )
        };
        let old = format!("GET /healthz HTTP/1.0\r\nauthorization: {token}\r\n\r\n{hidden}");
        for (what, sent) in [
            (
                "both",
                post(
                    "content-length: 5\r\ntransfer-encoding: chunked\r\n",
                    "0\r\n\r\n",
                ),
            ),
            (
                "both, the other way",
                post(
                    "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
                    "0\r\n\r\n",
                ),
            ),
            (
                "two lengths",
                post("content-length: 0\r\ncontent-length: 5\r\n", "12345"),
            ),
            (
                "a list of lengths",
                post("content-length: 0, 5\r\n", "12345"),
            ),
            ("a signed length", post("content-length: +0\r\n", "")),
            (
                "another coding",
                post("transfer-encoding: xchunked\r\n", "0\r\n\r\n"),
            ),
            (
                "chunked is not the last",
                post("transfer-encoding: chunked, identity\r\n", "0\r\n\r\n"),
            ),
            (
                "a space before the colon",
                post("content-length : 0\r\n", ""),
            ),
            (
                "a folded line",
                post("transfer-encoding:\r\n chunked\r\n", "0\r\n\r\n"),
            ),
            (
                "an invalid size of a chunk",
                post("transfer-encoding: chunked\r\n", "0x0\r\n\r\n"),
            ),
            (
                "a size of a chunk that overflows",
                post(
                    "transfer-encoding: chunked\r\n",
                    "10000000000000000\r\n\r\n",
                ),
            ),
            (
                "HTTP/1.0 with chunks",
                post("transfer-encoding: chunked\r\n", "0\r\n\r\n")
                    .replace("1.1\r\nhost: x", "1.0"),
            ),
            ("HTTP/1.0", old),
        ] {
            let mut stream = connect(PORT);
            stream.write_all(sent.as_bytes()).expect("sent");
            // It ends without another request: the connection is closed after one answer.
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.matches("HTTP/1.").count() <= 1, "{what}: {answer}");
            assert!(!answer.contains("\"pid\""), "{what}: {answer}");
        }
        // One after the other is what they are.
        let next = hidden.replace("connection: close\r\n", "") + &hidden;
        let (_, answer) = exchange(connect(PORT), &next);
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    });
}
