//! What is special about requests of browsers: a WebSocket cannot have `Authorization`, and any web page can send requests.
//! Out of scope: the page of `sliced` itself ([`super::ui`]).

use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::problem::problem;

/// The subprotocol of WebSockets to guests. It is selected for clients that offer it: a browser needs one that is.
pub(super) const SUBPROTOCOL: &str = "v1.slice";

/// What precedes the token, in base64url without padding, in the name of a subprotocol.
const TOKEN_PREFIX: &str = "base64url.bearer.authorization.slice.";

/// The name of the subprotocol with a token.
pub(super) fn token_subprotocol(token: &str) -> String {
    format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(token))
}

/// Whether a request asks for a WebSocket.
pub(super) fn is_websocket(method: &Method, headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE);
    method == Method::GET
        && upgrade.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let fields = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let texts = fields.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).map(str::trim)
}

/// The subprotocols with a token that a request offers.
pub(super) fn offered_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    subprotocols(headers).filter(|name| name.starts_with(TOKEN_PREFIX))
}

/// Whether a request offers [`SUBPROTOCOL`].
pub(super) fn offers_subprotocol(headers: &HeaderMap) -> bool {
    subprotocols(headers).any(|name| name == SUBPROTOCOL)
}

/// Refuses requests that a web page of another origin has made its browser send.
///
/// A browser adds `Authorization: Bearer` only for a page that has the token, so that such a request is the page's own; but it sends all
/// others to a socket without a token, if a proxy forwards to it.
///
/// # Errors
/// The response: 403.
pub(super) fn check_origin(headers: &HeaderMap, has_bearer: bool) -> Result<(), Box<Response>> {
    let mut origins = headers.get_all(header::ORIGIN).into_iter();
    let Some(origin) = origins.next() else {
        return Ok(());
    };
    let mut hosts = headers.get_all(header::HOST).into_iter();
    let is_same = match (origins.next(), hosts.next(), hosts.next()) {
        (None, Some(host), None) => is_same(origin.as_bytes(), host.as_bytes()),
        _ => false,
    };
    if is_same || has_bearer {
        return Ok(());
    }
    let error = "the request comes from a web page of another origin; if it does not, a proxy has changed the header Host";
    let error = error.to_owned();
    Err(Box::new(problem(StatusCode::FORBIDDEN, error, Vec::new())))
}

/// Whether `https://example.com:8080` is the origin of the pages of this host.
fn is_same(origin: &[u8], host: &[u8]) -> bool {
    let of_scheme = |scheme: &[u8], port: &[u8]| {
        let authority = origin.strip_prefix(scheme)?;
        let plain = |text: &[u8]| text.strip_suffix(port).unwrap_or(text).to_ascii_lowercase();
        Some(!authority.is_empty() && plain(authority) == plain(host))
    };
    let same = of_scheme(b"https://", b":443").or_else(|| of_scheme(b"http://", b":80"));
    same.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn status(fields: &[(HeaderName, &'static str)], has_bearer: bool) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_static(value));
        }
        match check_origin(&headers, has_bearer) {
            Ok(()) => 200,
            Err(response) => response.status().as_u16(),
        }
    }

    #[test]
    fn a_page_of_another_origin_may_not_send_requests_without_a_token() {
        for (origin, host, expected) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080", 200),
            ("https://Slice.Example", "slice.example", 200),
            ("https://slice.example:443", "slice.example", 200),
            ("https://slice.example", "slice.example:443", 200),
            ("http://slice.example", "slice.example:80", 200),
            ("http://[::1]:8080", "[::1]:8080", 200),
            ("http://slice.example", "slice.example:443", 403),
            ("http://127.0.0.1:8081", "127.0.0.1:8080", 403),
            ("http://evil.example", "127.0.0.1:8080", 403),
            ("http://127.0.0.1:8080.evil.example", "127.0.0.1:8080", 403),
            ("http://evil.example:80", "slice.example:80", 403),
            ("null", "127.0.0.1:8080", 403),
            ("file://", "", 403),
            ("http://", "", 403),
            ("", "", 403),
        ] {
            let fields = [(header::ORIGIN, origin), (header::HOST, host)];
            assert_eq!(status(&fields, false), expected, "{origin} {host}");
            assert_eq!(status(&fields, true), 200, "{origin} {host}");
        }
    }

    #[test]
    fn a_request_without_an_origin_is_that_of_no_page_and_several_are_refused() {
        let (origin, host) = (header::ORIGIN, header::HOST);
        assert_eq!(status(&[], false), 200);
        assert_eq!(status(&[(host.clone(), "a")], false), 200);
        assert_eq!(status(&[(origin.clone(), "http://a")], false), 403);
        let same = [(origin.clone(), "http://a"), (host.clone(), "a")];
        assert_eq!(status(&same, false), 200);
        for more in [(origin, "http://a"), (host, "a")] {
            let fields = [same.as_slice(), &[more]].concat();
            assert_eq!(status(&fields, false), 403, "{fields:?}");
        }
    }
}
