//! What an answer of an endpoint means: which errors are repeated elsewhere, and which are the result.
//! Out of scope: sending ([`super::client`]).
//!
//! # Why
//! A write may be repeated only if etcd certainly did not apply it. Only errors of which the code of etcd shows this are
//! [`Failure::NotApplied`].

use super::error::{Cause, Code, Error};
use super::message::{ErrorResponse, Request, StreamErrorResponse};
use super::url::Url;

/// The longest message of etcd in an error, in characters.
const LONGEST_MESSAGE: usize = 300;

/// Why an attempt has failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The request was certainly not applied; another endpoint may accept it.
    NotApplied(Cause),
    /// The request may have been applied; another endpoint may answer it.
    Unknown(Cause),
    /// The token has expired or is of another member. The error if a new one is not accepted either.
    InvalidToken(Error),
    /// Every endpoint would answer this.
    Final(Error),
}

/// The error in the body of an answer without success.
pub(super) fn refused(endpoint: &Url, request: Request, status: u16, body: &[u8]) -> Failure {
    match error_of(body) {
        Some((code, message)) => failure(endpoint, request, code, &message),
        None => {
            let text = printable(String::from_utf8_lossy(body).trim());
            let cause = Cause::Status { status, text };
            // Not in JSON: of a certificate with a common name, of which etcd processes no request.
            match status == 400 && cause.to_string().contains("CommonName") {
                true => Failure::Final(Error::Unauthenticated {
                    endpoint: endpoint.clone(),
                    cause,
                }),
                // A proxy, or a program that is not etcd.
                false => Failure::Unknown(cause),
            }
        }
    }
}

/// The error that a stream contains after it has begun with success.
pub(super) fn of_stream(endpoint: &Url, request: Request, body: &[u8]) -> Option<Failure> {
    let (code, message) = error_of(body)?;
    Some(failure(endpoint, request, code, &message))
}

/// The error in a body, of a request or of a stream.
fn error_of(body: &[u8]) -> Option<(Code, String)> {
    let plain = serde_json::from_slice::<ErrorResponse>(body);
    let plain = plain.map(|error| (error.code, error.message));
    let nested = || {
        let response = serde_json::from_slice::<StreamErrorResponse>(body)?;
        Ok::<_, serde_json::Error>((response.error.code, response.error.message))
    };
    let is_error = |found: &(u32, String)| found.0 != 0;
    let found = plain.ok().filter(is_error);
    let (code, message) = found.or_else(|| nested().ok().filter(is_error))?;
    Some((Code::of(code), message))
}

/// The meaning of an error of etcd.
pub(super) fn failure(endpoint: &Url, request: Request, code: Code, message: &str) -> Failure {
    let endpoint = endpoint.clone();
    let has = |text: &str| message.contains(text);
    let cause = Cause::Etcd {
        code,
        message: printable(message),
    };
    match code {
        Code::Unauthenticated => Failure::InvalidToken(Error::Unauthenticated { endpoint, cause }),
        // The users have changed while the request was processed, which is refused for that reason.
        _ if has("revision of auth store is old") || has("revision in header is old") => {
            Failure::InvalidToken(Error::Unauthenticated { endpoint, cause })
        }
        Code::PermissionDenied => Failure::Final(Error::Denied { endpoint, request }),
        _ if has("user name is empty")
            || has("authentication failed")
            || has("authentication is not enabled") =>
        {
            Failure::Final(Error::Unauthenticated { endpoint, cause })
        }
        Code::OutOfRange if has("compacted") => {
            Failure::Final(Error::Compacted { endpoint, at: None })
        }
        Code::OutOfRange if has("future revision") => {
            Failure::Final(Error::FutureRevision { endpoint })
        }
        Code::NotFound if has("lease") => Failure::Final(Error::LeaseNotFound {
            endpoint,
            lease: None,
        }),
        // From the gateway to its member: nothing was processed.
        Code::ResourceExhausted if has("received message larger than max") => {
            Failure::Final(Error::Invalid {
                endpoint,
                request,
                cause,
            })
        }
        // Checked before the request is proposed; dropped by the member that proposes it, when it knows no leader.
        _ if has("too many requests") || has("raft proposal dropped") => Failure::NotApplied(cause),
        // Not leader: of a lease renewal, during an election.
        _ if has("not leader") => Failure::Unknown(cause),
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::OutOfRange
        | Code::Unimplemented => Failure::Final(Error::Invalid {
            endpoint,
            request,
            cause,
        }),
        // Exhausted: etcd applies the write that exceeds its quota, and then answers with this error.
        Code::ResourceExhausted
        | Code::Canceled
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Unavailable
        | Code::Unknown => Failure::Unknown(cause),
    }
}

/// A text of the server, bounded and without control characters.
fn printable(text: &str) -> String {
    let start: String = text.chars().take(LONGEST_MESSAGE).collect();
    start.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Url {
        "https://etcd-1:2379".parse().unwrap()
    }

    /// The name of what an error of etcd becomes, in each form that the gateways have.
    fn class(code: u32, message: &str) -> String {
        let forms = [
            serde_json::json!({"error": message, "message": message, "code": code}),
            serde_json::json!({"error": {"grpc_code": code, "http_code": 500, "message": message, "http_status": "x"}}),
            serde_json::json!({"error": {"code": code, "message": message, "details": []}}),
        ];
        let classes = forms.map(|body| class_of(&body));
        assert!(classes.iter().all(|it| *it == classes[0]), "{classes:?}");
        classes[0].clone()
    }

    fn class_of(body: &serde_json::Value) -> String {
        let failure = refused(&endpoint(), Request::Put, 500, body.to_string().as_bytes());
        let text = format!("{failure:?}");
        let is_name = |c: char| c.is_alphanumeric();
        let names: Vec<&str> = text.split(|c| !is_name(c)).take(2).collect();
        match names[..] {
            ["Final", name] => name.to_owned(),
            [name, _] => name.to_owned(),
            _ => text,
        }
    }

    #[test]
    fn each_error_of_etcd_has_its_meaning() {
        for (code, message, expected) in [
            (16, "etcdserver: invalid auth token", "InvalidToken"),
            (2, "auth: revision in header is old", "InvalidToken"),
            (
                3,
                "etcdserver: revision of auth store is old",
                "InvalidToken",
            ),
            (7, "etcdserver: permission denied", "Denied"),
            (3, "etcdserver: user name is empty", "Unauthenticated"),
            (
                3,
                "etcdserver: authentication failed, invalid user ID or password",
                "Unauthenticated",
            ),
            (
                9,
                "etcdserver: authentication is not enabled",
                "Unauthenticated",
            ),
            (
                11,
                "etcdserver: mvcc: required revision has been compacted",
                "Compacted",
            ),
            (
                11,
                "etcdserver: mvcc: required revision is a future revision",
                "FutureRevision",
            ),
            (5, "etcdserver: requested lease not found", "LeaseNotFound"),
            (8, "etcdserver: too many requests", "NotApplied"),
            (2, "raft proposal dropped", "NotApplied"),
            (
                8,
                "grpc: received message larger than max (2097174 vs. 2097152)",
                "Invalid",
            ),
            (8, "etcdserver: mvcc: database space exceeded", "Unknown"),
            (9, "etcdserver: not leader", "Unknown"),
            (14, "etcdserver: no leader", "Unknown"),
            (14, "etcdserver: request timed out", "Unknown"),
            (14, "etcdserver: leader changed", "Unknown"),
            (2, "context canceled", "Unknown"),
            (4, "context deadline exceeded", "Unknown"),
            (99, "?", "Unknown"),
            (
                3,
                "etcdserver: duplicate key given in txn request",
                "Invalid",
            ),
            (3, "etcdserver: request is too large", "Invalid"),
            (12, "Method Not Allowed", "Invalid"),
        ] {
            assert_eq!(class(code, message), expected, "{code} {message}");
        }
    }

    #[test]
    fn an_answer_that_is_not_of_etcd_shows_its_status() {
        for body in ["", "Bad Gateway", "{}", "[1", r#"{"code":"7"}"#, "\u{0}"] {
            let failure = refused(&endpoint(), Request::Put, 502, body.as_bytes());
            assert!(
                matches!(failure, Failure::Unknown(Cause::Status { status: 502, .. })),
                "{body}: {failure:?}"
            );
        }
    }

    #[test]
    fn a_message_of_a_server_is_bounded_and_printable() {
        let failure = failure(
            &endpoint(),
            Request::Range,
            Code::InvalidArgument,
            &"\u{1b}[2J\n".repeat(10_000),
        );
        let Failure::Final(error) = failure else {
            panic!("{failure:?}");
        };
        let text = error.to_string();
        assert!(
            text.starts_with("https://etcd-1:2379 refuses this read: "),
            "{text}"
        );
        assert!(
            text.len() < 4_000 && !text.contains(['\u{1b}', '\n']),
            "{text}"
        );
    }
}
