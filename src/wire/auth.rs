//! Tokens of clients: `Authorization: Bearer TOKEN` (RFC 6750), for WebSockets of browsers also as a subprotocol ([`super::browser`]).
//! Out of scope: where the token of the daemon is stored (`api_server`); users of Unix sockets ([`super::socket`]).
//!
//! # Why a valid token is never refused
//! A token has 256 bits, so guesses are not limited to prevent that one succeeds, but for what they cost: the log and the CPU. If a limit
//! applied to valid tokens as well, any user of an address (of this host, or behind the same NAT) could lock out its other users.

use std::fmt;

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use subtle::ConstantTimeEq;

use super::browser;
use super::origin::Origin;
use super::problem::problem;
use super::rates::{LogRate, Rates};
use crate::clock;

/// The requests of an address without a valid token that get status 401 at once, and per second; the others get 429.
const BURST: f64 = 20.0;
const RATE: f64 = 1.0;

/// The minimum length of a token, in characters.
const MIN_TOKEN: usize = 16;
/// The maximum length of a token, in characters.
const MAX_TOKEN: usize = 512;

/// A token. It is never shown.
#[derive(Clone)]
pub struct Token {
    header: HeaderValue,
    subprotocol: String,
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// It has too few or too many characters.
    #[error("it has {0} characters, expected {MIN_TOKEN} to {MAX_TOKEN}")]
    Length(usize),
    /// It has characters that a header cannot have.
    #[error("it has characters other than A-Z a-z 0-9 - . _ ~ + / =")]
    Characters,
}

impl std::str::FromStr for Token {
    type Err = InvalidToken;

    /// Parses a token without white space around it.
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if text.is_empty() {
            return Err(InvalidToken::Empty);
        }
        if !text.bytes().all(is_token) {
            return Err(InvalidToken::Characters);
        }
        if !(MIN_TOKEN..=MAX_TOKEN).contains(&text.len()) {
            return Err(InvalidToken::Length(text.len()));
        }
        let mut value = HeaderValue::try_from(format!("Bearer {text}"))
            .map_err(|_| InvalidToken::Characters)?;
        value.set_sensitive(true);
        Ok(Self {
            header: value,
            subprotocol: browser::token_subprotocol(text),
        })
    }
}

impl Token {
    /// The value of the header `Authorization`.
    pub(super) fn header(&self) -> HeaderValue {
        self.header.clone()
    }

    /// Whether the header has this token. The time depends on its length alone.
    fn is_in(&self, headers: &HeaderMap) -> bool {
        const SCHEME: usize = "Bearer ".len();
        let mut values = headers.get_all(header::AUTHORIZATION).into_iter();
        // A proxy could choose another one of several.
        let (Some(value), None) = (values.next(), values.next()) else {
            return false;
        };
        let value = value.as_bytes();
        let Some((scheme, given)) = value.split_at_checked(SCHEME) else {
            return false;
        };
        let expected = &self.header.as_bytes()[SCHEME..];
        scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.ct_eq(expected))
    }

    /// Whether the request for a WebSocket offers the subprotocol with this token. The time depends on its length alone.
    fn is_offered(&self, method: &Method, headers: &HeaderMap) -> bool {
        // What is in `Authorization` takes precedence, even if it is invalid.
        if headers.contains_key(header::AUTHORIZATION) || !browser::is_websocket(method, headers) {
            return false;
        }
        let mut offered = browser::offered_tokens(headers);
        let (Some(given), None) = (offered.next(), offered.next()) else {
            return false;
        };
        given.as_bytes().ct_eq(self.subprotocol.as_bytes()).into()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.header.as_bytes().ct_eq(other.header.as_bytes()).into()
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Whether the requests on a listener need a token.
#[derive(Debug)]
pub struct Auth {
    token: Option<Token>,
    refused: Rates,
    log: LogRate,
}

impl Auth {
    /// Every request but `GET /healthz` needs this token.
    pub fn token(token: Token) -> Self {
        Self {
            token: Some(token),
            ..Self::none()
        }
    }

    /// No request needs a token, and what is in `Authorization` is ignored.
    pub fn none() -> Self {
        Self {
            token: None,
            refused: Rates::new(BURST, RATE),
            log: LogRate::default(),
        }
    }

    /// Whether requests need a token.
    pub(super) fn is_required(&self) -> bool {
        self.token.is_some()
    }

    /// Checks the token of a request.
    ///
    /// # Errors
    /// The response: 401, or 429 if there are too many of them.
    pub(super) fn check(
        &self,
        origin: &Origin,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), Box<Response>> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        let is_health = uri.path() == HEALTH && [Method::GET, Method::HEAD].contains(method);
        if is_health || token.is_in(headers) || token.is_offered(method, headers) {
            return Ok(());
        }
        let now = clock::monotonic();
        let is_limited = !self.refused.permits(origin.address(), now);
        if let Some(suppressed) = self.log.permits(now) {
            tracing::warn!(client = %origin, suppressed, "refused a request without a valid token");
        }
        let has_token = headers.contains_key(header::AUTHORIZATION)
            || browser::offered_tokens(headers).next().is_some();
        let (status, error) = match (is_limited, has_token) {
            (true, _) => (
                StatusCode::TOO_MANY_REQUESTS,
                "too many requests without a valid token",
            ),
            (false, true) => (StatusCode::UNAUTHORIZED, "invalid token"),
            (false, false) => (
                StatusCode::UNAUTHORIZED,
                "a token is required: Authorization: Bearer TOKEN",
            ),
        };
        let mut response = problem(status, error.to_owned(), Vec::new());
        let fields = response.headers_mut();
        // What such a client sends next is not worth a connection.
        fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
        match is_limited {
            true => fields.insert(header::RETRY_AFTER, HeaderValue::from_static("1")),
            false => fields.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
        };
        Err(Box::new(response))
    }
}

/// The path that needs no token.
pub(super) const HEALTH: &str = "/healthz";

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const TOKEN: &str = "0123456789abcdefABCDEF";

    fn checked(auth: &Auth, method: Method, path: &'static str, values: &[&'static str]) -> u16 {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        let origin = Origin::Remote(IpAddr::from([192, 0, 2, 1]));
        let uri = Uri::from_static(path);
        match auth.check(&origin, &method, &uri, &headers) {
            Ok(()) => 200,
            Err(response) => response.status().as_u16(),
        }
    }

    #[test]
    fn a_request_needs_the_one_token() {
        for (values, expected) in [
            (&["Bearer 0123456789abcdefABCDEF"][..], 200),
            (&["bearer 0123456789abcdefABCDEF"], 200),
            (&[], 401),
            (&[""], 401),
            (&["Bearer"], 401),
            (&["Bearer "], 401),
            (&["Bearer 0123456789abcdefABCDE"], 401),
            (&["Bearer 0123456789abcdefABCDEF0"], 401),
            (&["Bearer 0123456789abcdefABCDEf"], 401),
            (&["Bearer  0123456789abcdefABCDEF"], 401),
            (&["Bearer\t0123456789abcdefABCDEF"], 401),
            (&["Basic 0123456789abcdefABCDEF"], 401),
            (&["0123456789abcdefABCDEF"], 401),
            (
                &[
                    "Bearer 0123456789abcdefABCDEF",
                    "Bearer 0123456789abcdefABCDEF",
                ],
                401,
            ),
            (&["Bearer x", "Bearer 0123456789abcdefABCDEF"], 401),
        ] {
            let auth = Auth::token(TOKEN.parse().unwrap());
            let status = checked(&auth, Method::GET, "/v1/version", values);
            assert_eq!(status, expected, "{values:?}");
            let open = checked(&Auth::none(), Method::GET, "/v1/version", values);
            assert_eq!(open, 200, "{values:?}");
        }
    }

    #[test]
    fn a_websocket_may_have_the_one_token_as_a_subprotocol() {
        // `printf 0123456789abcdefABCDEF | basenc --base64url`, without the padding.
        const OFFERED: &str = "base64url.bearer.authorization.slice.MDEyMzQ1Njc4OWFiY2RlZkFCQ0RFRg";
        let auth = Auth::token(TOKEN.parse().unwrap());
        let status = |method: Method, fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_str(value).unwrap());
            }
            let origin = Origin::Remote(IpAddr::from([192, 0, 2, 1]));
            let uri = Uri::from_static("/vm/a/shell");
            match auth.check(&origin, &method, &uri, &headers) {
                Ok(()) => 200,
                Err(response) => response.status().as_u16(),
            }
        };
        let upgrade = ("upgrade", "websocket");
        let protocol = "sec-websocket-protocol";
        let both = format!("v1.slice, {OFFERED}");
        let padded = format!("{OFFERED}==");
        let other = format!("{}A", &OFFERED[..OFFERED.len() - 1]);
        let of_others = OFFERED.replace(".slice.", ".k8s.io.");
        for (fields, expected) in [
            (&[upgrade, (protocol, both.as_str())][..], 200),
            (&[("upgrade", "WebSocket"), (protocol, OFFERED)], 200),
            (&[upgrade, (protocol, "v1.slice"), (protocol, OFFERED)], 200),
            (&[upgrade, (protocol, "v1.slice")], 401),
            (&[upgrade, (protocol, &padded)], 401),
            (&[upgrade, (protocol, &other)], 401),
            (&[upgrade, (protocol, &of_others)], 401),
            (&[upgrade, (protocol, TOKEN)], 401),
            (
                &[upgrade, (protocol, "base64url.bearer.authorization.slice.")],
                401,
            ),
            // One of several could be that of a proxy.
            (&[upgrade, (protocol, OFFERED), (protocol, OFFERED)], 401),
            (
                &[upgrade, (protocol, OFFERED), ("authorization", "Bearer x")],
                401,
            ),
            // Other requests can have the header.
            (&[(protocol, OFFERED)], 401),
            (&[("upgrade", "h2c"), (protocol, OFFERED)], 401),
        ] {
            assert_eq!(status(Method::GET, fields), expected, "{fields:?}");
        }
        let posted = status(Method::POST, &[upgrade, (protocol, OFFERED)]);
        assert_eq!(posted, 401);
    }

    #[test]
    fn only_get_and_head_of_healthz_need_no_token() {
        let auth = Auth::token(TOKEN.parse().unwrap());
        for (method, path, expected) in [
            (Method::GET, "/healthz", 200),
            (Method::HEAD, "/healthz", 200),
            (Method::GET, "/healthz?x=/v1/version", 200),
            (Method::POST, "/healthz", 401),
            (Method::GET, "/healthz/", 401),
            (Method::GET, "/healthz/../v1/version", 401),
            (Method::GET, "//healthz", 401),
            (Method::GET, "/HEALTHZ", 401),
            (Method::GET, "/", 401),
            (Method::GET, "/nowhere", 401),
        ] {
            assert_eq!(checked(&auth, method, path, &[]), expected, "{path}");
        }
    }

    #[test]
    fn refused_requests_are_limited_and_valid_ones_are_not() {
        let auth = Auth::token(TOKEN.parse().unwrap());
        let statuses: Vec<u16> = (0..30)
            .map(|_| checked(&auth, Method::GET, "/", &["Bearer guess"]))
            .collect();
        assert_eq!(statuses[..20], [401; 20]);
        assert_eq!(statuses[25..], [429; 5]);
        let valid = checked(&auth, Method::GET, "/", &["Bearer 0123456789abcdefABCDEF"]);
        assert_eq!(valid, 200);
    }

    #[test]
    fn a_token_has_a_length_and_characters_and_is_not_shown() {
        for (text, expected) in [
            ("", Some(InvalidToken::Empty)),
            ("short", Some(InvalidToken::Length(5))),
            ("0123456789abcdef", None),
            ("0123456789 abcdef", Some(InvalidToken::Characters)),
            ("0123456789abcde\n", Some(InvalidToken::Characters)),
            ("0123456789abcdeé", Some(InvalidToken::Characters)),
        ] {
            assert_eq!(text.parse::<Token>().err(), expected, "{text:?}");
        }
        let long = "x".repeat(MAX_TOKEN + 1);
        assert_eq!(
            long.parse::<Token>(),
            Err(InvalidToken::Length(MAX_TOKEN + 1))
        );
        let token: Token = TOKEN.parse().unwrap();
        let auth = Auth::token(token.clone());
        let shown = format!("{token:?} {auth:?} {:?}", token.header());
        assert!(!shown.contains("0123"), "{shown}");
    }
}
