//! The web page of the API: its files, which are in this program.
//! Out of scope: what the page does (`page/`, the sources; `dist/`, what `make page` builds of them).
//!
//! # Endpoints
//! | request | response |
//! |---|---|
//! | `GET /` | the page |
//! | `GET /ui/app.js` | its program |
//! | `GET /ui/app.css` | its styles |
//! | `GET /ui/icon.svg` | its icon |
//! | `GET /ui/licenses.txt` | the licences of what the program contains |
//!
//! They need no token, as they contain nothing of this host. The page asks for the token, and sends the requests of the API as any client.
//!
//! # Why nothing from elsewhere runs in the page
//! The policy permits scripts, styles, images and requests of this listener only, neither in attributes nor in elements of the document, and
//! no string becomes markup or a script (`require-trusted-types-for`). So what a guest or a user has written cannot be more than text.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;

/// Whether there is a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// There is none.
    Off,
    /// There is one.
    On,
}

/// What the page may load and do.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// The headers of each file.
const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("permissions-policy"),
        "camera=(), clipboard-read=(), geolocation=(), microphone=()",
    ),
    // It is asked for each time, and sent only after an upgrade of the daemon.
    (header::CACHE_CONTROL, "no-cache"),
];

/// Where the page says whether it asks for a token.
const TOKEN_REQUIRED: &str = "data-token=\"required\"";
const TOKEN_NONE: &str = "data-token=\"none\"";

/// A file of the page.
#[derive(Clone)]
struct File {
    content: Bytes,
    kind: &'static str,
    etag: HeaderValue,
}

impl File {
    fn new(content: impl Into<Bytes>, kind: &'static str) -> Self {
        let content = content.into();
        let hash = blake3::hash(&content).to_hex();
        let etag = HeaderValue::try_from(format!("\"{}\"", &hash[..32]));
        Self {
            etag: etag.unwrap_or(HeaderValue::from_static("\"\"")),
            content,
            kind,
        }
    }

    fn response(&self, request: &HeaderMap) -> Response {
        let is_known = request
            .get_all(header::IF_NONE_MATCH)
            .into_iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            // A proxy that compresses makes a tag weak.
            .map(|tag| tag.trim().trim_start_matches("W/"))
            .any(|tag| tag == "*" || tag.as_bytes() == self.etag.as_bytes());
        let mut response = match is_known {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => {
                let kind = HeaderValue::from_static(self.kind);
                (
                    [(header::CONTENT_TYPE, kind)],
                    Body::from(self.content.clone()),
                )
                    .into_response()
            }
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.etag.clone());
        for (name, value) in HEADERS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// The routes of the page. `asks`: requests need a token.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(asks: bool) -> Router<S> {
    let page = include_str!("dist/index.html");
    let page = match asks {
        true => page.to_owned(),
        false => page.replace(TOKEN_REQUIRED, TOKEN_NONE),
    };
    let handler = |file: File| move |headers: HeaderMap| async move { file.response(&headers) };
    let page = handler(File::new(page, "text/html; charset=utf-8"));
    let script = include_bytes!("dist/app.js").as_slice();
    let script = handler(File::new(script, "text/javascript; charset=utf-8"));
    let style = include_bytes!("dist/app.css").as_slice();
    let style = handler(File::new(style, "text/css; charset=utf-8"));
    let icon = include_bytes!("dist/icon.svg").as_slice();
    let icon = handler(File::new(icon, "image/svg+xml"));
    let licenses = include_bytes!("dist/licenses.txt").as_slice();
    let licenses = handler(File::new(licenses, "text/plain; charset=utf-8"));
    Router::new()
        .route("/", get(page))
        .route("/ui/app.js", get(script))
        .route("/ui/app.css", get(style))
        .route("/ui/icon.svg", get(icon))
        .route("/ui/licenses.txt", get(licenses))
}

/// Whether a request is for a file of the page.
pub(super) fn is_file(method: &Method, path: &str) -> bool {
    let is_path = matches!(
        path,
        "/" | "/ui/app.js" | "/ui/app.css" | "/ui/icon.svg" | "/ui/licenses.txt"
    );
    is_path && [Method::GET, Method::HEAD].contains(method)
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    const PATHS: [&str; 5] = [
        "/",
        "/ui/app.js",
        "/ui/app.css",
        "/ui/icon.svg",
        "/ui/licenses.txt",
    ];

    async fn get_with(asks: bool, path: &str, tag: Option<&HeaderValue>) -> Response {
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        if let Some(tag) = tag {
            let headers = request.headers_mut();
            headers.insert(header::IF_NONE_MATCH, tag.clone());
        }
        routes::<()>(asks).oneshot(request).await.unwrap()
    }

    async fn text(response: Response) -> String {
        let body = axum::body::to_bytes(response.into_body(), 4 << 20).await;
        String::from_utf8(body.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn each_file_has_the_policy_and_is_sent_once() {
        for path in PATHS {
            let response = get_with(true, path, None).await;
            assert_eq!(response.status(), 200, "{path}");
            let headers = response.headers().clone();
            for (name, value) in HEADERS {
                assert_eq!(headers[&name], value, "{path}");
            }
            assert!(!text(response).await.is_empty());
            let tag = &headers[header::ETAG];
            let again = get_with(true, path, Some(tag)).await;
            assert_eq!(again.status(), 304, "{path}");
            assert_eq!(again.headers()[header::ETAG], *tag);
            assert_eq!(text(again).await, "");
            let other = HeaderValue::from_static("\"other\"");
            assert_eq!(get_with(true, path, Some(&other)).await.status(), 200);
            assert!(is_file(&Method::GET, path) && is_file(&Method::HEAD, path));
            assert!(!is_file(&Method::POST, path));
        }
        for word in ["unsafe", "http:", "https:", "data:", "*"] {
            assert!(!POLICY.contains(word), "{word}");
        }
    }

    #[tokio::test]
    async fn a_page_for_a_socket_without_a_token_does_not_ask() {
        let (asks, other) = (
            get_with(true, "/", None).await,
            get_with(false, "/", None).await,
        );
        assert_ne!(asks.headers()[header::ETAG], other.headers()[header::ETAG]);
        let (asks, other) = (text(asks).await, text(other).await);
        assert!(asks.contains(TOKEN_REQUIRED) && !asks.contains(TOKEN_NONE));
        assert!(other.contains(TOKEN_NONE) && !other.contains(TOKEN_REQUIRED));
    }

    #[test]
    fn other_paths_are_no_files_of_the_page() {
        for path in [
            "",
            "//",
            "/ui",
            "/ui/",
            "/ui/app.js/",
            "/UI/app.js",
            "/ui/../v1/version",
        ] {
            assert!(!is_file(&Method::GET, path), "{path}");
        }
    }
}
