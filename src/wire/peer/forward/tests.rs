//! Forwarding to servers that answer, that do not, and that are hostile; each with the certificate of a node.
//! Out of scope: the daemon.

use std::net::SocketAddr;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::super::tests::pki::{Ca, Kind, name};
use super::super::tests::{Known, peers, server_config};
use super::*;
use crate::clock;
use crate::wire::connections::{Connections, Registration};
use crate::wire::limits::Limits as ServerLimits;
use crate::wire::origin::Origin;
use crate::wire::peer::PeerTls;
use crate::wire::user::User;

const OK: &str = "HTTP/1.1 200 OK\r\nslice-node: node-b\r\ncontent-length: 2\r\n\r\nok";

struct Bench {
    ca: Ca,
    peers: Peers,
    caller: Client,
    _registration: Registration,
}

fn bench() -> Bench {
    let ca = Ca::new("ours");
    let peers = peers(Known::new(ca.node_with(
        "node-a",
        Kind {
            serial: 7,
            ..Kind::default()
        },
        None,
    )));
    let user = User::of_address([192, 0, 2, 9].into());
    let connections = Arc::new(Connections::new(ServerLimits::default()));
    let registration = connections.admit(user, clock::monotonic()).unwrap();
    let caller = Client {
        origin: Origin::Remote([192, 0, 2, 9].into()),
        user,
        connection: Arc::clone(&registration.connection),
        peer: None,
    };
    Bench {
        ca,
        peers,
        caller,
        _registration: registration,
    }
}

/// A server that answers one connection with `answer`, after it has read the head of a request.
async fn server<F>(
    tls: Arc<PeerTls>,
    answer: impl FnOnce(TlsStream<TcpStream>, String) -> F + Send + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = TlsAcceptor::from(server_config(&tls));
        let Ok(mut stream) = acceptor.accept(stream).await else {
            return;
        };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        answer(stream, String::from_utf8(head).unwrap()).await;
    });
    address
}

/// A server that sends this text and closes.
async fn saying(tls: Arc<PeerTls>, text: &'static str) -> SocketAddr {
    server(tls, move |mut stream, _| async move {
        let _ = stream.write_all(text.as_bytes()).await;
        let _ = stream.shutdown().await;
    })
    .await
}

fn at(address: SocketAddr) -> Place {
    Place {
        node: name("node-b"),
        url: Some(format!("https://{address}")),
        version: "9.9".to_owned(),
    }
}

fn request(path: &str) -> Request {
    axum::http::Request::get(path).body(Body::empty()).unwrap()
}

impl Bench {
    async fn send(&self, place: Place, head: Option<Duration>) -> Result<Response, String> {
        let vm = name("b-1");
        let sending = Sending {
            peers: &self.peers,
            fleet: self.peers.fleet.as_deref().unwrap(),
            caller: &self.caller,
            place: &place,
            vm: Some(Uid::random()),
        };
        let limits = Limits {
            timeouts: Timeouts {
                head,
                idle: Some(Duration::from_millis(300)),
            },
            permit: None,
        };
        let sent = sending.send(limits, request("/v1/logs/b-1?lines=1")).await;
        sent.map_err(|failure| failure.sentence(Some(&vm), &place))
    }

    async fn status(&self, place: Place) -> u16 {
        let to = Destination {
            vm: name("b-1"),
            whereabouts: Whereabouts::At(place, Uid::random()),
            patience: Patience::Short,
        };
        let sent = self
            .peers
            .forward(&self.caller, to, false, request("/v1/logs/b-1"));
        sent.await.status().as_u16()
    }
}

#[tokio::test]
async fn a_request_and_its_response_are_forwarded_without_the_token_and_other_headers() {
    let bench = bench();
    let node = bench.ca.node("node-b");
    let (seen, head) = tokio::sync::oneshot::channel();
    let address = server(node, |mut stream, head| async move {
        let _ = seen.send(head);
        let answer = "HTTP/1.1 404 Not Found\r\nslice-node: node-b\r\ncontent-type: application/json\r\nx-log-offset: 7\r\nset-cookie: a=b\r\ncontent-length: 2\r\n\r\n{}";
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    })
    .await;
    let mut request = request("/v1/logs/b-1?lines=%31");
    let headers = request.headers_mut();
    for (name, value) in [
        ("authorization", "Bearer secret"),
        ("cookie", "secret"),
        ("slice-forwarded-user", "root"),
        ("slice-forwarded-vm", "secret"),
        ("x-slicer-unpacked-size", "9"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let uid = Uid::random();
    let to = Destination {
        vm: name("b-1"),
        whereabouts: Whereabouts::At(at(address), uid),
        patience: Patience::Short,
    };
    let response = bench.peers.forward(&bench.caller, to, false, request).await;
    assert_eq!(response.status(), 404);
    assert_eq!(response.headers()["x-log-offset"], "7");
    assert_eq!(response.headers()["content-type"], "application/json");
    assert!(!response.headers().contains_key("set-cookie"));
    assert!(!response.headers().contains_key(ANSWERED_BY));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&body[..], b"{}");
    let head = head.await.unwrap();
    assert!(
        head.starts_with("GET /v1/logs/b-1?lines=%31 HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("slice-forwarded-by: node-a\r\n"), "{head}");
    let vm = format!("slice-forwarded-vm: {uid}\r\n");
    assert!(head.contains(&vm), "{head}");
    assert!(
        head.contains("slice-forwarded-user: API token (192.0.2.9)\r\n"),
        "{head}"
    );
    assert!(head.contains("x-slicer-unpacked-size: 9\r\n"), "{head}");
    assert!(!head.contains("secret"), "{head}");
}

#[tokio::test]
async fn each_failure_has_a_sentence_and_a_status() {
    let bench = bench();
    let node = || bench.ca.node("node-b");
    let head = Some(Duration::from_millis(300));
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let silent = server(node(), |stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let other = bench.ca.node("node-c");
    let theirs = Ca::new("theirs").node("node-b");
    let expired = Kind {
        is_expired: true,
        ..Kind::default()
    };
    let expired = bench.ca.node_with("node-b", expired, None);
    let revoking = bench.ca.revoke(&[7]);
    let revoking = bench
        .ca
        .node_with("node-b", Kind::default(), Some(revoking));
    let without = Place {
        url: None,
        ..at(address)
    };
    let invalid = Place {
        url: Some("http://127.0.0.1:1".to_owned()),
        ..at(address)
    };
    for (place, expected) in [
        (without, "vm/b-1 is on node node-b, which has no API"),
        (invalid, "invalid URL \"http://127.0.0.1:1\""),
        (at(address), "which is unreachable at https://127.0.0.1"),
        (at(silent), "which has not answered within 0 s"),
        (at(saying(other, OK).await), "its certificate is that of node node-c"),
        (at(saying(theirs, OK).await), "not of the authority of the fleet"),
        (at(saying(expired, OK).await), "its certificate has expired"),
        (at(saying(revoking, OK).await), "refuses the certificate of this node: it is revoked"),
        (
            at(saying(node(), "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").await),
            "does not accept requests of other nodes (sliced 9.9)",
        ),
        (
            at(saying(node(), "HTTP/1.1 200 OK\r\nslice-node: node-c\r\n\r\n").await),
            "it is that of another node",
        ),
        (at(saying(node(), "HTTP/1.1 200 OK\r\nslice-no").await), "response is invalid"),
        (at(saying(node(), "").await), "response is invalid"),
        (at(saying(node(), "nonsense\r\n\r\n").await), "response is invalid"),
        (
            at(saying(
                node(),
                "HTTP/1.1 101 Switching Protocols\r\nslice-node: node-b\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            )
            .await),
            "has not upgraded the connection",
        ),
    ] {
        let error = bench.send(place, head).await.unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert_eq!(bench.status(at(address)).await, 502);
}

#[tokio::test]
async fn a_server_that_never_ends_its_head_is_given_up_at_the_limit_of_its_size() {
    let bench = bench();
    let endless = server(bench.ca.node("node-b"), |mut stream, _| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    })
    .await;
    let error = bench.send(at(endless), None).await.unwrap_err();
    assert!(error.contains("response is invalid"), "{error}");
}

#[tokio::test]
async fn a_body_that_is_cut_off_or_sends_nothing_is_an_error_and_not_an_end() {
    let bench = bench();
    const HEAD: &[u8] =
        b"HTTP/1.1 200 OK\r\nslice-node: node-b\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
    for cuts in [true, false] {
        let address = server(bench.ca.node("node-b"), move |mut stream, _| async move {
            stream.write_all(HEAD).await.unwrap();
            match cuts {
                true => drop(stream),
                false => std::future::pending().await,
            }
        })
        .await;
        let response = bench.send(at(address), None).await.unwrap();
        let body = response.into_body().collect().await;
        assert!(body.is_err(), "{cuts}");
    }
}

#[tokio::test]
async fn a_response_ends_when_the_certificate_of_its_node_is_revoked() {
    let bench = bench();
    let serial = Kind {
        serial: 9,
        ..Kind::default()
    };
    let node = bench.ca.node_with("node-b", serial, None);
    let address = server(node, |mut stream, _| async move {
        let head = "HTTP/1.1 200 OK\r\nslice-node: node-b\r\ncontent-length: 9\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        std::future::pending().await
    })
    .await;
    let response = bench.send(at(address), None).await.unwrap();
    let crl = bench.ca.revoke(&[9]);
    let revoking = bench.ca.node_with("node-a", Kind::default(), Some(crl));
    let fleet = bench.peers.fleet.as_ref().unwrap();
    let ended = fleet.connections().recheck(&revoking);
    assert_eq!(ended, [name("node-b")].into());
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn requests_to_agents_are_counted_as_on_this_node() {
    let bench = bench();
    let vm = name("b-1");
    let acquire = || bench.peers.agents.acquire(bench.caller.user, &vm);
    let held: Vec<_> = std::iter::from_fn(|| acquire().ok()).collect();
    assert_eq!(held.len(), 8);
    let to = Destination {
        vm: vm.clone(),
        whereabouts: Whereabouts::At(at(([127, 0, 0, 1], 1).into()), Uid::random()),
        patience: Patience::Stream,
    };
    let path = "/v1/vms/b-1/agent/health";
    let response = bench
        .peers
        .forward(&bench.caller, to, false, request(path))
        .await;
    assert_eq!(response.status(), 503);
    let pending = Destination {
        vm,
        whereabouts: Whereabouts::Pending(Some("no node has 4 vcpus".to_owned())),
        patience: Patience::Short,
    };
    let response = bench
        .peers
        .forward(&bench.caller, pending, false, request("/v1/vms/b-1"));
    assert_eq!(response.await.status(), 409);
}

#[tokio::test]
async fn a_command_whose_connection_ends_before_the_answer_may_have_been_executed_and_is_sent_once()
{
    let bench = bench();
    for (method, answer, expected) in [
        ("POST", "", true),
        ("DELETE", "", true),
        ("POST", "HTTP/1.1 200", true),
        ("GET", "", false),
        ("HEAD", "", false),
        // It has been answered.
        ("POST", OK, false),
    ] {
        let address = saying(bench.ca.node("node-b"), answer).await;
        let place = at(address);
        let sending = Sending {
            peers: &bench.peers,
            fleet: bench.peers.fleet.as_deref().unwrap(),
            caller: &bench.caller,
            place: &place,
            vm: Some(Uid::random()),
        };
        let limits = Limits {
            timeouts: Timeouts {
                head: Some(Duration::from_secs(5)),
                idle: None,
            },
            permit: None,
        };
        let request = axum::http::Request::builder()
            .method(method)
            .uri("/v1/vms/b-1/stop");
        let request = request.body(Body::empty()).unwrap();
        // The server accepts one connection: a second attempt would be another error.
        let error = match sending.send(limits, request).await {
            Ok(_) => String::new(),
            Err(failure) => failure.sentence(Some(&name("b-1")), &place),
        };
        let is_unknown = error.ends_with("; the command may have been executed");
        assert_eq!(is_unknown, expected, "{method} {answer}: {error}");
    }
}
